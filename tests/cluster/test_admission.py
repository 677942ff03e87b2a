"""Admission: quota, reclaim, classes, gangs, fairness, and their invariants."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.cluster.queue.admission import Ask, Capacity, Held, Plan, admit, too_large
from factory.cluster.queue.quota import EPSILON, Shares
from factory.config import Quota

HOME = {"home": Capacity(({"cpus": 4.0},) * 2)}


def quota(nominal: float, cohort: str | None = "all", **rest: float) -> Quota:
    return Quota.model_validate({"cohort": cohort, "cpus": {"nominalQuota": nominal, **rest}})


def ask(name: str, team: str = "a", cpus: float = 1, **rest: object) -> Ask:
    values = {"order": int(name.strip("abcdefghijklmnopqrstuvwxyz") or 0), "pools": ("home",)}
    return Ask(id=name, team=team, need={"cpus": cpus}, **{**values, **rest})


def held(of: Ask, since: float = 0, leaving: bool = False) -> Held:
    return Held(ask=of, pool="home", since=since, leaving=leaving)


def plan(
    waiting: list[Ask], running: list[Held] | None = None, patience_s: float = 600, **teams: Quota
) -> Plan:
    return admit(waiting, running or [], HOME, Shares(teams), patience_s=patience_s)


def started(found: Plan) -> list[str]:
    return [start.id for start in found.starts]


def test_classes_go_first_then_the_order_of_submission() -> None:
    found = plan([ask("j1", cpus=4), ask("j2", cpus=4), ask("j3", cpus=4, priority=90)])
    assert started(found) == ["j3", "j1"]
    assert [(wait.id, wait.position) for wait in found.waits] == [("j2", 1)]
    assert "no room" in found.waits[0].reason


def test_a_gang_starts_whole_or_not_at_all() -> None:
    assert started(plan([ask("j1", cpus=3, workers=2)])) == ["j1"]
    found = plan([ask("j1", cpus=3, workers=2)], [held(ask("j0", cpus=2))])
    assert started(found) == []  # 6 CPUs are free, but not two times 3 on one node each
    assert started(plan([ask("j1", cpus=2, workers=3)], [held(ask("j0", cpus=2))])) == ["j1"]


def test_a_team_borrows_only_up_to_its_limit() -> None:
    teams = {"a": quota(2, borrowingLimit=3), "b": quota(6)}
    found = plan([ask(f"j{n}", cpus=1) for n in range(1, 9)], **teams)
    assert len(found.starts) == 5
    assert "borrowed" in found.starts[-1].reason
    assert "may take 0 cpus more" in found.waits[0].reason


def test_what_a_team_does_not_lend_stays_its_own() -> None:
    teams = {"a": quota(2), "b": quota(6, lendingLimit=1)}
    assert len(plan([ask(f"j{n}") for n in range(1, 9)], **teams).starts) == 3


def test_a_guarantee_is_taken_back_from_borrowers_whatever_their_class() -> None:
    teams = {"a": quota(2), "b": quota(6)}
    running = [held(ask(f"j{n}", cpus=2, priority=90), since=n) for n in range(1, 5)]
    found = plan([ask("j9", team="b", cpus=4, priority=10)], running, **teams)
    assert {each.id for each in found.preemptions} == {"j4", "j3"}  # the newest go first
    assert "gives borrowed cpus back to team 'b'" in found.preemptions[0].reason
    assert "waits for j4, j3 to stop" in found.waits[0].reason
    again = [*running[:2], *(held(each.ask, each.since, leaving=True) for each in running[2:])]
    assert plan([ask("j9", team="b", cpus=4)], again, **teams).preemptions == ()


def test_nobody_is_stopped_for_a_team_that_would_borrow() -> None:
    teams = {"a": quota(4), "b": quota(4)}
    running = [held(ask(f"j{n}", cpus=2)) for n in (1, 2)]
    running += [held(ask(f"j{n}", team="b", cpus=2)) for n in (3, 4)]
    assert plan([ask("j9", cpus=2, priority=50)], running, **teams).preemptions == ()


def test_higher_classes_displace_lower_ones_of_their_team() -> None:
    running = [held(ask("j1", cpus=4, priority=10)), held(ask("j2", cpus=4, priority=50))]
    found = plan([ask("j9", cpus=2, priority=90)], running)
    assert [each.id for each in found.preemptions] == ["j1"]
    firm = [held(ask("j1", cpus=4, priority=10, preemptible=False)), running[1]]
    assert [each.id for each in plan([ask("j9", cpus=2, priority=90)], firm).preemptions] == ["j2"]


def test_a_job_that_cannot_be_preempted_never_borrows() -> None:
    teams = {"a": quota(2), "b": quota(6)}
    found = plan([ask("j1", cpus=3, preemptible=False)], **teams)
    assert started(found) == []
    assert "may not borrow" in found.waits[0].reason


def test_free_room_is_shared_by_weight() -> None:
    teams = {
        "a": Quota.model_validate({"cohort": "all", "cpus": 0, "weight": 3}),
        "b": Quota.model_validate({"cohort": "all", "cpus": 0, "weight": 1}),
        "c": quota(8),
    }
    waiting = [ask(f"j{n}", team="ab"[n % 2]) for n in range(1, 17)]
    names = started(plan(waiting, **teams))
    assert sum(int(name[1:]) % 2 == 0 for name in names) == 6


def test_whoever_has_waited_too_long_is_not_overtaken_in_its_class() -> None:
    running = [held(ask("j0", cpus=1))]
    large = ask("j1", cpus=4, workers=2, waited_s=700)
    found = plan([large, ask("j2"), ask("j3", priority=90)], running)
    assert started(found) == ["j3"]
    assert {wait.id: wait.reason for wait in found.waits}["j2"].startswith("lets job j1 go first")
    fresh = ask("j1", cpus=4, workers=2, waited_s=10)
    assert started(plan([fresh, ask("j2")], running)) == ["j2"]


def test_a_forced_deadline_goes_before_its_class() -> None:
    assert started(
        plan([ask("j1", cpus=4), ask("j2", cpus=4), ask("j3", cpus=4, forced=True)])
    ) == [
        "j3",
        "j1",
    ]


def test_a_job_larger_than_any_pool_is_named() -> None:
    assert "larger than any" in (too_large(ask("j1", cpus=5), HOME, Shares({})) or "")
    assert too_large(ask("j1", cpus=4, workers=2), HOME, Shares({})) is None
    small = Shares({"a": quota(2, borrowingLimit=1), "b": quota(6)})
    assert "can never hold more than 3 cpus" in (too_large(ask("j1", cpus=4), HOME, small) or "")
    assert "no pool" in (too_large(ask("j1", pools=()), HOME, Shares({})) or "")


def test_cohorts_nest_and_a_circle_is_refused() -> None:
    nested = Shares(
        {"a": quota(1, "left"), "b": quota(3, "right")},
        {"left": Quota(cohort="top"), "right": Quota(cohort="top")},
    )
    assert nested.available("a", "cpus", {"a": 0.0, "b": 0.0}) == 4
    assert nested.available("a", "cpus", {"a": 0.0, "b": 2.0}) == 2
    assert nested.root("a") == "top"
    with pytest.raises(ValueError, match="left → right → left is a circle"):
        Shares({}, {"left": Quota(cohort="right"), "right": Quota(cohort="left")})


TEAMS = st.fixed_dictionaries(
    {
        name: st.builds(
            lambda nominal, borrow, lend: Quota.model_validate(
                {
                    "cohort": "all",
                    "cpus": {
                        "nominalQuota": nominal,
                        "borrowingLimit": borrow,
                        "lendingLimit": lend,
                    },
                }
            ),
            st.integers(0, 4),
            st.none() | st.integers(0, 4),
            st.none() | st.integers(0, 4),
        )
        for name in "ab"
    }
)
JOBS = st.lists(
    st.builds(
        lambda team, cpus, workers, priority, firm: dict(
            team=team, cpus=cpus, workers=workers, priority=priority, preemptible=not firm
        ),
        st.sampled_from("ab"),
        st.integers(1, 4),
        st.integers(1, 3),
        st.sampled_from([10, 50, 90]),
        st.booleans(),
    ),
    max_size=10,
)


def _asks(jobs: list[dict[str, object]]) -> list[Ask]:
    return [ask(f"j{n}", **job) for n, job in enumerate(jobs, 1)]  # type: ignore[arg-type]


@given(teams=TEAMS, jobs=JOBS)
@settings(max_examples=80, deadline=None)
def test_quota_and_capacity_are_never_exceeded(
    teams: dict[str, Quota], jobs: list[dict[str, object]]
) -> None:
    asks = {each.id: each for each in _asks(jobs)}
    found = plan(list(asks.values()), **teams)
    used = {team: 0.0 for team in teams}
    for start in found.starts:
        used[asks[start.id].team] += asks[start.id].total["cpus"]
    assert sum(used.values()) <= 8
    for team, amount in used.items():
        own = teams[team].cpus
        assert own is not None
        if own.borrowingLimit is not None:
            assert amount <= own.nominalQuota + own.borrowingLimit + EPSILON
        other = teams["b" if team == "a" else "a"].cpus
        assert other is not None
        lent = min(
            other.nominalQuota,
            other.nominalQuota if other.lendingLimit is None else other.lendingLimit,
        )
        assert amount <= own.nominalQuota + lent + EPSILON
    told = {wait.id for wait in found.waits} | {start.id for start in found.starts}
    assert told == set(asks)  # nobody is forgotten, nobody stands in both


@given(teams=TEAMS, jobs=JOBS, cpus=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_a_guarantee_can_always_be_taken_back(
    teams: dict[str, Quota], jobs: list[dict[str, object]], cpus: int
) -> None:
    """Whatever of team b runs, team a gets a job within its guarantee by at most preempting."""
    own, other = teams["a"].cpus, teams["b"].cpus
    assert own is not None
    assert other is not None
    asks = [each for each in _asks(jobs) if each.team == "b"]
    by_id = {each.id: each for each in asks}
    running = [held(by_id[start.id]) for start in plan(asks, **teams).starts]
    if cpus > own.nominalQuota or own.nominalQuota + other.nominalQuota > 8:
        return
    pools = {"home": Capacity(({"cpus": 8.0},))}
    wanted = ask("j99", team="a", cpus=cpus, priority=10)
    for _ in range(len(running) + 1):
        found = admit([wanted], running, pools, Shares(teams), patience_s=0)
        if found.starts:
            return
        gone = {each.id for each in found.preemptions}
        assert gone, found.waits
        running = [each for each in running if each.ask.id not in gone]
    raise AssertionError("it never got its guarantee")


@given(
    jobs=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 4), st.integers(1, 2)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=15, deadline=None)
def test_nobody_starves_in_a_class(jobs: list[tuple[str, int, int]]) -> None:
    """Small jobs arrive for ever; every job within its team's guarantee starts all the same."""
    teams = {"a": quota(4), "b": quota(4)}
    waiting = {
        f"j{n}": (ask(f"j{n}", team=team, cpus=cpus, workers=workers), 0)
        for n, (team, cpus, workers) in enumerate(jobs, 1)
        if cpus * workers <= 4
    }
    first = set(waiting)
    running: list[tuple[Held, int]] = []
    for now in range(80):
        running = [(each, end) for each, end in running if end > now]
        name = f"j{1000 + now}"
        waiting[name] = (ask(name, team="ab"[now % 2]), now)
        asks = [
            ask(
                each.id,
                each.team,
                each.need["cpus"],
                workers=each.workers,
                waited_s=float(now - since),
            )
            for each, since in waiting.values()
        ]
        found = admit(asks, [each for each, _ in running], HOME, Shares(teams), patience_s=5)
        for stop in found.preemptions:
            victim = next(each for each, _ in running if each.ask.id == stop.id)
            running = [(each, end) for each, end in running if each is not victim]
            waiting[stop.id] = (victim.ask, now)
        for start in found.starts:
            job, _ = waiting.pop(start.id)
            running.append((held(job, since=now), now + 3))
            first.discard(start.id)
        if not first:
            return
    raise AssertionError(f"{first} never started")
