"""HTTP straight into a replica: a shared port, and an end that loses nothing."""

from __future__ import annotations

import asyncio
from random import Random

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from factory.cluster.ports import free
from serve_apps.listener import Listener, _Together


def app(name: str, gate: asyncio.Event | None = None) -> Starlette:
    async def answer(request: object) -> PlainTextResponse:
        if gate is not None:
            await gate.wait()
        return PlainTextResponse(name)

    return Starlette(routes=[Route("/", answer)])


async def test_an_old_and_a_new_replica_share_a_port_during_a_roll_over() -> None:
    port = free(1, Random())[0]
    gate = asyncio.Event()
    old = Listener(app("old", gate), "127.0.0.1", port)
    await old.start()
    assert old.alive
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        waiting = asyncio.create_task(client.get("/"))
        async with asyncio.timeout(5):
            while not old._server.server_state.tasks:
                await asyncio.sleep(0.01)
        new = Listener(app("new"), "127.0.0.1", port)
        await new.start()
        stopping = asyncio.create_task(old.stop(5))
        async with asyncio.timeout(5):
            while old.alive:
                await asyncio.sleep(0.01)
            while (await httpx.AsyncClient().get(f"http://127.0.0.1:{port}/")).text != "new":
                pass
        gate.set()
        assert (await waiting).text == "old"
    await stopping
    await new.stop(1)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")


async def test_an_address_of_somebody_else_is_an_error() -> None:
    with pytest.raises(OSError):
        await Listener(app("x"), "192.0.2.1", free(1, Random())[0]).start()


class Wire(asyncio.Transport):
    """Notes what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes | str] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.seen.append(data)

    def close(self) -> None:
        self.closed = True
        self.seen.append("closed")

    def is_closing(self) -> bool:
        return self.closed


async def test_what_is_written_in_one_turn_goes_out_together_and_before_the_end() -> None:
    wire = Wire()
    together = _Together(wire)
    together.write(b"head ")
    together.write(b"body")
    assert wire.seen == []
    await asyncio.sleep(0)
    together.write(b"last")
    together.close()
    together.write(b"too late")
    await asyncio.sleep(0)
    assert wire.seen == [b"head body", b"last", "closed"]
    assert together.is_closing()
