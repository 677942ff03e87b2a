"""A search as plain values: what is drawn, what it costs, when it ends, what is best."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.training import search_plot, trial
from factory.training.config import check_as
from factory.training.errors import TrainingError
from factory.training.search import (
    Node,
    Outcome,
    SearchConfig,
    best,
    cost,
    decide,
    draw,
    rate,
    share,
    status,
    table,
)
from factory.training.spending import Spending, Till

SPACE = {
    "learning_rate": {"loguniform": [1e-4, 1e-2]},
    "lora_r": {"choice": [4, 8, 16]},
    "warmup_steps": {"randint": [0, 10]},
    "lora_alpha": {"uniform": [8, 64]},
    "target_modules": {"choice": [["q_proj"], ["q_proj", "v_proj"]]},
}


def config(**changes: Any) -> SearchConfig:
    return check_as(SearchConfig, {"space": SPACE, **changes}, "search.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {}}, "space: .*at least 1"),
        ({"space": {"lerning_rate": {"choice": [1]}}}, "lerning_rate: unknown argument; known are"),
        ({"space": {"max_steps": {"choice": [1]}}}, "max_steps cannot be searched: .*step by step"),
        (
            {"space": {"lora_r": {"chioce": [1]}}},
            "unknown distribution 'chioce'; known are choice, uniform",
        ),
        ({"space": {"lora_r": [4, 8]}}, r"space.lora_r: give a distribution, such as"),
        ({"space": {"lora_r": {"choice": []}}}, "at least 1 item"),
        ({"space": {"lora_r": {}}}, "exactly one of choice"),
        ({"space": {"lora_r": {"choice": None}}}, "choice is empty"),
        ({"space": {"lora_r": {"choice": [1], "randint": [1, 2]}}}, "exactly one of choice"),
        ({"space": {"lora_r": {"randint": [4, 4]}}}, "low below high"),
        ({"space": {"learning_rate": {"loguniform": [0, 1]}}}, "low above 0"),
        ({"space": {"learning_rate": {"uniform": [0, math.inf]}}}, "finite"),
        ({"max_usd": 0}, "max_usd: .*greater than 0"),
        ({"max_usd": "1e-12"}, "less than a nano-dollar"),
        ({"max_usd": "nan"}, "max_usd"),
        ({"num_samples": 0}, "num_samples"),
        ({"max_steps": None}, "give max_steps"),
        ({"max_train_seconds": 5}, "no max_train_seconds"),
        ({"max_steps": 10}, "grace_period 40 is over max_steps 10"),
        ({"eval_samples": 0}, "set eval_samples"),
        ({"num_workers": 2}, "a trial is one worker"),
        ({"nonsense": 1}, "nonsense: unknown key"),
    ],
)
def test_bad_searches_are_refused_with_a_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        config(**changes)


def test_the_same_seed_draws_the_same_trials_within_the_space() -> None:
    first, again = draw(config(num_samples=20)), draw(config(num_samples=20))
    assert first == again
    assert [each.params for each in draw(config(num_samples=20, search_seed=8))] != [
        each.params for each in first
    ]
    assert [each.number for each in first] == list(range(20))
    for each in first:
        assert set(each.params) == set(SPACE)
        assert 1e-4 <= each.config.learning_rate < 1e-2
        assert each.config.lora_r in {4, 8, 16}
        assert 0 <= each.config.warmup_steps < 10
        assert 8 <= each.config.lora_alpha < 64
        assert each.config.target_modules == each.params["target_modules"]
    few = [each.params for each in draw(config(num_samples=5))]
    assert few == [each.params for each in first[:5]], "more samples only add trials"


def test_equal_trials_are_tried_once_and_impossible_ones_refused_before_anything_starts() -> None:
    trials = draw(config(space={"lora_r": {"choice": [4, 8]}}, num_samples=30))
    assert sorted(each.params["lora_r"] for each in trials) == [4, 8]
    with pytest.raises(TrainingError, match=r"trial 0 of the space: lora_r: .*greater"):
        draw(config(space={"lora_r": {"choice": [0]}}))


@given(
    seconds=st.floats(0, 1e6),
    more=st.floats(0, 1e6),
    cpus=st.floats(0.5, 64),
    node=st.floats(0.5, 64),
    price=st.integers(1, 10**12),
)
def test_cost_grows_with_time_and_is_never_more_than_the_nodes(
    seconds: float, more: float, cpus: float, node: float, price: int
) -> None:
    part = share(cpus, node)
    assert 0 < part <= 1
    paid = cost(seconds, part, price)
    assert isinstance(paid, int)
    assert 0 <= paid <= cost(seconds + more, part, price)
    assert paid <= math.ceil(seconds * price / 3600) + 1


def test_a_trial_is_priced_by_what_it_holds_most_of_on_the_dearest_node() -> None:
    prices = {"own": 1000, "cloud": 8000}
    assert rate([Node("own", 2, 0)], prices, cpus=1) == ("own", 500)
    both = [Node("own", 2, 0), Node("cloud", 4, 0)]
    assert rate(both, prices, cpus=1) == ("cloud", 2000)
    assert rate([Node("cloud", 64, 2)], prices, cpus=1, gpus=1) == ("cloud", 4000)
    with pytest.raises(TrainingError, match="pool 'moon' has no price; known pools are cloud, own"):
        rate([Node("moon", 2, 0)], prices, cpus=1)


@given(
    spent=st.integers(0, 10**9),
    budget=st.integers(1, 10**9),
    running=st.integers(0, 9),
    waiting=st.integers(0, 9),
)
def test_a_search_ends_exactly_when_nothing_is_left_to_do_or_to_spend(
    spent: int, budget: int, running: int, waiting: int
) -> None:
    found = decide(spent_nusd=spent, budget_nusd=budget, running=running, waiting=waiting)
    assert found.stop == (spent >= budget or running + waiting == 0)
    assert f"{spent:,} of {budget:,} nano-dollars" in found.reason
    assert ("budget is spent" in found.reason) == (found.stop and running + waiting > 0)
    later = decide(spent_nusd=spent + 1, budget_nusd=budget, running=running, waiting=waiting)
    assert later.stop or not found.stop, "spending more never starts a search again"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def tuned(number: int) -> SimpleNamespace:
    return SimpleNamespace(config={"trial": f"trial-{number:03d}"})


@given(
    steps=st.lists(st.tuples(st.sampled_from("sef"), st.integers(0, 5), st.floats(0, 5))),
    budget=st.integers(1, 20),
)
def test_the_stopper_overspends_by_no_more_than_its_trials_hold_in_one_beat(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, float]], budget: int
) -> None:
    clock, root = Clock(), tmp_path_factory.mktemp("search")
    spending = Spending(
        root, trials=6, nusd_per_hour=3600, budget_nusd=budget, clock=clock
    )  # a nano-dollar a second
    till, before, done, held = Till(spending), 0, set(), 0.0
    for kind, number, pause in steps:
        if till.stop_all():
            spent = sum(spending.nusd(each) for each in spending.held().values())
            assert spent >= budget or len(done) == spending.trials
            assert bool(spending.stopped) == (len(done) < spending.trials)
            assert spent <= budget + held + spending.trials, "each trial is rounded up"
            break
        before = sum(spending.nusd(each) for each in spending.held().values())
        assert before < budget
        name = tuned(number).config["trial"]
        if kind == "s" and number not in done:
            spending.on_trial_start(0, [], tuned(number))
        elif name in spending.running:
            done.add(number)
            end = spending.on_trial_complete if kind == "e" else spending.on_trial_error
            end(0, [], tuned(number))
        clock.now += pause
        held = len(spending.running) * pause
    copy = pickle.loads(pickle.dumps(spending))  # noqa: S301 - ours, as Ray Tune keeps it
    assert copy.running == {}
    assert copy.seconds == pytest.approx(spending.held() if not spending.running else copy.seconds)


def test_what_was_spent_outlives_the_process_and_ends_the_search(tmp_path: Path) -> None:
    clock = Clock()
    spending = Spending(tmp_path, trials=3, nusd_per_hour=3600, budget_nusd=10, clock=clock)
    spending.on_trial_start(0, [], tuned(0))
    clock.now += 4
    spending.on_trial_result(0, [], tuned(0), {"step": 1, "validation_loss": 2.0})
    clock.now += 100  # nobody ran: the machine was off
    resumed = pickle.loads(pickle.dumps(spending))  # noqa: S301 - ours, as Ray Tune keeps it
    assert resumed.held() == {"trial-000": 4.0}
    resumed.clock = clock
    resumed.on_trial_start(0, [], tuned(0))
    clock.now += 5
    assert not Till(resumed).stop_all()
    clock.now += 1
    assert Till(resumed).stop_all()
    assert "1 trials were stopped and 2 not begun" in resumed.stopped
    (tmp_path / "trial-000").mkdir()
    (tmp_path / "trial-000" / "failure").write_text("the loss is nan")
    resumed.on_trial_error(0, [], tuned(0))
    resumed.on_trial_complete(0, [], tuned(1))
    clock.now += 7  # until its process was gone
    resumed.on_experiment_end([])
    assert resumed.held() == {"trial-000": 17.0}
    assert resumed.ended["trial-001"] == {"failure": "", "out_of_money": True}
    del resumed.ended["trial-001"]
    assert resumed.ended == {"trial-000": {"failure": "the loss is nan", "out_of_money": True}}


def outcome(number: int, kind: Any, *curve: tuple[int, float], **more: Any) -> Outcome:
    return Outcome(number=number, params={"lora_r": number}, status=kind, curve=curve, **more)


def test_the_best_is_a_finished_trial_where_there_is_one() -> None:
    early = outcome(0, "stopped early", (20, 0.1))
    worse = outcome(1, "finished", (20, 0.5), (40, 0.4), nusd=9)
    equal = outcome(2, "finished", (20, 0.6), (40, 0.4), nusd=5)
    broken = outcome(3, "failed", (20, 0.01), reason="the run has diverged")
    lost = outcome(4, "finished", (40, math.nan))
    found = best([early, worse, equal, broken, lost])
    assert found is equal
    assert best([early, broken]) is early
    lines = table([early, worse, equal, broken, lost], found.number)
    assert lines[-1].endswith("lora_r=3: the run has diverged")
    assert "finished (best)  lora_r=2" in "\n".join(lines)


def test_a_search_without_a_loss_says_why() -> None:
    broken = [outcome(n, "failed", reason="the loss is nan") for n in range(2)]
    with pytest.raises(TrainingError, match=r"all 2 trials that began have failed; .*loss is nan"):
        best([*broken, outcome(2, "not begun")])
    with pytest.raises(TrainingError, match="raise max_usd"):
        best([outcome(0, "out of money"), outcome(1, "not begun")])


@pytest.mark.parametrize("kind", ["finished", "failed"])
def test_trials_are_drawn_whatever_came_of_them(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "trials.png"
    seen = outcome(0, kind, (20, 0.5), (40, 0.4), nusd=10**6, reason="lost")
    search_plot.draw([seen, outcome(1, "not begun")], path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_end_of_a_trial_has_a_name() -> None:
    def ends(begun: bool, failed: bool, steps: int, money: bool) -> str:
        return status(begun=begun, failed=failed, steps=steps, max_steps=9, out_of_money=money)

    assert ends(True, True, 9, False) == "failed"
    assert ends(True, False, 9, True) == "finished"
    assert ends(True, False, 3, True) == "out of money"
    assert ends(True, False, 3, False) == "stopped early"
    assert ends(False, False, 0, True) == "not begun"


def test_a_curve_keeps_the_later_of_two_reports_and_leaves_out_a_torn_line(tmp_path: Path) -> None:
    assert trial.curve(tmp_path) == ()
    (tmp_path / "validation.jsonl").write_text(
        '{"step": 2, "validation_loss": 3.0}\n{"step": 4, "validation_loss": 2.0}\n'
        '{"step": 2, "validation_loss": 2.5}\n{"step": 6, "vali'
    )
    assert trial.curve(tmp_path) == ((2, 2.5), (4, 2.0))
