"""The gateway: one request's way from an HTTP body to a settled, labelled answer.

`pipeline.Gateway` is the whole way as a plain asyncio object, without Ray and without HTTP;
`app.build_app` puts OpenAI's routes in front of it. A request is read (`body`), its key checked
(`access`), looked up in the exact cache (`cache`), planned (`plan`), answered by the tiers
(`cascade`, `live`) and settled in the ledger (`journey`) before its last byte is sent (`replies`).
"""
