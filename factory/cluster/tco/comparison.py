"""Total cost of ownership: own machines, a cloud, or both, for one load and the same months.

    plan = Plan(load=Load(steady_nodes=2, peak_nodes=6, peak_hours_per_month=120))
    found = compare(plan)
    found.cheapest, found.break_even_utilization, found.break_even_month

Everything is in US dollars a month, averaged over `months`; capital is written off evenly and what
is not written off at the end counts as residual value. `tco_load` makes the load from the ledger's
real node-hours. Every default has its date and source in `SOURCES`, and can be changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from pydantic import Field, model_validator

from factory.config import HOURS_PER_MONTH
from factory.config.section import Section


class Load(Section):
    """How many nodes the work needs: some all the time, more during peak hours."""

    steady_nodes: float = Field(default=1, ge=0)
    """Nodes that are busy all the time, on average."""
    peak_nodes: float = Field(default=2, gt=0)
    """Nodes that are busy in peak hours."""
    peak_hours_per_month: float = Field(default=160, ge=0, le=HOURS_PER_MONTH)
    """Peak hours in a month of 730 hours."""
    egress_gb_per_month: float = Field(default=200, ge=0)
    """Data that leaves the cloud for people or for home."""

    @model_validator(mode="after")
    def _peak(self) -> Load:
        if self.peak_nodes < self.steady_nodes:
            raise ValueError("peak_nodes must be at least steady_nodes")
        return self

    @property
    def node_hours(self) -> float:
        """Busy node-hours a month."""
        return self.above(0)

    def above(self, nodes: float) -> float:
        """Busy node-hours a month beyond `nodes` nodes."""
        rest = HOURS_PER_MONTH - self.peak_hours_per_month
        steady = max(0.0, self.steady_nodes - nodes) * rest
        return steady + max(0.0, self.peak_nodes - nodes) * self.peak_hours_per_month


class Own(Section):
    """A node of one's own, and what keeps it running."""

    capex_usd: float = Field(default=9000, gt=0)
    """Purchase price of a node."""
    amortize_months: int = Field(default=36, ge=1)
    """Months of use."""
    power_w: float = Field(default=500, gt=0)
    """Draw of a busy node."""
    idle_power_w: float = Field(default=120, ge=0)
    """Draw of an idle node."""
    usd_per_kwh: float = Field(default=0.15, ge=0)
    """Price of electricity."""
    pue: float = Field(default=1.5, ge=1)
    """Facility power over machine power."""
    space_usd_per_node_month: float = Field(default=60, ge=0)
    """Rack space of a node."""
    network_usd_per_month: float = Field(default=200, ge=0)
    """Line and transit."""
    people_hours_per_month: float = Field(default=10, ge=0)
    """Hours of care for all nodes."""
    people_hours_per_node_month: float = Field(default=1, ge=0)
    """Further hours for each node."""
    repairs_per_year: float = Field(default=0.05, ge=0, le=1)
    """Yearly repairs and parts, as a share of the purchase price."""
    spare: float = Field(default=0.15, ge=0, le=2)
    """Nodes beyond the peak, as a share of it, for failures and growth."""


class Cloud(Section):
    """A rented node, and what renting takes."""

    ondemand_usd_per_hour: float = Field(default=1.006, gt=0)
    """An on-demand hour."""
    spot_usd_per_hour: float = Field(default=0.42, gt=0)
    """A spot hour."""
    spot_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the busy hours that can run on spot."""
    spot_waste: float = Field(default=0.08, ge=0)
    """Hours lost to restarts, as a share of the spot hours."""
    idle_share: float = Field(default=0.15, ge=0)
    """Rented hours without work (starting, waiting to be released), as a share of the busy ones."""
    egress_usd_per_gb: float = Field(default=0.09, ge=0)
    """Data that leaves the cloud."""
    storage_usd_per_month: float = Field(default=100, ge=0)
    """Disks and objects."""
    people_hours_per_month: float = Field(default=8, ge=0)
    """Hours for accounts, images, quotas, bills."""

    @property
    def usd_per_busy_hour(self) -> float:
        """An hour of work: spot and on-demand mixed, restarts and idle tails counted."""
        spot = self.spot_share * self.spot_usd_per_hour * (1 + self.spot_waste)
        ondemand = (1 - self.spot_share) * self.ondemand_usd_per_hour
        return (spot + ondemand) * (1 + self.idle_share)


class Plan(Section):
    """What is compared."""

    months: int = Field(default=36, ge=1, le=240)
    """Months that are compared."""
    load: Load = Load()
    """How much work there is."""
    own: Own = Own()
    """Own machines."""
    cloud: Cloud = Cloud()
    """Rented machines."""
    usd_per_person_hour: float = Field(default=60, ge=0)
    """An hour of a person."""
    failed_runs: float = Field(default=0.05, ge=0, lt=1)
    """Share of the busy hours that is lost to runs that fail and are repeated."""


SOURCES: dict[str, tuple[str, str]] = {
    "months": ("2026-11", "our choice: the life of a GPU server"),
    "load.steady_nodes": ("2026-11", "our choice; --from-ledger measures it"),
    "load.peak_nodes": ("2026-11", "our choice; --from-ledger measures it"),
    "load.peak_hours_per_month": ("2026-11", "our choice: office hours"),
    "load.egress_gb_per_month": ("2026-11", "our choice"),
    "own.capex_usd": ("2026-11", "our estimate: workstation with one 24 GB data-centre GPU"),
    "own.amortize_months": ("2026-11", "common straight-line life of IT equipment, 3 years"),
    "own.power_w": ("2026-11", "our estimate: 300 W GPU and host under load"),
    "own.idle_power_w": ("2026-11", "our estimate"),
    "own.usd_per_kwh": ("2025", "about the average for businesses in the US and the EU"),
    "own.pue": ("2024", "Uptime Institute's survey: about 1.5 to 1.6"),
    "own.space_usd_per_node_month": ("2026-11", "our estimate: colocation by rack unit"),
    "own.network_usd_per_month": ("2026-11", "our estimate: business line"),
    "own.people_hours_per_month": ("2026-11", "our estimate"),
    "own.people_hours_per_node_month": ("2026-11", "our estimate"),
    "own.repairs_per_year": ("2026-11", "our estimate: extended warranty"),
    "own.spare": ("2026-11", "our choice: one node in seven"),
    "cloud.ondemand_usd_per_hour": ("2025", "AWS list price of g5.xlarge in us-east-1"),
    "cloud.spot_usd_per_hour": ("2025", "our estimate: about 60 % off; look at your region"),
    "cloud.spot_share": ("2026-11", "our choice; batch and tuning can, production cannot"),
    "cloud.spot_waste": ("2026-11", "our estimate; `benchmarks.spot` measures it on traces"),
    "cloud.idle_share": ("2026-11", "our estimate: start and idle shutdown of short jobs"),
    "cloud.egress_usd_per_gb": ("2025", "AWS list price, first 10 TB a month"),
    "cloud.storage_usd_per_month": ("2026-11", "our estimate: 1 TB of disk"),
    "cloud.people_hours_per_month": ("2026-11", "our estimate"),
    "usd_per_person_hour": ("2026-11", "our estimate: an engineer's full cost"),
    "failed_runs": ("2026-11", "our estimate"),
}
"""Date and source of every default, by its key in a plan."""


@dataclass(frozen=True)
class Way:
    """One way to run the load, in US dollars a month."""

    name: str
    own_nodes: int
    parts: dict[str, float]

    @property
    def usd_per_month(self) -> float:
        """All parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Swing:
    """How the break-even moves when one assumption does."""

    assumption: str
    low: float | None
    """Break-even utilization at 30 % less of it; None when one side always wins."""
    high: float | None
    """At 30 % more."""


@dataclass(frozen=True)
class Comparison:
    """All ways."""

    plan: Plan
    ways: tuple[Way, ...]
    utilization: float
    """Busy share of the own nodes that would carry all of the load."""
    break_even_utilization: float | None
    """Busy share of own nodes above which they cost less than the cloud; None when never."""
    break_even_month: int | None
    """First month in which the money paid for own nodes is less than for the cloud; None: never."""
    swings: tuple[Swing, ...]
    """Largest first."""

    @property
    def cheapest(self) -> Way:
        """The way that costs least."""
        return min(self.ways, key=lambda way: way.usd_per_month)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, with the source of every value that is the default."""
        plan = self.plan.model_dump(mode="json")
        return {
            "cheapest": self.cheapest.name,
            "ways": [
                asdict(way) | {"usd_per_month": round(way.usd_per_month, 2)} for way in self.ways
            ],
            "utilization": self.utilization,
            "break_even_utilization": self.break_even_utilization,
            "break_even_month": self.break_even_month,
            "swings": [asdict(swing) for swing in self.swings],
            "plan": plan,
            "defaults": {
                key: {"value": value, "date": date, "source": source}
                for key, value, date, source in assumptions(self.plan)
                if source
            },
        }


def assumptions(plan: Plan) -> list[tuple[str, float, str, str]]:
    """Key, value, date and source of every assumption; no source when it is not the default."""
    standard = dict(_flat(Plan()))
    return [
        (key, value, *(SOURCES[key] if value == standard[key] else ("", "")))
        for key, value in _flat(plan)
    ]


def _flat(plan: Plan) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in plan.model_dump().items():
        if isinstance(value, dict):
            found += [(f"{name}.{key}", part) for key, part in value.items()]
        else:
            found.append((name, value))
    return found


def compare(plan: Plan) -> Comparison:
    """Own machines for all of the load, the cloud for all of it, and the best mix."""
    ways = ways_of(plan)
    own, cloud, _ = ways
    return Comparison(
        plan=plan,
        ways=ways,
        utilization=_work(plan) * plan.load.node_hours / (own.own_nodes * HOURS_PER_MONTH),
        break_even_utilization=break_even(plan),
        break_even_month=_first_month(plan, own, cloud),
        swings=_swings(plan),
    )


def break_even(plan: Plan) -> float | None:
    """Busy share at which as many own nodes as the load needs cost what the cloud would.

    Both are linear in the busy share u of n own nodes: own = fixed + energy · u, cloud = rent · u +
    what renting takes. None when they do not meet between 0 and 1.
    """
    nodes = _own_nodes(plan)
    hours = nodes * HOURS_PER_MONTH
    fixed = sum(_own_parts(plan, nodes, 0.0).values())
    energy = sum(_own_parts(plan, nodes, hours).values()) - fixed
    rent = hours * plan.cloud.usd_per_busy_hour
    # Egress grows with the work; the plan's amount belongs to the plan's hours.
    rent += _egress(plan) * hours / max(1e-9, _work(plan) * plan.load.node_hours)
    standing = _standing(plan)
    if rent <= energy:
        return None
    share = (fixed - standing) / (rent - energy)
    return share if 0 <= share <= 1 else None


def _work(plan: Plan) -> float:
    """Busy hours for one useful hour."""
    return 1 / (1 - plan.failed_runs)


def _peak(plan: Plan) -> int:
    """Whole nodes that are busy at the peak."""
    return ceil(_work(plan) * plan.load.peak_nodes - 1e-9)


def _own_nodes(plan: Plan) -> int:
    """Own nodes that carry all of the load, spares counted."""
    return ceil(_peak(plan) * (1 + plan.own.spare) - 1e-9)


def _egress(plan: Plan) -> float:
    return plan.load.egress_gb_per_month * plan.cloud.egress_usd_per_gb


def _standing(plan: Plan) -> float:
    return (
        plan.cloud.storage_usd_per_month
        + plan.cloud.people_hours_per_month * plan.usd_per_person_hour
    )


def _own_parts(plan: Plan, nodes: int, busy_hours: float) -> dict[str, float]:
    own = plan.own
    idle_hours = max(0.0, nodes * HOURS_PER_MONTH - busy_hours)
    kwh = (busy_hours * own.power_w + idle_hours * own.idle_power_w) / 1000 * own.pue
    people = own.people_hours_per_month + own.people_hours_per_node_month * nodes
    return {
        "capital": nodes * own.capex_usd / own.amortize_months,
        "repairs": nodes * own.capex_usd * own.repairs_per_year / 12,
        "energy": kwh * own.usd_per_kwh,
        "space": nodes * own.space_usd_per_node_month,
        "network": own.network_usd_per_month,
        "people": people * plan.usd_per_person_hour,
    }


def _own_way(plan: Plan, nodes: int) -> Way:
    return Way("onprem", nodes, _own_parts(plan, nodes, _work(plan) * plan.load.node_hours))


def _cloud_way(plan: Plan) -> Way:
    hours = _work(plan) * plan.load.node_hours
    return Way("cloud", 0, _cloud_parts(plan, hours, 1.0))


def _cloud_parts(plan: Plan, hours: float, share: float) -> dict[str, float]:
    return {
        "rent": hours * plan.cloud.usd_per_busy_hour,
        "egress": _egress(plan) * share,
        "storage": plan.cloud.storage_usd_per_month * share,
        "people": plan.cloud.people_hours_per_month * plan.usd_per_person_hour,
    }


def _hybrid_way(plan: Plan, nodes: int) -> Way:
    """`nodes` own nodes without spares, since the cloud stands in; the rest of the load is rented.

    Data of the rented part leaves the cloud in proportion to its hours.
    """
    work = _work(plan)
    beyond = work * plan.load.above(nodes / work)
    total = work * plan.load.node_hours
    parts = _own_parts(plan, nodes, total - beyond)
    for key, usd in _cloud_parts(plan, beyond, beyond / total).items():
        parts[key] = parts.get(key, 0.0) + usd
    return Way("hybrid", nodes, parts)


def _first_month(plan: Plan, own: Way, cloud: Way) -> int | None:
    """Cash: own nodes are bought in month 1, and again when they are written off."""
    running = own.usd_per_month - own.parts["capital"]
    bought = own.own_nodes * plan.own.capex_usd
    for month in range(1, plan.months + 1):
        purchases = ceil(month / plan.own.amortize_months)
        if purchases * bought + month * running < month * cloud.usd_per_month:
            return month
    return None


def _swings(plan: Plan) -> tuple[Swing, ...]:
    """The break-even at 30 % less and more of each assumption about prices."""
    found = []
    for section in ("own", "cloud"):
        part = getattr(plan, section)
        for key, value in part.model_dump().items():
            if not value:
                continue
            ends = []
            for factor in (0.7, 1.3):
                changed = _changed(part, key, value * factor)
                ends.append(break_even(plan.model_copy(update={section: changed})))
            found.append(Swing(f"{section}.{key}", ends[0], ends[1]))
    for key in ("usd_per_person_hour", "failed_runs"):
        value = getattr(plan, key)
        low, high = (break_even(plan.model_copy(update={key: value * f})) for f in (0.7, 1.3))
        found.append(Swing(key, low, high))
    return tuple(sorted(found, key=_width, reverse=True))


def _changed(part: Own | Cloud, key: str, value: float) -> Own | Cloud:
    if key == "amortize_months":
        value = max(1, round(value))
    if key == "pue":
        value = max(1.0, value)
    if key == "spot_share":
        value = min(1.0, value)
    return part.model_copy(update={key: value})


def _width(swing: Swing) -> float:
    if swing.low is None or swing.high is None:
        return float("inf") if swing.low != swing.high else 0.0
    return abs(swing.high - swing.low)


def curves(plan: Plan, shares: Sequence[float]) -> dict[str, list[float]]:
    """Dollars a month by way, for busy shares of the nodes that carry all of the load."""
    base = compare(plan)
    found: dict[str, list[float]] = {way.name: [] for way in base.ways}
    for share in shares:
        factor = share / base.utilization if base.utilization else 0.0
        # Fewer peak hours and less outside them, so that the node-hours are in proportion.
        hours = min(plan.load.peak_hours_per_month * factor, HOURS_PER_MONTH - 1e-6)
        outside = plan.load.node_hours - plan.load.peak_nodes * plan.load.peak_hours_per_month
        steady = outside * factor / (HOURS_PER_MONTH - hours)
        load = plan.load.model_copy(
            update={
                "steady_nodes": min(steady, plan.load.peak_nodes),
                "peak_hours_per_month": hours,
                "egress_gb_per_month": plan.load.egress_gb_per_month * factor,
            }
        )
        for way in ways_of(plan.model_copy(update={"load": load})):
            found[way.name].append(way.usd_per_month)
    return found


def ways_of(plan: Plan) -> tuple[Way, ...]:
    """Own machines for all, the cloud for all, and the mix that costs least."""
    mixes = [_hybrid_way(plan, nodes) for nodes in range(1, _peak(plan) + 1)]
    best = min(mixes, key=lambda way: way.usd_per_month)
    return (_own_way(plan, _own_nodes(plan)), _cloud_way(plan), best)
