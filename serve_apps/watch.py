"""Which engines and embedders are asleep, as a gateway replica sees it, and how it wakes them.

    watch = Watch({"engine-smollm2-135m": (spec, handle)})      # those without a floor
    watch.start()
    watch.of("engine-smollm2-135m").asleep                      # at most a second old

What sleeps is known to Serve's controller, so a gateway that starts anew forgets nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ray import serve

from serve_apps.embedder import EmbedderSpec
from serve_apps.engine_spec import EngineSpec
from serve_apps.ray_engine import translated

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_log = logging.getLogger(__name__)

PERIOD_S = 1.0
"""Seconds between two looks."""


class Slumber:
    """One engine that may sleep: the gateway's `Sleeper`."""

    def __init__(self, spec: EngineSpec | EmbedderSpec, handle: DeploymentHandle) -> None:
        """Taken to be awake until seen asleep, so that no other tier is paid for a guess."""
        self.spec = spec
        self.asleep = False
        self._state = handle.options(method_name="state")
        self._wake = handle.options(method_name="wake")

    async def wake(self) -> None:
        """Return when the engine has its model. Raises `EngineError`."""
        with translated():
            await self._wake.remote()
        self.asleep = False

    @property
    def deployment(self) -> tuple[str, str]:
        """Its application and its name in it."""
        return self._wake.app_name, self._wake.deployment_name

    async def look(self, running: int) -> None:
        """Note whether it sleeps, given the number of its replicas that run."""
        if running and self.spec.standby:
            state: Any = await self._state.remote()
            self.asleep = not state["awake"]
        else:
            self.asleep = running == 0


class Watch:
    """Looks at all engines that may sleep, once a second."""

    def __init__(
        self, engines: Mapping[str, tuple[EngineSpec | EmbedderSpec, DeploymentHandle]]
    ) -> None:
        """`engines` by the name of their deployment."""
        self._slumbers = {name: Slumber(spec, handle) for name, (spec, handle) in engines.items()}
        self._task: asyncio.Task[None] | None = None

    def of(self, name: str) -> Slumber | None:
        """The engine of a deployment; None for one that never sleeps."""
        return self._slumbers.get(name)

    def start(self) -> None:
        """Look from now on; does nothing where every engine has a floor."""
        if self._slumbers:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            try:
                running = await asyncio.to_thread(_running)
                for slumber in self._slumbers.values():
                    await slumber.look(running.get(slumber.deployment, 0))
            except Exception:
                # The controller restarts, or a replica has just gone: what was seen last holds.
                _log.warning("cannot see which engines sleep", exc_info=True)
            await asyncio.sleep(PERIOD_S)


def _running() -> dict[tuple[str, str], int]:
    """Replicas that run, by application and deployment."""
    return {
        (app, name): deployment.replica_states.get("RUNNING", 0)
        for app, application in serve.status().applications.items()
        for name, deployment in application.deployments.items()
    }
