"""What the gateway is measured against: the thinnest things on Ray Serve that are comparable.

    python -m benchmarks.bare tiny --port 8100        # a constant, on a cluster of its own
    python -m benchmarks.bare engine --address 127.0.0.1:6379 --port 8101    # a line's engine

`tiny` prints one line when it answers and ends when its standard input does. `engine` adds to a
line that runs, with the same HTTP server as the gateway.
"""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import ray
import typer
from fastapi import FastAPI, Request
from ray import serve
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve_apps.listener import Listener
from serve_apps.loopback import keep_replica_on_loopback

TINY = FastAPI()
HOST = "127.0.0.1"
ROUTE = "/v1/chat/completions"

commands = typer.Typer(no_args_is_help=True)


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=256)
@serve.ingress(TINY)
class Tiny:
    """A FastAPI deployment as in Serve's own documentation."""

    def __init__(self) -> None:
        keep_replica_on_loopback()

    @TINY.post(ROUTE)
    async def chat(self, request: Request) -> dict[str, Any]:
        """Read the body, answer a constant."""
        body = await request.json()
        message = {"role": "assistant", "content": "shutil"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"object": "chat.completion", "model": body["model"], "choices": [choice]}


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=256)
class Thin:
    """The engine behind HTTP, without a gateway."""

    async def __init__(self, app: str, deployment: str, port: int) -> None:
        keep_replica_on_loopback()
        engine = serve.get_deployment_handle(deployment, app).options(method_name="answer")

        async def chat(request: Any) -> JSONResponse:
            body = await request.json()
            body.pop("model")
            begun = time.perf_counter()
            answer: dict[str, Any] = await engine.remote(body)
            took = {"x-engine-ms": f"{(time.perf_counter() - begun) * 1000:.3f}"}
            return JSONResponse(answer, 500 if "error" in answer else 200, took)

        web = Starlette(routes=[Route(ROUTE, chat, methods=["POST"])])
        self._listener = Listener(web, HOST, port)
        await self._listener.start()


@commands.command()
def tiny(port: Annotated[int, typer.Option(help="TCP port.")]) -> None:
    """Serve a constant until standard input ends."""
    ray.init(log_to_driver=False, logging_level="warning", include_dashboard=False)
    serve.start(http_options={"host": HOST, "port": port})
    serve.run(Tiny.bind(), name="bare", route_prefix="/")
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


@commands.command()
def engine(
    address: Annotated[str, typer.Option(help="GCS address of the running cluster.")],
    port: Annotated[int, typer.Option(help="TCP port.")],
    deployment: Annotated[str, typer.Option(help="Its deployment.")] = "engine-smollm2-135m",
) -> None:
    """Put the engine of a running line behind HTTP."""
    ray.init(address=address, log_to_driver=False, logging_level="warning")
    applications = serve.status().applications
    found = [name for name, one in applications.items() if deployment in one.deployments]
    if len(found) != 1:
        raise typer.BadParameter(f"{len(found)} applications have a deployment '{deployment}'")
    (app,) = found
    serve.run(Thin.bind(app, deployment, port), name="bare-engine", route_prefix=None)
    ray.shutdown()


if __name__ == "__main__":
    commands()
