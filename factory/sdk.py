"""The factory from Python: what the command line does, as methods.

    from factory import Factory

    factory = Factory()                       # or Factory("factory.yaml")
    factory.up()
    factory.client("helpdesk").chat.completions.create(model="helpdesk", messages=[...])
    factory.costs().saving_nusd
    factory.down()

Thin over the rooms of the library; every error is one of theirs and says what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from factory import config as configuration
from factory.catalog import pull as weights
from factory.catalog.errors import CatalogError
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings

if TYPE_CHECKING:
    from datetime import datetime

    from openai import OpenAI

    from factory.cluster.jobs import Job, Jobs
    from factory.cluster.local import Cluster
    from factory.cluster.placement import Placement, Work
    from factory.cluster.queue.store import QueuedJob
    from factory.cluster.serving import Serving, Status
    from factory.cluster.spot.zones import ZoneState
    from factory.cluster.tco.comparison import Comparison as Ownership
    from factory.cluster.tco.comparison import Plan
    from factory.evaluation.compare import Comparison
    from factory.evaluation.harness import Judged
    from factory.evaluation.results import Results
    from factory.ledger.budgets import Standing
    from factory.ledger.export import Written
    from factory.ledger.focus import Period
    from factory.ledger.keys import ApiKey
    from factory.ledger.nodes import Usage
    from factory.ledger.records import Promotion
    from factory.ledger.report import CostsReport, Explanation
    from factory.ledger.store import Ledger
    from factory.registry.gate import GateDecision
    from factory.registry.versions import Registry, Version


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Factory:
    """One home, one configuration. Use it as a context manager, or `close` it at the end."""

    def __init__(
        self,
        config: Path | str | Settings | None = None,
        *,
        progress: Callable[[str], None] = _say,
    ) -> None:
        """`config` is a file, ready settings, or None for what `factory.config.load` finds.

        Processes that the factory starts read the file; settings made in Python do not reach
        them, except for `home`. Raises `ConfigError`.
        """
        if isinstance(config, Settings):
            self.settings, self._file = config, None
        else:
            self._file = configuration.find(None if config is None else Path(config))
            self.settings = configuration.load(self._file)
        self._progress = progress
        self._clients: dict[str, OpenAI] = {}

    def __repr__(self) -> str:
        source = "the packaged default" if self._file is None else str(self._file)
        return f"Factory({source!r}, home={str(self.settings.home)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the ledger and the HTTP clients. What was served goes on."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        if "ledger" in self.__dict__:
            self.ledger.close()
            del self.__dict__["ledger"]

    @property
    def objects(self) -> ObjectStore:
        """Models, data sets, adapters, suites and results."""
        return ObjectStore(self.settings.objects)

    @cached_property
    def ledger(self) -> Ledger:
        """Requests, charges, keys and promotions."""
        from factory.ledger.store import open_ledger

        return open_ledger(self.settings.database_url)

    @property
    def registry(self) -> Registry:
        """Versions of adapters and who is champion."""
        from factory.registry.versions import Registry

        return Registry(self.settings, self.ledger)

    def pull(self, model: str, *, refresh: bool = False) -> Object:
        """Bring a model's weights into the object store. Raises `CatalogError`."""
        return weights.pull(self.settings, model, self.objects, self._progress, refresh=refresh)

    def up(
        self,
        *,
        cpus: int | None = None,
        autoscale: Path | str | None = None,
        ray_port: int | None = None,
    ) -> Serving:
        """Pull what is missing, start the cluster, serve the gateway. Raises `ClusterError`.

        `autoscale` is a cluster configuration for Ray's autoscaler, `ray_port` where nodes join.
        """
        from factory.cluster import serving

        return serving.up(
            self.settings,
            config=self._file,
            cpus=cpus,
            autoscaling=None if autoscale is None else Path(autoscale),
            port=ray_port,
            progress=self._progress,
        )

    def start(self, *, cpus: int | None = None) -> Cluster:
        """Start the cluster alone, for jobs; `deploy` serves on it. Raises `ClusterError`."""
        from factory.cluster import local
        from factory.cluster.queue import submission

        cluster = local.start(self.settings, config=self._file, cpus=cpus, progress=self._progress)
        submission.resume(self.settings, self._file)
        return cluster

    def deploy(self) -> Serving:
        """Serve on the running cluster, or roll over to the champion of now.

        Raises `ClusterError`; what was served stays.
        """
        from factory.cluster import serving

        return serving.deploy(self.settings, config=self._file, progress=self._progress)

    def down(self) -> bool:
        """Stop gateway and cluster; False when nothing ran."""
        from factory.cluster import serving

        return serving.down(self.settings)

    def status(self) -> Status:
        """What runs under this home."""
        from factory.cluster import serving

        return serving.status(self.settings)

    @property
    def jobs(self) -> Jobs:
        """Jobs of the running cluster. Raises `ClusterError` when none runs."""
        from factory.cluster.jobs import Jobs
        from factory.cluster.local import require

        return Jobs(self.settings, require(self.settings), self._file)

    def submit(self, pipeline: str, *, working_dir: Path | str = ".", **args: Any) -> str:
        """Run `pipelines.PIPELINE` as a job and return its id.

        Keywords become options: `max_steps=5` is `--max-steps 5`, True is the bare option, a
        list repeats it, None and False leave it out.
        """
        module = pipeline if "." in pipeline else f"pipelines.{pipeline}"
        return self.jobs.submit(module, options(args), working_dir=Path(working_dir))

    def enqueue(
        self,
        pipeline: str,
        *,
        asks: Mapping[str, Any] | None = None,
        working_dir: Path | str = ".",
        **args: Any,
    ) -> QueuedJob:
        """Queue `pipelines.PIPELINE`; `asks` are fields of `JobSpec`, keywords its options.

        `factory.enqueue("finetune", asks={"team": "research", "cpus": 2}, max_steps=5)` starts
        when quota, budget, window and room allow it. Raises `ClusterError`.
        """
        from factory.cluster.queue import submission
        from factory.cluster.queue.spec import made, usual_cpus

        module = pipeline if "." in pipeline else f"pipelines.{pipeline}"
        usual = {"team": submission.default_team(self.settings), "cpus": usual_cpus(module)}
        spec = made(**usual | dict(asks or {}) | {"module": module, "args": tuple(options(args))})
        return submission.submit(
            self.settings, self.ledger, spec, working_dir=Path(working_dir), config=self._file
        )

    def follow(self, job: str, *, output: Callable[[str], object] | None = None) -> QueuedJob:
        """Follow a queued job until it has succeeded. Raises `JobError` when it did not."""
        from factory.cluster.queue import submission

        done = submission.follow(
            self.settings, self.ledger, job, output=output, say=self._progress, config=self._file
        )
        return submission.succeeded(done)

    def wait(self, job: str, *, output: Callable[[str], object] | None = None) -> Job:
        """Wait until a job has succeeded. Raises `JobError` when it did not."""
        return self.jobs.wait(job, output=output)

    def evaluate(
        self,
        suite: str | Path,
        model: str,
        *,
        adapter: str | Path | None = None,
        cases: int | None = None,
        seed: int = 0,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Judged:
        """Judge a model, or an adapter on it, by a suite, in this process.

        `suite` and `adapter` are names in the object store or paths; `cases` takes a seeded
        sample. Results that are saved already are found again.
        """
        from factory.evaluation.harness import judge
        from factory.evaluation.suite import read
        from factory.evaluation.transformers_answerer import TransformersAnswerer

        questions = read(self._folder("suites", suite))
        if cases is not None:
            questions = questions.sample(cases, seed)
        entry = self.settings.models.get(model)
        answerer = TransformersAnswerer(
            self._weights(model).path,
            None if adapter is None else self._folder("adapters", adapter),
            max_model_len=entry.max_model_len if entry else None,
        )
        price = entry.price if entry else None
        return judge(questions, answerer, self.objects, price=price, progress=progress)

    def results(self, name: str) -> Results:
        """Saved results by their name in the object store. Raises `CatalogError`."""
        from factory.evaluation.results import KIND, load

        found = self.objects.find(KIND, name)
        if found is None:
            known = ", ".join(sorted({item.name for item in self.objects.list(KIND)})) or "none"
            raise CatalogError(f"there are no results '{name}'; there are {known}")
        return load(found)

    def compare(self, base: str | Results, candidate: str | Results) -> Comparison:
        """Candidate against base on the same cases, with a 95 % interval."""
        from factory.evaluation.compare import compare

        pair = [self.results(item) if isinstance(item, str) else item for item in (base, candidate)]
        return compare(*pair)

    def champion(self, name: str) -> Version | None:
        """The version of a registered model that is served."""
        return self.registry.champion(name)

    def promote(self, name: str, version: int) -> GateDecision:
        """Ask the gate; the version becomes champion only if it passes. `deploy` serves it."""
        return self.registry.promote(name, version)

    def rollback(self, name: str) -> int:
        """Make the previous champion champion again; returns its version. `deploy` serves it."""
        return self.registry.rollback(name)

    def promotions(self, name: str) -> list[Promotion]:
        """Every promotion decision about a registered model, oldest first."""
        from factory.ledger.promotions import history

        return history(self.ledger, name)

    def costs(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        human_usd_per_hour: int = 45,
    ) -> CostsReport:
        """What the traffic cost, per success too, and what it would have cost at the top tier."""
        return self.ledger.costs(since, until, human_usd_per_hour * configuration.NANO)

    def usage(self, since: datetime | None = None, until: datetime | None = None) -> Usage:
        """Where the node-hours went: workload, idle and overhead, by pool, team, model and job."""
        from factory.ledger.nodes import usage

        return usage(self.ledger, since, until)

    def zones(self) -> list[ZoneState]:
        """What was seen of spot zones: who has capacity, since when, how often, for what price."""
        from factory.cluster.spot.zones import LONGEST, states
        from factory.ledger.keys import now
        from factory.ledger.zones import observations

        moment = now()
        spot = [name for name, pool in self.settings.pools.items() if pool.market == "spot"]
        since = moment - LONGEST
        looks = [each for name in spot for each in observations(self.ledger, name, since)]
        return states(looks, moment)

    def place(self, work: Work) -> Placement:
        """Where `work` would run now, with every option. Raises `PlacementError`."""
        from factory.cluster.capacity import Capacity
        from factory.cluster.placement import place
        from factory.cluster.spot.jobs import SpotJobs
        from factory.ledger.keys import now
        from factory.ledger.zones import prices

        found, moment = Capacity.now(self.settings), now()
        return place(
            work,
            self.settings.pools,
            now=moment,
            free=found.free,
            machine=found.sizes,
            prices=prices(self.ledger, moment),
            spot=SpotJobs(self.settings, self.ledger).estimate(work, moment),
        )

    def tco(self, plan: Plan | None = None) -> Ownership:
        """Own machines, a cloud and both for `plan`, at the prices of the configured pools."""
        from factory.cluster.tco.comparison import Plan, compare
        from factory.cluster.tco.load import priced

        return compare(priced(plan or Plan(), self.settings.pools))

    def budgets(self) -> list[Standing]:
        """Every configured budget and how it stands now."""
        from factory.ledger.budgets import status
        from factory.ledger.keys import now

        return status(self.ledger, self.settings, now())

    def explain(self, request_id: str) -> Explanation:
        """Why a request was answered as it was. Raises `LedgerError` when it is unknown."""
        from factory.ledger.nodes import usage_of
        from factory.ledger.outcomes import latest
        from factory.ledger.report import explain

        found = self.ledger.settled(request_id)
        outcome = latest(self.ledger, request_id)
        return explain(*found, outcome, usage_of(self.ledger, found[1]))

    def export_costs(
        self,
        path: Path | str,
        since: datetime | None = None,
        until: datetime | None = None,
        period: Period = "hour",
    ) -> Written:
        """Costs in FOCUS columns, as CSV or Parquet by the file's name. Raises `LedgerError`."""
        from factory.ledger.export import export

        return export(self.ledger, self.settings, Path(path), since, until, period)

    def create_key(
        self, team: str, endpoints: Sequence[str] = ("*",), **scope: Any
    ) -> tuple[str, ApiKey]:
        """A new API key for a team: the secret, shown only now, and its record.

        `scope` takes `roles`, `budget` and `limits`; see `factory.ledger.keys.create_key`.
        """
        from factory.ledger.keys import create_key

        return create_key(self.ledger, self.settings, team, endpoints, **scope)

    def client(self, endpoint: str, api_key: str | None = None) -> OpenAI:
        """An OpenAI client of the running gateway; pass `model=endpoint` in its calls.

        Without `api_key`, a key for this endpoint is made once and kept in memory.
        Raises `ConfigError` for an unknown endpoint, `ClusterError` when nothing is served.
        """
        from openai import OpenAI

        from factory.cluster import serving

        if endpoint not in self.settings.endpoints:
            known = ", ".join(sorted(self.settings.endpoints))
            raise configuration.ConfigError(f"there is no endpoint '{endpoint}'; there are {known}")
        root = serving.serving(self.settings).url.rstrip("/").removesuffix("/v1")
        if api_key is not None:
            return OpenAI(base_url=f"{root}/v1", api_key=api_key)
        if endpoint not in self._clients:
            secret, _ = self.create_key(self.settings.endpoints[endpoint].team, [endpoint])
            self._clients[endpoint] = OpenAI(base_url=f"{root}/v1", api_key=secret)
        return self._clients[endpoint]

    def _weights(self, model: str) -> Object:
        """A model's weights: pulled, or the champion that its catalog entry names."""
        entry = self.settings.models.get(model)
        if entry is None or not isinstance(entry.source, configuration.RegistrySource):
            return self.pull(model)
        champion = self.champion(entry.source.name)
        if champion is None:
            raise CatalogError(
                f"model '{model}' has no weights yet: no version of '{entry.source.name}' is "
                f"promoted; `factory registry promote {entry.source.name} VERSION` does that"
            )
        return self.registry.weights(champion.name, champion.version)

    def _folder(self, kind: str, given: str | Path) -> Path:
        if Path(given).exists():
            return Path(given)
        found = self.objects.find(kind, str(given)) if "/" not in str(given) else None
        if found is None:
            known = ", ".join(sorted({item.name for item in self.objects.list(kind)})) or "none"
            raise CatalogError(
                f"'{given}' is neither a path nor among the stored {kind}; there are {known}"
            )
        return found.path


def options(values: dict[str, Any]) -> list[str]:
    """Keyword arguments as command-line options."""
    found: list[str] = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is True:
                found.append(option)
            elif item is not None and item is not False:
                found += [option, str(item)]
    return found
