"""A search for better arguments: what is tried, what it costs, when it ends, what was best.

    config = load_as(SearchConfig, Path("tune.yaml"), {"num_samples": 4})
    trials = draw(config)
    decide(spent_nusd=900, budget_nusd=1000, running=2, waiting=0)

Everything here is a function of plain values; `trial.py` and `spending.py` connect it to Ray Tune.
The space has Ray's names (`choice`, `uniform`, `loguniform`, `randint`), the rest Hugging Face's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from factory.config.section import NANO
from factory.training.config import TrainConfig, check
from factory.training.errors import TrainingError

_SAME_FOR_ALL = {
    "model": "losses of different models cannot be compared",
    "num_train_epochs": "trials are compared step by step",
    "max_steps": "trials are compared step by step",
    "max_train_seconds": "trials are compared step by step",
    "save_steps": "it is how often trials report",
    "eval_samples": "all trials must be judged by the same examples",
    "seed": "all trials must be judged by the same examples",
    "num_workers": "a trial is one worker",
    "zero_stage": "a trial is one worker",
    "cpus_per_worker": "a trial's share of a node decides its cost",
    "adapter_name": "a search stores no adapter",
    "checkpoint_url": "trials must not share it",
}
"""Fields that cannot be searched, and why."""


class Distribution(BaseModel):
    """Where one argument is drawn from; exactly one of the four."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """One of these values, each as likely."""
    uniform: tuple[float, float] | None = None
    """A number from `[low, high)`."""
    loguniform: tuple[float, float] | None = None
    """A number from `[low, high)`, its logarithm uniform; `low` above 0."""
    randint: tuple[int, int] | None = None
    """A whole number from `[low, high)`."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, Mapping | Distribution):
            raise ValueError("give a distribution, such as {choice: [8, 16]}")
        if isinstance(value, Mapping) and (odd := set(value) - set(cls.model_fields)):
            known = ", ".join(cls.model_fields)
            raise ValueError(f"unknown distribution '{min(odd, key=str)}'; known are {known}")
        return value

    @model_validator(mode="after")
    def _one(self) -> Distribution:
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of choice, uniform, loguniform and randint")
        kind, given = next(iter(self.model_dump(exclude_unset=True).items()))
        if given is None:
            raise ValueError(f"{kind} is empty; give its values")
        if kind != "choice" and not given[0] < given[1]:
            raise ValueError(f"{kind} needs [low, high] with low below high, not {list(given)}")
        if kind == "loguniform" and given[0] <= 0:
            raise ValueError("loguniform needs a low above 0")
        return self


class SearchConfig(TrainConfig):
    """One search: the arguments all trials share, and the space of those they do not."""

    space: dict[str, Distribution] = Field(min_length=1)
    """Arguments that are searched, such as `learning_rate: {loguniform: [1.0e-4, 1.0e-2]}`."""
    num_samples: int = Field(default=8, ge=1, le=1000)
    """Most trials that are drawn; equal ones are tried once."""
    max_usd: Decimal = Field(default=Decimal("0.05"), gt=0, allow_inf_nan=False)
    """Money after which the search stops, in US dollars."""
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """Trials at a time; none takes as many as the cluster has room for."""
    grace_period: int = Field(default=40, ge=1)
    """Steps before which ASHA stops no trial."""
    reduction_factor: float = Field(default=3, gt=1)
    """ASHA goes on with the best one of so many trials at each rung."""
    search_seed: int = Field(default=7, ge=0, lt=2**32)
    """Decides which trials are drawn."""
    pool: str | None = None
    """Pool whose price counts for nodes without a label; none takes the configuration's first."""
    max_steps: int | None = Field(default=120, ge=1)
    """Optimizer steps of a trial that is not stopped."""
    save_steps: int = Field(default=20, ge=1)
    """Optimizer steps between two reports of the validation loss, and two checkpoints."""
    cpus_per_worker: int | None = Field(default=1, ge=1)
    """CPU cores of a trial."""

    @field_validator("space")
    @classmethod
    def _known(cls, space: dict[str, Distribution]) -> dict[str, Distribution]:
        for name in space:
            if name in _SAME_FOR_ALL:
                raise ValueError(f"{name} cannot be searched: {_SAME_FOR_ALL[name]}")
            if name not in TrainConfig.model_fields:
                known = ", ".join(sorted(set(TrainConfig.model_fields) - set(_SAME_FOR_ALL)))
                raise ValueError(f"{name}: unknown argument; known are {known}")
        return space

    @model_validator(mode="after")
    def _comparable(self) -> SearchConfig:
        if self.max_steps is None or self.max_train_seconds is not None:
            raise ValueError(
                "trials are compared step by step; give max_steps and no max_train_seconds"
            )
        if self.grace_period > self.max_steps:
            raise ValueError(
                f"grace_period {self.grace_period} is over max_steps {self.max_steps}; lower it"
            )
        if self.eval_samples < 1:
            raise ValueError("trials are judged by their validation loss; set eval_samples")
        if self.most_workers > 1 or self.zero_stage:
            raise ValueError("a trial is one worker; set num_workers to 1 and zero_stage to 0")
        if self.budget_nusd < 1:
            raise ValueError("max_usd is less than a nano-dollar; raise it")
        return self

    @property
    def budget_nusd(self) -> int:
        """The budget in nano-dollars, rounded down."""
        return int(self.max_usd * NANO)

    @property
    def shared(self) -> dict[str, Any]:
        """What all trials have in common, as a `TrainConfig`'s plain values."""
        return self.model_dump(mode="json", include=set(TrainConfig.model_fields))


@dataclass(frozen=True, slots=True)
class Trial:
    """One point of the space."""

    number: int
    params: Mapping[str, Any]
    """What was drawn."""
    config: TrainConfig
    """All arguments."""

    @property
    def name(self) -> str:
        """Name of its folder and of its run in MLflow."""
        return f"trial-{self.number:03d}"


def draw(config: SearchConfig) -> tuple[Trial, ...]:
    """The trials of a search, the same for the same seed; equal ones are left out.

    Raises `TrainingError` for a point that no run could start with.
    """
    import numpy
    from ray.tune.search import sample

    random = numpy.random.RandomState(config.search_seed)
    kinds = {
        "choice": lambda given: sample.choice(given),
        "uniform": lambda given: sample.uniform(*given),
        "loguniform": lambda given: sample.loguniform(*given),
        "randint": lambda given: sample.randint(*given),
    }
    domains = {}
    for name, distribution in sorted(config.space.items()):
        kind, given = next(iter(distribution.model_dump(exclude_unset=True).items()))
        domains[name] = kinds[kind](given)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(config.num_samples):
        params = {
            name: _plain(domain.sample(random_state=random)) for name, domain in domains.items()
        }
        found.setdefault(json.dumps(params, sort_keys=True), params)
    return tuple(
        Trial(number, params, check({**config.shared, **params}, f"trial {number} of the space"))
        for number, params in enumerate(found.values())
    )


def _plain(value: Any) -> Any:
    """Numpy's scalars as Python's; floats to five digits, which a person can read and repeat."""
    value = value.item() if hasattr(value, "item") else value
    return float(f"{value:.5g}") if isinstance(value, float) else value


def share(cpus: float, node_cpus: float, gpus: float = 0, node_gpus: float = 0) -> float:
    """The part of a node that a trial holds: of what it holds most of, at most the whole."""
    parts = [cpus / node_cpus if node_cpus else 1.0]
    if gpus:
        parts.append(gpus / node_gpus if node_gpus else 1.0)
    return min(1.0, max(parts))


@dataclass(frozen=True, slots=True)
class Node:
    """A node that trials may be on."""

    pool: str
    cpus: float
    gpus: float


def rate(
    nodes: Sequence[Node], prices: Mapping[str, int], cpus: float, gpus: float = 0
) -> tuple[str, int]:
    """Pool and nano-dollars per hour of what one trial holds, on the dearest of these nodes.

    `prices` are nano-dollars per node and hour, by pool. A trial may be on any node, so the budget
    is kept wherever it is. Raises `TrainingError` for a pool without a price.
    """
    found = []
    for node in nodes:
        if node.pool not in prices:
            raise TrainingError(
                f"a trial in pool '{node.pool}' has no price; known pools are "
                f"{', '.join(sorted(prices))}: add it to factory.yaml or give --pool"
            )
        part = share(cpus, node.cpus, gpus, node.gpus)
        found.append((cost(3600, part, prices[node.pool]), node.pool))
    nusd, pool = max(found)
    return pool, nusd


def cost(seconds: float, part: float, nusd_per_hour: int) -> int:
    """Nano-dollars for a part of a node over `seconds`, rounded up."""
    return math.ceil(max(0.0, seconds) * part * nusd_per_hour / 3600)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a search ends now, and why."""

    stop: bool
    reason: str


def decide(*, spent_nusd: int, budget_nusd: int, running: int, waiting: int) -> Decision:
    """Whether a search ends, from what its trials have cost until now."""
    spent = f"{spent_nusd:,} of {budget_nusd:,} nano-dollars spent"
    if not running and not waiting:
        return Decision(True, f"all trials have ended, {spent}")
    if spent_nusd >= budget_nusd:
        return Decision(
            True,
            f"the budget is spent: {spent}; {running} trials were stopped and {waiting} not begun",
        )
    return Decision(False, f"{spent}, {running} trials running, {waiting} waiting")


Status = Literal["finished", "stopped early", "out of money", "failed", "not begun"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one trial came to."""

    number: int
    params: Mapping[str, Any]
    status: Status
    curve: tuple[tuple[int, float], ...] = ()
    """Steps and validation losses."""
    seconds: float = 0.0
    """How long it held its share of a node, process start and loading included."""
    nusd: int = 0
    reason: str = ""
    """Why it failed."""

    @property
    def steps(self) -> int:
        """Steps up to its last report."""
        return self.curve[-1][0] if self.curve else 0

    @property
    def loss(self) -> float | None:
        """The last validation loss, if it is a number."""
        last = self.curve[-1][1] if self.curve else math.nan
        return last if math.isfinite(last) else None


def status(*, begun: bool, failed: bool, steps: int, max_steps: int, out_of_money: bool) -> Status:
    """What to call the end of a trial."""
    if failed:
        return "failed"
    if steps >= max_steps:
        return "finished"
    if out_of_money:
        return "out of money" if begun else "not begun"
    return "stopped early" if begun else "not begun"


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """The lowest last validation loss among trials that went furthest without failing.

    A trial that was stopped is behind every finished one: its learning rate had not come down.
    Of equals the cheaper. Raises `TrainingError` with a reason when no trial can be chosen.
    """
    able = [item for item in outcomes if item.status != "failed" and item.loss is not None]
    if not able:
        failed = [item for item in outcomes if item.status == "failed"]
        if failed and len(failed) == sum(item.status != "not begun" for item in outcomes):
            raise TrainingError(
                f"all {len(failed)} trials that began have failed; trial {failed[0].number}: "
                f"{failed[0].reason}"
            )
        raise TrainingError(
            "no trial got as far as a validation loss before the search ended; raise max_usd or "
            "lower save_steps"
        )

    def order(item: Outcome) -> tuple[bool, float, int, int]:
        assert item.loss is not None
        return item.status != "finished", item.loss, item.nusd, item.number

    return min(able, key=order)


def table(outcomes: Sequence[Outcome], chosen: int | None = None) -> list[str]:
    """The trials as lines for a person, the best first."""

    def order(item: Outcome) -> tuple[bool, bool, float, int]:
        missing = item.loss is None
        return item.status == "failed", missing, item.loss or 0.0, item.number

    lines = [f"{'trial':>5}  {'loss':>8}  {'steps':>5}  {'seconds':>7}  {'dollars':>10}  status"]
    for item in sorted(outcomes, key=order):
        loss = "-" if item.loss is None else f"{item.loss:.4f}"
        mark = " (best)" if item.number == chosen else ""
        lines.append(
            f"{item.number:>5}  {loss:>8}  {item.steps:>5}  {item.seconds:>7.1f}  "
            f"{item.nusd / NANO:>10.7f}  {item.status}{mark}  {described(item.params)}"
            + (f": {item.reason}" if item.reason else "")
        )
    return lines


def described(params: Mapping[str, Any]) -> str:
    """What was drawn, in one line."""
    return " ".join(
        f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in params.items()
    )
