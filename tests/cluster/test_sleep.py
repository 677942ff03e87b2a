"""Engines that fall asleep: what is told before, what is sealed, and what a sleep has saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.cluster import local
from factory.cluster.idle import shutdown
from factory.cluster.idle.leftovers import engines
from factory.cluster.idle.sleep import (
    GRACE,
    LOOK_S,
    Engine,
    Memory,
    Sleepers,
    decide,
    known,
    worth,
)
from factory.cluster.nodehours import Node, Use
from factory.config import Idle, Settings, parse
from factory.ledger.audit import events
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.store import Ledger, open_ledger

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
POLICY = Idle(announce_s=120)
HOUR = 600_000_000
"""Nano-dollars an hour of the engine below."""
CLUSTER = local.Cluster("one", 1, NOW.timestamp(), "127.0.0.1:1", "http://127.0.0.1:2", "/tmp", "")


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def engine(**changes: object) -> Engine:
    up = Engine(model="small", held=True, nusd_per_hour=HOUR, idle_after_s=600)
    return replace(up, **changes)  # type: ignore[arg-type]


AWAKE = Memory(since=ago(5000), nusd_per_hour=HOUR)
ASLEEP = replace(AWAKE, asleep=ago(1800))
GONE = {"held": False, "nusd_per_hour": 0}


@pytest.mark.parametrize(
    ("changes", "before", "act", "verb", "words"),
    [
        ({}, None, "keep", None, "it was put up"),
        ({"last": ago(30)}, AWAKE, "keep", None, "used 30 s ago"),
        ({"last": ago(479)}, AWAKE, "keep", None, "used 7 min ago"),
        ({"last": ago(480)}, AWAKE, "announce", "announce", "no request for 8 min"),
        ({"last": ago(540)}, replace(AWAKE, announced=ago(60)), "announce", None, "no request"),
        # It was asked since it was told, or the clock was set back.
        ({"last": ago(500)}, replace(AWAKE, announced=ago(501)), "announce", "announce", "no req"),
        ({"last": ago(500)}, replace(AWAKE, announced=ago(-9)), "announce", "announce", "no req"),
        ({"last": ago(-500)}, AWAKE, "keep", None, "used 0 s ago"),
        # A short patience is announced in its second half.
        ({"idle_after_s": 60.0, "last": ago(29)}, AWAKE, "keep", None, "used"),
        ({"idle_after_s": 60.0, "last": ago(30)}, AWAKE, "announce", "announce", "no request"),
        # Never asked: it counts from when it was up.
        ({}, AWAKE, "announce", "announce", "no request for 1 h 23 min"),
        ({}, Memory(since=ago(9)), "keep", None, "used 9 s ago"),
        ({"floor": 1}, AWAKE, "keep", None, "1 replica stays awake"),
        ({"standby": True}, AWAKE, "keep", None, "standby keeps its replica"),
        # It is gone: asleep, or not by its own.
        ({**GONE, "last": ago(605)}, AWAKE, "stop", "stop", "no request for 10 min"),
        ({**GONE, "last": ago(590)}, AWAKE, "stop", "stop", "no request for 9 min"),
        ({**GONE, "last": ago(300)}, AWAKE, "keep", None, "not because it was idle"),
        ({**GONE, "floor": 1}, AWAKE, "keep", None, "not because it was idle"),
        (GONE, None, "keep", None, "not up"),
        (GONE, ASLEEP, "stop", None, "asleep for 30 min, which saved 0.3"),
        ({}, ASLEEP, "keep", "wake", "it was asked for"),
    ],
)
def test_decisions(
    changes: dict[str, object], before: Memory | None, act: str, verb: str | None, words: str
) -> None:
    step = decide(engine(**changes), before, POLICY, NOW)
    assert (step.decision.act, step.verb) == (act, verb)
    assert words in step.decision.reason
    if verb == "announce":
        assert step.decision.stops_at is not None
        assert step.decision.stops_at >= NOW
        assert decide(engine(**changes), step.memory, POLICY, NOW).verb is None  # told once
    if verb == "stop":
        assert step.detail["saves_nusd_per_hour"] == HOUR
        assert step.memory is not None
        assert step.memory.asleep == NOW
    if verb == "wake":
        assert step.detail["saved_nusd"] == HOUR // 2
        assert step.memory == Memory(since=NOW, nusd_per_hour=HOUR)


@given(
    st.lists(st.tuples(st.floats(0, 900), st.booleans(), st.booleans()), max_size=60),
    st.sampled_from([30.0, 60.0, 600.0]),
)
def test_every_sleep_was_announced_and_is_counted_once(
    looks: list[tuple[float, bool, bool]], after: float
) -> None:
    """Looks at any moment, with or without a request; the engine sleeps when Serve lets it."""
    now, memory, last = NOW, None, NOW
    asleep_since, slept, counted, told = None, 0.0, 0, False
    for pause, asked, goes in [*looks, (LOOK_S, True, False)]:
        steps = max(1, int(pause // LOOK_S))
        for number in range(steps):
            now += timedelta(seconds=LOOK_S)
            now_asked = asked and number == steps - 1
            last = now if now_asked else last
            due = asleep_since is None and (now - last).total_seconds() >= after
            if due and goes and memory is not None and memory.announced:
                asleep_since = now
            held = asleep_since is None or now_asked
            one = engine(idle_after_s=after, last=last, held=held)
            step = decide(one, memory, POLICY, now)
            memory = step.memory
            told = told or step.verb == "announce"
            if step.verb == "stop":
                assert told
                told = False
            if held and asleep_since is not None:
                slept += (now - asleep_since).total_seconds()
                asleep_since = None
                assert step.verb == "wake"
                counted += step.detail["saved_nusd"]
    assert counted == pytest.approx(slept * HOUR / 3600, abs=len(looks) + 1)


MODEL = {
    "source": {"path": "."},
    "engine": "vllm",
    "price": {"input_usd_per_mtok": 0.02, "output_usd_per_mtok": 0.04},
}
CONFIG = {
    "teams": {"support": {}},
    "models": {"small": MODEL | {"tier": 1}, "large": MODEL | {"tier": 2}},
    "endpoints": {
        "desk": {"team": "support", "class": "production", "tiers": [2]},
        "night": {"team": "support", "class": "batch", "tiers": [1]},
        "lab": {"team": "support", "class": "internal", "tiers": [1]},
    },
    "pools": {"rented": {"usd_per_hour": 1.2, "provider": "aws", "max_nodes": 1}},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "run").mkdir()
    return parse(json.dumps(CONFIG), "test.yaml", tmp_path, {"FACTORY_HOME": str(tmp_path)})


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = open_ledger(settings.database_url)
    yield ledger
    ledger.close()


def nodes(*models: str) -> list[Node]:
    """A machine of two CPUs, half of it for each model."""
    uses = tuple(Use("model", model, cpus=1) for model in models)
    return [Node("n", "m", "rented", started=ago(9999), cpus=2, uses=uses)]


def ask(ledger: Ledger, model: str, when: datetime) -> None:
    this = {
        "request_id": f"{model}-{when.timestamp()}",
        "created_at": when,
        "team": "support",
        "endpoint": "night",
        "tier": 1,
        "model": model,
        "cost_nusd": 1,
    }
    request = RequestRecord(**this, status="ok", http_status=200)  # type: ignore[arg-type]
    charge = ChargeRecord(**this, charge_id="c" + str(when), seq=0, kind="generation")  # type: ignore[arg-type]
    ledger.record(request, [charge])


def test_what_a_model_holds_is_priced(settings: Settings) -> None:
    assert worth(nodes("small", "large"), settings) == {"small": HOUR, "large": HOUR}
    assert worth([replace(nodes("small")[0], alive=False)], settings) == {}


def test_a_sleep_from_its_announcement_to_the_saving_in_the_ledger(
    settings: Settings, ledger: Ledger
) -> None:
    sleepers = Sleepers(settings, ledger, CLUSTER)
    assert sleepers.any
    sleepers.look(nodes("small", "large"), NOW)
    ask(ledger, "small", NOW + timedelta(seconds=100))
    for second in (200, 390, 405, 720):
        holds = ("large",) if second == 720 else ("small", "large")
        sleepers.look(nodes(*holds), NOW + timedelta(seconds=second))
    done = [
        (event.action, event.subject)
        for event in events(ledger)
        if event.action.startswith("idle.")
    ]
    assert done == [("idle.announce", "engine small"), ("idle.stop", "engine small")]
    listed = {each.thing.id: each for each in engines(settings, CLUSTER)}
    assert listed["small"].decision.act == "stop"
    assert listed["large"].decision.reason == "1 replica stays awake"
    assert "saved_usd" not in shutdown.stops(ledger)[0]

    # Another meter goes on where this one was, and the next request wakes the engine.
    ask(ledger, "small", NOW + timedelta(seconds=4310))
    again = Sleepers(settings, ledger, CLUSTER)
    again.look(nodes("small", "large"), NOW + timedelta(seconds=4320))
    (stop,) = shutdown.stops(ledger)
    assert (stop["what"], stop["cluster"]) == ("engine small", "one")
    assert stop["saves_usd_per_hour"] == "0.600000000"
    assert stop["saved_usd"] == "0.600000000"
    assert engines(settings, CLUSTER)[0].decision.reason == "it was asked for"


@pytest.mark.parametrize("killed", [False, True])
def test_a_sleep_ends_with_its_cluster(settings: Settings, ledger: Ledger, killed: bool) -> None:
    sleepers = Sleepers(settings, ledger, CLUSTER)
    sleepers.look(nodes("small"), NOW)
    for second in (700, 4300):
        sleepers.look(nodes(), NOW + timedelta(seconds=second))
    if killed:
        Sleepers(settings, ledger, replace(CLUSTER, id="two")).look(nodes(), ago(-9e6))
    else:
        sleepers.close(NOW + timedelta(seconds=4300))
        assert known(settings, CLUSTER) == []
    (stop,) = shutdown.stops(ledger)
    assert stop["saved_usd"] == "0.600000000"
    assert [event.detail["reason"] for event in events(ledger)][-1] == "its cluster ended"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"engines": {"small": {}}}', '{"cluster": 1}'])
def test_what_was_noted_and_cannot_be_read_is_forgotten(
    settings: Settings, ledger: Ledger, text: str
) -> None:
    (settings.home / "run" / "engines.json").write_text(text)
    assert known(settings, CLUSTER) == []
    Sleepers(settings, ledger, CLUSTER).look(nodes("small"), NOW)
    assert [each.model for each in known(settings, CLUSTER)] == ["small"]


def test_looks_are_close_enough_to_be_told_in_time() -> None:
    assert timedelta(seconds=LOOK_S) < GRACE
