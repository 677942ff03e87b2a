"""Ray Serve apps: the tier engines on vLLM and the OpenAI-compatible gateway in front of them."""
