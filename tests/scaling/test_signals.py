"""Reports travel as numbers, and counters survive replicas that come and go."""

from __future__ import annotations

from factory.scaling import ReplicaSignals, Tally, gather


def test_a_report_survives_its_way_as_stats() -> None:
    report = ReplicaSignals(running=3, waiting=1, max_batch=8, requests_total=40, ttft_p95_s=0.5)

    assert ReplicaSignals.from_stats(report.stats() | {"somebody's own": 1.0}) == report
    assert ReplicaSignals.from_stats({}) == ReplicaSignals()


def test_a_replica_that_goes_or_restarts_keeps_what_it_counted() -> None:
    def look(tally: Tally, **reports: float) -> tuple[float, Tally]:
        signals, tally = gather(
            tally,
            {name: ReplicaSignals(requests_total=count) for name, count in reports.items()},
            now=0,
            ready=len(reports),
            starting=0,
            queued=2,
        )
        return signals.arrived_total, tally

    total, tally = look(Tally(), a=10, b=5)
    assert total == 17
    total, tally = look(tally, a=12)
    assert total == 19
    total, tally = look(tally, a=3, c=1)
    assert total == 12 + 5 + 3 + 1 + 2


def test_latency_is_weighted_by_where_the_requests_are() -> None:
    signals, _ = gather(
        Tally(),
        {
            "busy": ReplicaSignals(running=30, max_batch=32, ttft_p95_s=2.0),
            "quiet": ReplicaSignals(running=1, max_batch=32, ttft_p95_s=0.2),
            "new": ReplicaSignals(max_batch=32),
        },
        now=0,
        ready=3,
        starting=0,
        queued=0,
    )

    assert 1.8 < signals.ttft_p95_s < 2.0
    assert signals.saturation == 31 / 96
