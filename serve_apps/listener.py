"""HTTP straight into a Serve replica, without Serve's proxy in between.

    listener = Listener(app, "127.0.0.1", 8000)
    await listener.start()      # accepts when it returns
    await listener.stop(20)     # takes nothing new, finishes what it has

A request through the proxy crosses two processes and, for its body, comes back once more: about
5 ms on two cores, where a tier-0 hit needs less than one. Serve still starts, watches and replaces
the replica. Replicas on one machine share the port (SO_REUSEPORT), and so do an old and a new one
during a roll-over.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_BACKLOG = 2048

_KEEP_ALIVE_S = 75
"""Seconds that an idle connection stays open: longer than clients keep theirs, so that none is
closed just when it is used again."""


class _Together:
    """A transport that sends what is written in one turn of the event loop with one system call.

    uvicorn writes head and body of a response separately; each would wake the client.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send soon."""
        if not self._parts:
            asyncio.get_running_loop().call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Send what waits, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Protocol(HttpToolsProtocol):
    """uvicorn's, over such a transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Together(transport))  # type: ignore[arg-type]


class Listener:
    """uvicorn in the event loop of a replica."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                proxy_headers=False,
                ws="none",
                lifespan="off",
                access_log=False,
                log_level="warning",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
            )
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """True while it accepts connections."""
        return self._task is not None and not self._task.done() and not self._server.should_exit

    async def start(self) -> None:
        """Bind and accept. Raises `OSError` when the address is taken by somebody else."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # With the protocol named, asyncio turns Nagle's algorithm off: 40 ms an answer otherwise.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind((self._host, self._port))
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]))

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, and give what is in progress `grace_s` seconds to finish."""
        if self._task is None:
            return
        # At once, not at uvicorn's next look: new connections belong to who shares the port.
        for accepting in self._server.servers:
            accepting.close()
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        await self._task
