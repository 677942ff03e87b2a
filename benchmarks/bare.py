"""What the gateway is measured against: the thinnest Ray Serve apps that do something comparable.

    python -m benchmarks.bare --address 127.0.0.1:6379

deploys both beside the gateway: `/bare` answers a constant, `/engine` passes a chat request on to
the engine and does nothing else.
"""

from __future__ import annotations

from typing import Annotated, Any

import ray
import typer
from fastapi import FastAPI, Request
from ray import serve

from serve_apps.loopback import keep_replica_on_loopback

TINY = FastAPI()
THIN = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=256)
@serve.ingress(TINY)
class Tiny:
    """A FastAPI deployment as in Serve's own documentation."""

    def __init__(self) -> None:
        keep_replica_on_loopback()

    @TINY.post("/v1/chat/completions")
    async def chat(self, request: Request) -> dict[str, Any]:
        """Read the body, answer a constant."""
        body = await request.json()
        message = {"role": "assistant", "content": "shutil"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"object": "chat.completion", "model": body["model"], "choices": [choice]}


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=256)
@serve.ingress(THIN)
class Thin:
    """The engine behind HTTP, without a gateway."""

    def __init__(self, app: str, deployment: str) -> None:
        keep_replica_on_loopback()
        self._engine = serve.get_deployment_handle(deployment, app).options(method_name="answer")

    @THIN.post("/v1/chat/completions")
    async def chat(self, request: Request) -> dict[str, Any]:
        """Pass the request on, and the answer back."""
        answer: dict[str, Any] = await self._engine.remote(await request.json())
        return answer


def main(
    address: Annotated[str, typer.Option(help="GCS address of the running cluster.")],
    app: Annotated[str, typer.Option(help="Application that has the engine.")] = "factory",
    engine: Annotated[str, typer.Option(help="Its deployment.")] = "engine-smollm2-135m",
) -> None:
    """Deploy the bare apps. Example: python -m benchmarks.bare --address 127.0.0.1:6379"""
    ray.init(address=address, log_to_driver=False, logging_level="warning")
    try:
        serve.run(Tiny.bind(), name="bare", route_prefix="/bare")
        serve.run(Thin.bind(app, engine), name="engine", route_prefix="/engine")
    finally:
        ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
