from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.catalog.objects import ObjectStore
from factory.config import Price
from factory.evaluation.compare import compare
from factory.evaluation.harness import judge, run
from factory.evaluation.results import EvaluationError, load, usd_per_1k
from factory.evaluation.suite import Suite
from tests.evaluation.scripted import Scripted

PRICE = Price(input_usd_per_mtok=Decimal("1"), output_usd_per_mtok=Decimal("5"))


def knows(suite: Suite, right: int) -> Scripted:
    """An answerer that is right on the first `right` cases and rambles on the others."""
    return Scripted(
        {
            case.chat[-1]["content"]: f"I think {case.expected}" if place < right else "no idea"
            for place, case in enumerate(suite.cases)
        }
    )


def test_results_say_what_was_measured(suite: Suite) -> None:
    done: list[int] = []
    results = run(suite, knows(suite, 9), price=PRICE, progress=done.append)
    summary = results.summary
    assert sum(done) == 12
    assert [case.id for case in results.cases] == [case.id for case in suite.cases]
    assert (summary.accuracy, summary.secondary) == (0.75, {"exact": 0.0})
    assert 0 < summary.low < 0.75 < summary.high < 1
    assert (summary.suite_hash, summary.n_shot, summary.seeds) == (suite.hash, 0, {})
    assert (summary.p50_ms, summary.prompt_tokens, summary.completion_tokens) == (6.5, 120, 24)
    assert summary.cost_nusd == 12 * (10 * 1000 + 2 * 5000)
    assert summary.cost_per_1k_usd == Decimal("0.02")


def test_errors_count_as_wrong_and_are_kept(suite: Suite) -> None:
    answerer = knows(suite, 12)
    answerer.answers = {**answerer.answers, suite.cases[0].chat[-1]["content"]: None}
    results = run(suite, answerer)
    assert results.summary.errors == 1
    assert results.summary.accuracy == pytest.approx(11 / 12)
    assert (results.cases[0].error, results.cases[0].score) == ("no answer", False)
    assert results.summary.cost_per_1k_usd is None


def test_when_nothing_is_answered_nothing_is_saved(suite: Suite, tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    with pytest.raises(EvaluationError, match="no case of suite 'small' was answered"):
        judge(suite, Scripted({}), store)
    assert store.list("evaluations") == []


def test_the_same_measurement_is_not_made_twice(suite: Suite, tmp_path: Path) -> None:
    store, answerer = ObjectStore(tmp_path), knows(suite, 6)
    first = judge(suite, answerer, store, price=PRICE)
    again = judge(suite, answerer, store, price=PRICE)
    assert (first.reused, again.reused, answerer.asked) == (False, True, 12)
    assert again.results == first.results == load(first.item)
    assert judge(suite, answerer, store, force=True).reused is False
    assert judge(suite.sample(5, 0), answerer, store).reused is False
    other = knows(suite, 6)
    other.identity = other.identity.model_copy(update={"adapter_hash": "a"})
    assert judge(suite, other, store).reused is False


def test_found_results_take_todays_price(suite: Suite, tmp_path: Path) -> None:
    store, answerer = ObjectStore(tmp_path), knows(suite, 6)
    judge(suite, answerer, store)
    found = judge(suite, answerer, store, price=PRICE)
    assert found.reused
    assert found.results.summary.cost_per_1k_usd == Decimal("0.02")


def test_an_endpoint_is_measured_every_time(suite: Suite, tmp_path: Path) -> None:
    store, answerer = ObjectStore(tmp_path), knows(suite, 6)
    answerer.identity = answerer.identity.model_copy(update={"model_hash": None})
    judge(suite, answerer, store)
    assert judge(suite, answerer, store).reused is False
    assert answerer.asked == 24


def test_saved_files_are_readable_by_people(suite: Suite, tmp_path: Path) -> None:
    item = judge(suite, knows(suite, 6), ObjectStore(tmp_path)).item
    rows = [json.loads(line) for line in (item.path / "cases.jsonl").read_text().splitlines()]
    assert (rows[0]["id"], rows[0]["answer"]) == ("json.0", "I think json")
    assert json.loads((item.path / "summary.json").read_text())["suite_hash"] == suite.hash


@pytest.mark.parametrize("spoil", ["", "{}\n", "{oops"])
def test_spoiled_results_are_one_sentence(suite: Suite, tmp_path: Path, spoil: str) -> None:
    item = judge(suite, knows(suite, 6), ObjectStore(tmp_path)).item
    (item.path / "cases.jsonl").write_text(spoil)
    with pytest.raises(EvaluationError, match="judge again"):
        load(item)


def test_compare_wants_the_same_suite_and_cases(suite: Suite) -> None:
    base, tuned = run(suite, knows(suite, 3)), run(suite, knows(suite, 9))
    assert compare(base, tuned).difference == 0.5
    with pytest.raises(EvaluationError, match="two suites"):
        compare(base, run(suite.sample(6, 0), knows(suite, 9)))
    short = type(tuned)(tuned.summary, tuned.cases[1:])
    with pytest.raises(EvaluationError, match="different cases"):
        compare(base, short)


@given(st.integers(0, 10**15), st.integers(1, 10_000))
def test_cost_per_thousand_never_rounds_down(cost: int, cases: int) -> None:
    found = usd_per_1k(cost, cases) * 10**9
    assert cost * 1000 <= found * cases < cost * 1000 + cases
