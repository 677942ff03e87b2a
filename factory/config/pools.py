"""`pools`: nodes of one kind, what an hour of one costs, and what may run there.

    pool = settings.pools["onprem"]
    pool.nusd_per_hour        # nano-dollars for one node and hour, everything counted
    pool.labels("onprem")     # {"factory/pool": "onprem", "ray.io/market-type": "on-prem"}

Prices and sizes are those of one node. Rented nodes are billed while they are held; own nodes cost
the same whether they work or not, so their hour carries capital, energy, people, space and network.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from factory.config.section import NANO, Name, Section
from factory.config.teams import Usd

HOURS_PER_MONTH = 730
"""Hours in an average month, as the clouds' price lists count it."""

MAX_USD_PER_HOUR = Decimal(500)
"""A dearer hour is taken for a monthly price in the wrong key; no cloud's largest node costs it."""

Market = Literal["onprem", "spot", "ondemand"]
Residency = Literal["restricted", "internal", "public"]
WorkClass = Literal["production", "internal", "batch"]
CLASSES: tuple[WorkClass, ...] = ("production", "internal", "batch")

MARKET_LABEL = "ray.io/market-type"
"""Ray's node label for how a node is paid for: `on-prem`, `spot` or `on-demand`."""
POOL_LABEL = "factory/pool"
"""Our node label: the pool's name."""
REGION_LABEL = "ray.io/availability-region"
ZONE_LABEL = "ray.io/availability-zone"
_RAY_MARKET: dict[Market, str] = {"onprem": "on-prem", "spot": "spot", "ondemand": "on-demand"}

Place = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=63)]
"""A cloud's region or zone, or a room of your own; fits a Ray label."""


class Nodes(Section):
    """What own and rented pools have in common."""

    cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs of a node; null takes what Ray finds on it."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a node; null takes what Ray finds on it."""
    accelerator: str | None = None
    """The GPU's name as Ray labels it, for example `A100`."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of a node; null takes what Ray finds on it."""
    residency: tuple[Residency, ...] = Field(default=("internal", "public"), min_length=1)
    """Sensitivity of the data that may be here."""
    classes: tuple[WorkClass, ...] = Field(default=CLASSES, min_length=1)
    """Workload classes that may run here; leave out `batch` to reserve a pool for production."""
    region: Place | None = None
    """Where the nodes are."""
    zones: tuple[Place, ...] = ()
    """Zones of the region in which nodes can be had."""

    @field_validator("residency", "classes", "zones")
    @classmethod
    def _without_repeats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names an entry twice")
        return value


def _nano(usd: Decimal) -> int:
    """Integer nano-dollars, rounded up so that no part of a price vanishes."""
    return int((usd * NANO).to_integral_value(rounding=ROUND_CEILING))


class OwnPool(Nodes):
    """Machines of your own."""

    capex_usd: Annotated[Usd, Field(gt=0)]
    """Purchase price of a node, with its share of switches and racks."""
    amortize_months: int = Field(ge=1, le=240)
    """Months over which a node is written off."""
    nodes: int = Field(default=1, ge=1)
    """How many there are."""
    power_w: float = Field(gt=0)
    """Average draw of a node in watts."""
    usd_per_kwh: Usd = Decimal("0.15")
    """Price of electricity; average of US and EU businesses in 2025, look at your own bill."""
    pue: float = Field(default=1.5, ge=1)
    """Facility power over machine power; 1.5 is the world's average (Uptime Institute, 2024)."""
    people_hours_per_month: float = Field(default=4, ge=0)
    """Hours that people spend on the whole pool."""
    usd_per_person_hour: Usd = Decimal(60)
    """What such an hour costs."""
    space_usd_per_month: Usd = Decimal(0)
    """Rack space or colocation of the whole pool."""
    network_usd_per_month: Usd = Decimal(0)
    """Lines and transit of the whole pool."""
    startup_s: float = Field(default=0, ge=0)
    """Seconds until a node is there; own nodes are."""
    egress_usd_per_gb: Usd = Decimal(0)
    """What data that leaves the pool costs."""

    @model_validator(mode="before")
    @classmethod
    def _priced(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "capex_usd" not in value:
            raise ValueError(
                "a pool without a price; give capex_usd, amortize_months and power_w for machines "
                "of your own, or provider and usd_per_hour for rented ones"
            )
        return value

    @property
    def market(self) -> Literal["onprem"]:
        """How the node is paid for."""
        return "onprem"

    @property
    def max_nodes(self) -> int:
        """Most nodes the pool can have."""
        return self.nodes

    @property
    def parts_nusd_per_hour(self) -> dict[str, int]:
        """Nano-dollars for one node and hour, by what they pay for. Together `nusd_per_hour`.

        Capital is written off evenly over `amortize_months`; energy is power · PUE · price; people,
        space and network are those of the pool, spread over its nodes. An hour is 1/730 of a month.
        """
        kw = Decimal(str(self.power_w)) / 1000 * Decimal(str(self.pue))
        people = Decimal(str(self.people_hours_per_month)) * self.usd_per_person_hour
        shared = Decimal(HOURS_PER_MONTH * self.nodes)
        return {
            "capital": _nano(self.capex_usd / (self.amortize_months * HOURS_PER_MONTH)),
            "energy": _nano(kw * self.usd_per_kwh),
            "people": _nano(people / shared),
            "space": _nano(self.space_usd_per_month / shared),
            "network": _nano(self.network_usd_per_month / shared),
        }

    @property
    def nusd_per_hour(self) -> int:
        """Nano-dollars for one node and hour; never 0, since capital and energy are not."""
        return sum(self.parts_nusd_per_hour.values())

    def labels(self, name: str, zone: str | None = None) -> dict[str, str]:
        """Ray's labels of a node of this pool."""
        return _labels(self, self.market, name, zone)


class RentedPool(Nodes):
    """Machines of a cloud."""

    provider: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    """Whose machines: `aws`, `gcp`, or another name."""
    instance_type: str | None = None
    """The provider's name for the machine."""
    usd_per_hour: Annotated[Usd, Field(gt=0)] | None = None
    """Price of a node and hour; give either this or `usd_per_month`."""
    usd_per_month: Annotated[Usd, Field(gt=0)] | None = None
    """Price of a node and month (730 hours), for reserved machines."""
    spot_policy: Literal["spot", "on-demand"] = "on-demand"
    """`spot` nodes may be taken away, `on-demand` nodes stay."""
    max_nodes: int = Field(ge=1)
    """Most nodes held at once."""
    startup_s: float = Field(default=180, ge=0)
    """Seconds from asking for a node until it can work."""
    egress_usd_per_gb: Usd = Decimal("0.09")
    """What data that leaves the cloud costs; AWS's first tier of 2026, GCP's is 0.08 to 0.12."""

    @model_validator(mode="after")
    def _one_price(self) -> RentedPool:
        if (self.usd_per_hour is None) == (self.usd_per_month is None):
            raise ValueError(
                "a rented pool needs one price of one node: usd_per_hour or usd_per_month"
            )
        if self.nusd_per_hour > MAX_USD_PER_HOUR * NANO:
            if self.usd_per_hour is not None:
                raise ValueError(
                    f"{self.usd_per_hour} USD for one hour of one node looks like a monthly price; "
                    "use usd_per_month"
                )
            raise ValueError(f"{self.usd_per_month} USD a month is too much for one node")
        return self

    @property
    def market(self) -> Literal["spot", "ondemand"]:
        """How the node is paid for."""
        return "spot" if self.spot_policy == "spot" else "ondemand"

    @property
    def parts_nusd_per_hour(self) -> dict[str, int]:
        """Nano-dollars for one node and hour: all of it is rent."""
        return {"rent": self.nusd_per_hour}

    @property
    def nusd_per_hour(self) -> int:
        """Nano-dollars for one node and hour."""
        if self.usd_per_hour is not None:
            return _nano(self.usd_per_hour)
        assert self.usd_per_month is not None
        return _nano(self.usd_per_month / HOURS_PER_MONTH)

    def labels(self, name: str, zone: str | None = None) -> dict[str, str]:
        """Ray's labels of a node of this pool."""
        return _labels(self, self.market, name, zone)


def _labels(pool: Nodes, market: Market, name: str, zone: str | None) -> dict[str, str]:
    found = {POOL_LABEL: name, MARKET_LABEL: _RAY_MARKET[market]}
    if pool.region is not None:
        found[REGION_LABEL] = pool.region
    if zone is None and len(pool.zones) == 1:
        zone = pool.zones[0]
    if zone is not None:
        found[ZONE_LABEL] = zone
    return found


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        rented = {"provider", "usd_per_hour", "usd_per_month", "spot_policy", "max_nodes"}
        return "rented" if rented & set(value) else "own"
    return "rented" if isinstance(value, RentedPool) else "own"


Pool = Annotated[
    Annotated[OwnPool, Tag("own")] | Annotated[RentedPool, Tag("rented")], Discriminator(_kind)
]


def default_pools() -> dict[Name, OwnPool | RentedPool]:
    """One pool for a configuration that names none: the machine this runs on."""
    machine = OwnPool(
        capex_usd=Decimal(1500),
        amortize_months=48,
        power_w=60,
        people_hours_per_month=1,
        residency=("restricted", "internal", "public"),
    )
    return {"onprem": machine}
