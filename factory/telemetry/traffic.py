"""Counters and histograms of what one gateway process has answered.

    traffic = Traffic(replica="0")
    traffic.settled(team="support", endpoint="helpdesk", tier=1, model="smollm2-135m", status=200,
                    cache="miss", degraded=False, elapsed_s=0.41, charges=journey.charges)
    traffic.first_token("helpdesk", 1, 0.08)

Labels are names of `factory.yaml`, tiers and statuses, so there are only so many series; a request
that named no endpoint it may use is one of `unknown`. The label `replica` tells gateway processes
apart that listen on the same port: a scrape reaches one of them, and sums go over all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from factory.ledger.records import CacheUse, ChargeKind, ChargeRecord

NONE = "none"
"""Tier or model of a request that none answered."""
UNKNOWN = "unknown"
"""Endpoint of a request that named none it may use."""

BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
"""Upper bounds in seconds: from a hit in the cache to an engine that had to be woken."""

_FREE: frozenset[ChargeKind] = frozenset({"cache", "rule", "shared"})

# A second series for every child, with the time it was made, helps nobody here.
disable_created_metrics()  # type: ignore[no-untyped-call]

Add = Callable[[float], None]


class Traffic:
    """The metrics of one gateway process, in a registry of their own."""

    def __init__(self, replica: str = "0") -> None:
        """`replica` tells gateway processes on one port apart."""
        self.replica = replica
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "factory_requests_total",
            "Settled requests; status is the HTTP status, 499 for a client that left.",
            ("endpoint", "tier", "model", "status", "cache"),
        )
        self._degraded = self._counter(
            "factory_degraded_total",
            "Answers by a lower tier than wanted, since a higher one could not.",
            ("endpoint",),
        )
        self._cost = self._counter(
            "factory_cost_nusd_total",
            "Charged, in nano-dollars (1e-9 USD), by the tier that was tried.",
            ("team", "endpoint", "tier"),
        )
        self._tokens = self._counter(
            "factory_tokens_total",
            "Tokens: prompt and completion by models, saved_prompt and saved_completion by tier 0.",
            ("kind",),
        )
        self._duration = self._histogram(
            "factory_request_duration_seconds",
            "From arrival to settlement of requests that were answered (200).",
        )
        self._first_token = self._histogram(
            "factory_time_to_first_token_seconds",
            "From arrival to the first part of streams that come from a model.",
        )
        self._search = Histogram(
            "factory_vector_search_seconds",
            "Searches in vector stores that were not answered from the cache.",
            ("endpoint", "replica"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._request_of: dict[tuple[str, int | None, str | None, int, CacheUse], Add] = {}
        self._degraded_of: dict[str, Add] = {}
        self._cost_of: dict[tuple[str, str, int | None], Add] = {}
        self._duration_of: dict[tuple[str, int | None], Add] = {}
        self._first_token_of: dict[tuple[str, int | None], Add] = {}
        self._prompt, self._completion, self._saved_prompt, self._saved_completion = (
            self._tokens.labels(kind, replica).inc
            for kind in ("prompt", "completion", "saved_prompt", "saved_completion")
        )

    def _counter(self, name: str, what: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, what, (*labels, "replica"), registry=self.registry)

    def _histogram(self, name: str, what: str) -> Histogram:
        labels = ("endpoint", "tier", "replica")
        return Histogram(name, what, labels, buckets=BUCKETS, registry=self.registry)

    def settled(
        self,
        *,
        team: str,
        endpoint: str,
        tier: int | None,
        model: str | None,
        status: int,
        cache: CacheUse,
        degraded: bool,
        elapsed_s: float,
        charges: Sequence[ChargeRecord],
    ) -> None:
        """Count one request. `endpoint` is empty, `tier` and `model` are None where none was."""
        request = (endpoint, tier, model, status, cache)
        add = self._request_of.get(request)
        if add is None:
            names = (endpoint or UNKNOWN, _tier(tier), model or NONE, str(status), cache)
            add = self._request_of[request] = self._requests.labels(*names, self.replica).inc
        add(1)
        if status == 200:
            self._observe(self._duration, self._duration_of, endpoint, tier, elapsed_s)
        if degraded:
            add = self._degraded_of.get(endpoint)
            if add is None:
                child = self._degraded.labels(endpoint or UNKNOWN, self.replica)
                add = self._degraded_of[endpoint] = child.inc
            add(1)
        for charge in charges:
            self._charged(team, endpoint, charge)

    def first_token(self, endpoint: str, tier: int | None, seconds: float) -> None:
        """Note when a stream's first part came, `seconds` after the request."""
        self._observe(self._first_token, self._first_token_of, endpoint, tier, seconds)

    def searched(self, endpoint: str, seconds: float) -> None:
        """Note how long a search in a vector store of an endpoint took."""
        self._search.labels(endpoint, self.replica).observe(seconds)

    def _charged(self, team: str, endpoint: str, charge: ChargeRecord) -> None:
        if charge.kind in _FREE:
            self._saved_prompt(charge.prompt_tokens)
            self._saved_completion(charge.completion_tokens)
            return
        if charge.prompt_tokens or charge.completion_tokens:
            self._prompt(charge.prompt_tokens)
            self._completion(charge.completion_tokens)
        if charge.cost_nusd:
            bill = (team, endpoint, charge.tier)
            add = self._cost_of.get(bill)
            if add is None:
                names = (team, endpoint or UNKNOWN, _tier(charge.tier))
                add = self._cost_of[bill] = self._cost.labels(*names, self.replica).inc
            add(charge.cost_nusd)

    def _observe(
        self,
        histogram: Histogram,
        known: dict[tuple[str, int | None], Add],
        endpoint: str,
        tier: int | None,
        seconds: float,
    ) -> None:
        add = known.get((endpoint, tier))
        if add is None:
            child = histogram.labels(endpoint or UNKNOWN, _tier(tier), self.replica)
            add = known[endpoint, tier] = child.observe
        add(seconds)


def _tier(tier: int | None) -> str:
    return NONE if tier is None else str(tier)
