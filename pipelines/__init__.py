"""Jobs: one runnable module each, `python -m pipelines.NAME` or `factory jobs submit`."""
