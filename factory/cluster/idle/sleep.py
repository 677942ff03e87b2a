"""Engines of idle endpoints fall asleep by themselves; that is told before, and its saving kept.

    step = decide(engine, memory, settings.idle, now)      # pure
    Sleepers(settings, ledger, cluster).look(nodes, now)   # the node meter, every few seconds
    known(settings, cluster)                               # what it found last

Ray Serve takes an engine or embedder without a floor to zero `idle_after_s` after the last request.
Before that it is announced, in `home/run/engines.json` and in the audit log. Its sleep is sealed
there with the hourly price of what it gave back, its end with what that has saved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select

from factory.cluster import local
from factory.cluster.idle.shutdown import Decision, seal_stop, span
from factory.cluster.nodehours import Node
from factory.config import Idle, Settings
from factory.ledger.errors import LedgerError
from factory.ledger.money import usd
from factory.ledger.schema import CHARGES, REQUESTS
from factory.ledger.store import Ledger

LOOK_S = 10.0
"""Seconds between two looks where something may sleep."""
GRACE = timedelta(seconds=20)
"""An engine that goes so long before its time has fallen asleep too: Serve's clock decides."""
_SETTLED = timedelta(minutes=10)
"""A request stands in the ledger at most so long after it began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A model that is served, as it is now."""

    model: str
    held: bool
    """Whether it holds anything of a node."""
    nusd_per_hour: int = 0
    """What it holds."""
    last: datetime | None = None
    """When its newest request began."""
    floor: int = 0
    """Replicas that stay while nobody asks."""
    idle_after_s: float = 600.0
    standby: bool = False
    """Asleep, it keeps its replica and what that holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is remembered of an engine from one look to the next."""

    since: datetime
    """When it was first seen awake."""
    nusd_per_hour: int = 0
    """What it held when it was last seen awake."""
    announced: datetime | None = None
    """When its sleep was announced, if it was."""
    asleep: datetime | None = None
    """When it was first seen asleep; None while it is awake."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one look at an engine gives."""

    decision: Decision
    memory: Memory | None
    """None when nothing is to be remembered."""
    verb: Literal["announce", "stop", "wake"] | None = None
    """What is sealed in the audit log as `idle.VERB`, if anything."""
    detail: Mapping[str, Any] = field(default_factory=dict)


def decide(engine: Engine, before: Memory | None, policy: Idle, now: datetime) -> Step:
    """What is to be told of an engine. A clock that was set back saves nothing."""
    after = timedelta(seconds=engine.idle_after_s)
    if not engine.held:
        return _gone(engine, before, now, after)
    if before is None or before.asleep is not None:
        awake = Memory(since=now, nusd_per_hour=engine.nusd_per_hour)
        why = "it was put up" if before is None else "it was asked for"
        said = Decision("keep", why)
        if before is None:
            return Step(said, awake)
        return Step(said, awake, "wake", saved(before, now, why))
    quiet = replace(before, nusd_per_hour=engine.nusd_per_hour, announced=None)
    if engine.floor:
        return Step(Decision("keep", f"{engine.floor} replica stays awake"), quiet)
    if engine.standby:
        return Step(Decision("keep", "asleep or awake, a standby keeps its replica"), quiet)
    last = max(before.since, engine.last or before.since)
    idle = max(timedelta(), now - last)
    if idle < after - min(timedelta(seconds=policy.announce_s), after / 2):
        return Step(Decision("keep", f"used {span(idle)} ago"), quiet)
    said = Decision("announce", f"no request for {span(idle)}", max(now, last + after))
    if before.announced is not None and last <= before.announced <= now:
        return Step(said, replace(quiet, announced=before.announced))
    detail = {"reason": said.reason, "stops_at": f"{said.stops_at:%Y-%m-%dT%H:%M:%SZ}"}
    return Step(said, replace(quiet, announced=now), "announce", detail)


def _gone(engine: Engine, before: Memory | None, now: datetime, after: timedelta) -> Step:
    """An engine that holds nothing."""
    if before is None:
        return Step(Decision("keep", "not up, or asleep since before anybody looked"), None)
    if before.asleep is not None:
        slept = max(timedelta(), now - before.asleep)
        kept = usd(_worth(before, now))
        return Step(Decision("stop", f"asleep for {span(slept)}, which saved {kept} USD"), before)
    last = max(before.since, engine.last or before.since)
    idle = max(timedelta(), now - last)
    if engine.floor or idle < after - GRACE:
        return Step(Decision("keep", "it is gone, but not because it was idle"), None)
    why = f"no request for {span(idle)}"
    detail = {"reason": why, "saves_nusd_per_hour": before.nusd_per_hour}
    return Step(Decision("stop", why), replace(before, asleep=now), "stop", detail)


def saved(slept: Memory, now: datetime, why: str) -> dict[str, Any]:
    """What is sealed at the end of a sleep."""
    assert slept.asleep is not None, "only a sleep has an end"
    return {
        "reason": why,
        "slept_s": round(max(0.0, (now - slept.asleep).total_seconds())),
        "saves_nusd_per_hour": slept.nusd_per_hour,
        "saved_nusd": _worth(slept, now),
    }


def _worth(slept: Memory, now: datetime) -> int:
    assert slept.asleep is not None, "only a sleep saves"
    micros = max(timedelta(), now - slept.asleep) // timedelta(microseconds=1)
    return slept.nusd_per_hour * micros // 3_600_000_000


class Sleepers:
    """Looks at the engines of one cluster."""

    def __init__(self, settings: Settings, ledger: Ledger, cluster: local.Cluster) -> None:
        """Ends what an earlier cluster left asleep, at the moment it was last looked at."""
        self._settings = settings
        self._ledger = ledger
        self.cluster = cluster
        self._last: dict[str, datetime] = {}
        self._looked: datetime | None = None
        said = _read(settings)
        self._memories = {model: _memory(plain) for model, plain in said["engines"].items()}
        if said["cluster"] != cluster.id:
            if said["cluster"] and said["looked"]:
                self._end(said["cluster"], datetime.fromisoformat(said["looked"]))
            self._memories = {}

    @property
    def any(self) -> bool:
        """Whether an engine may sleep here at all."""
        return any(not engine.floor for engine in self._engines({}))

    def look(self, nodes: Iterable[Node], now: datetime) -> None:
        """One look; what is news is sealed, and all of it noted. Raises `LedgerError`."""
        held = worth(nodes, self._settings)
        self._ask(now)
        notes = {}
        for engine in self._engines(held):
            step = decide(engine, self._memories.get(engine.model), self._settings.idle, now)
            if step.verb is not None:
                self._seal(self.cluster.id, now, step.verb, engine.model, step.detail)
            if step.memory is None:
                self._memories.pop(engine.model, None)
                continue
            self._memories[engine.model] = step.memory
            notes[engine.model] = asdict(step.memory) | asdict(step.decision)
        said = {"cluster": self.cluster.id, "looked": now, "engines": notes}
        draft = _notice(self._settings).with_suffix(".draft")
        draft.write_text(json.dumps(said, default=datetime.isoformat, indent=2), "utf-8")
        draft.replace(_notice(self._settings))

    def close(self, now: datetime) -> None:
        """The cluster ends: so does every sleep."""
        with suppress(LedgerError):  # the next meter does it
            self._end(self.cluster.id, now)
            _notice(self._settings).unlink(missing_ok=True)

    def _end(self, cluster: str, now: datetime) -> None:
        for model, memory in self._memories.items():
            if memory.asleep is not None:
                detail = saved(memory, now, "its cluster ended")
                self._seal(cluster, now, "wake", model, detail)

    def _seal(
        self, cluster: str, now: datetime, verb: str, model: str, detail: Mapping[str, Any]
    ) -> None:
        seal_stop(self._ledger, now, verb, f"engine {model}", {**detail, "cluster": cluster})
        print(f"engine {model}: {verb}: {detail['reason']}", flush=True)

    def _engines(self, held: Mapping[str, int]) -> list[Engine]:
        found = []
        for name, model in self._settings.models.items():
            asked = [
                endpoint
                for endpoint in self._settings.endpoints.values()
                if any(name == each for each, _ in self._settings.ladder(endpoint))
            ]
            if model.engine == "openai" or not asked:
                continue
            engine = Engine(
                model=name,
                held=name in held,
                nusd_per_hour=held.get(name, 0),
                last=self._last.get(name),
                floor=max(endpoint.floor for endpoint in asked),
                idle_after_s=max(endpoint.idle_after_s for endpoint in asked),
                standby=model.scaling.standby,
            )
            found.append(engine)
        return found

    def _ask(self, now: datetime) -> None:
        """The newest request of every model."""
        longest = max((engine.idle_after_s for engine in self._engines({})), default=0.0)
        since = (self._looked or now - timedelta(seconds=longest)) - _SETTLED
        query = (
            select(CHARGES.c.model, func.max(CHARGES.c.created_at))
            .join(REQUESTS)
            .where(CHARGES.c.model.is_not(None), REQUESTS.c.created_at > since)
            .group_by(CHARGES.c.model)
        )
        with self._ledger.read() as connection:
            self._last |= {model: moment for model, moment in connection.execute(query)}
        self._looked = now


def worth(nodes: Iterable[Node], settings: Settings) -> dict[str, int]:
    """Nano-dollars an hour of what each model holds; a model that holds nothing is not there."""
    found: dict[str, float] = {}
    for node in nodes:
        pool = settings.pools.get(node.pool)
        for use in node.uses if node.alive else ():
            if use.kind == "model":
                price = min(1.0, node.share(use)) * pool.nusd_per_hour if pool else 0.0
                found[use.name] = found.get(use.name, 0.0) + price
    return {model: int(nusd) for model, nusd in found.items()}


@dataclass(frozen=True, slots=True)
class Known:
    """An engine as the node meter saw it last."""

    model: str
    nusd_per_hour: int
    since: datetime
    """When it was first seen awake."""
    decision: Decision


def known(settings: Settings, cluster: local.Cluster) -> list[Known]:
    """The engines of this cluster and what is announced of them."""
    said = _read(settings)
    if said["cluster"] != cluster.id:
        return []
    found = []
    for model, plain in said["engines"].items():
        at = plain["stops_at"]
        decision = Decision(plain["act"], plain["reason"], at and datetime.fromisoformat(at))
        memory = _memory(plain)
        found.append(Known(model, memory.nusd_per_hour, memory.since, decision))
    return found


def _memory(plain: Mapping[str, Any]) -> Memory:
    moments = {name: plain[name] for name in ("since", "announced", "asleep")}
    return Memory(
        nusd_per_hour=int(plain["nusd_per_hour"]),
        **{name: at and datetime.fromisoformat(at) for name, at in moments.items()},
    )


def _notice(settings: Settings) -> Path:
    return settings.home / "run" / "engines.json"


def _read(settings: Settings) -> dict[str, Any]:
    """What was noted last; nothing where that cannot be read."""
    try:
        said = json.loads(_notice(settings).read_text("utf-8"))
        for plain in said["engines"].values():
            _memory(plain)
        return {key: said[key] for key in ("cluster", "looked", "engines")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"cluster": "", "looked": None, "engines": {}}
