from __future__ import annotations

from pathlib import Path

import pytest

from factory.config import Accuracy, Gate
from factory.ledger import promotions
from factory.registry.errors import RegistryError
from factory.registry.versions import CHAMPION, Registry
from tests.registry.conftest import BASE, NAME, Bench, lineage, make_suite


def alias(bench: Bench) -> int | None:
    return bench.mlflow().alias(NAME, CHAMPION)


def test_a_version_carries_lineage_metrics_and_files(bench: Bench) -> None:
    version = bench.registry.get(NAME, bench.version("one", 60))
    assert version.metrics.accuracy == 0.6
    assert version.metrics.cost_per_1k_usd is not None
    assert version.lineage == lineage(make_suite(), "one")
    assert (version.path / "adapter_model.safetensors").read_text() == "one"
    assert not version.champion
    assert bench.registry.champion(NAME) is None


def test_the_same_adapter_and_lineage_is_the_same_version(bench: Bench) -> None:
    assert bench.version("one", 60) == bench.version("one", 60) == 1
    assert bench.version("two", 60) == 2
    assert [version.version for version in bench.registry.list(NAME)] == [1, 2]


def test_the_same_adapter_on_a_newer_suite_is_the_same_version(bench: Bench) -> None:
    assert bench.version("one", 60) == bench.version("one", 70, make_suite(2)) == 1
    assert bench.registry.get(NAME, 1).metrics.suite_hash == make_suite(2).hash
    assert bench.registry.promote(NAME, 1).passed


def test_results_of_another_model_are_not_accepted(bench: Bench) -> None:
    suite, adapter = make_suite(), bench.adapter("one")
    mine, base = bench.results(suite, 60, adapter.hash), bench.results(suite, 5, None)
    other = bench.results(make_suite(2), 5, None)
    register = bench.registry.register
    with pytest.raises(RegistryError, match="not made with this base and adapter"):
        register(NAME, adapter, None, lineage(suite), base, base)
    with pytest.raises(RegistryError, match="the base's results"):
        register(NAME, adapter, None, lineage(suite), mine, mine)
    with pytest.raises(RegistryError, match="two suites"):
        register(NAME, adapter, None, lineage(suite), mine, other)
    assert bench.registry.list(NAME) == []


def test_whole_weights_are_a_version_like_any_other(bench: Bench) -> None:
    suite = make_suite()
    made = bench.store.put("weights", NAME, lambda folder: _config(folder, "student"))
    student = bench.results(suite, 60, None, model_hash=made.hash)
    base = bench.results(suite, 5, None)
    register = bench.registry.register
    with pytest.raises(RegistryError, match="not made with this base and adapter"):
        register(NAME, made, None, lineage(suite), base, base)
    version = register(NAME, made, None, lineage(suite), student, base)
    assert bench.registry.promote(NAME, version).passed
    champion = bench.registry.champion(NAME)
    assert champion is not None
    assert champion.whole
    assert champion.path == made.path
    assert bench.registry.weights(NAME, version) == made
    assert not bench.registry.get(NAME, bench.version("adapter", 50)).whole
    (made.path / "config.json").write_text("changed")
    with pytest.raises(RegistryError, match="cannot be used"):
        bench.registry.weights(NAME, version)


def _config(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)


def test_passing_the_gate_moves_the_champion_and_is_logged(bench: Bench) -> None:
    one, two = bench.version("one", 60), bench.version("two", 70)
    assert bench.registry.promote(NAME, one, actor="ann").passed
    assert bench.registry.promote(NAME, two).passed
    champion = bench.registry.champion(NAME)
    assert champion is not None
    assert (champion.version, champion.champion, alias(bench)) == (two, True, two)
    log = bench.registry.history(NAME)
    assert [(e.action, e.version, e.previous) for e in log] == [
        ("promote", one, None),
        ("promote", two, one),
    ]
    assert log[0].actor == "ann"
    assert log[1].actor
    assert log[1].metrics["accuracy"] == 0.7
    assert any("minus champion +0.100" in reason for reason in log[1].reasons)


def test_refusal_is_logged_and_moves_nothing(bench: Bench) -> None:
    one, worse = bench.version("one", 70), bench.version("worse", 60)
    bench.registry.promote(NAME, one)
    decision = bench.registry.promote(NAME, worse)
    assert not decision.passed
    assert alias(bench) == one
    last = bench.registry.history(NAME)[-1]
    assert (last.action, last.version, last.previous) == ("refuse", worse, one)
    assert tuple(last.reasons) == decision.reasons


def test_promoting_the_champion_again_changes_nothing(bench: Bench) -> None:
    one = bench.version("one", 60)
    bench.registry.promote(NAME, one)
    assert bench.registry.promote(NAME, one).passed
    assert len(bench.registry.history(NAME)) == 1


def test_a_champion_of_another_suite_must_be_judged_again(bench: Bench) -> None:
    one = bench.version("one", 60)
    bench.registry.promote(NAME, one)
    newer = make_suite(2)
    two = bench.version("two", 70, newer)
    refused = bench.registry.promote(NAME, two)
    assert "champion version 1 was not judged on this suite" in refused.reasons[0]
    adapter = bench.adapter("one")
    bench.registry.add_evaluation(
        NAME, one, bench.results(newer, 75, adapter.hash), bench.results(newer, 5, None)
    )
    assert "minus champion -0.050" in bench.registry.promote(NAME, two).reasons[-1]
    three = bench.version("three", 76, newer)
    assert bench.registry.promote(NAME, three).passed


def test_rollback_is_one_step_at_a_time(bench: Bench) -> None:
    for right, content in ((60, "one"), (70, "two"), (80, "three")):
        assert bench.registry.promote(NAME, bench.version(content, right)).passed
    assert bench.registry.rollback(NAME) == 2
    assert bench.registry.rollback(NAME, actor="bob") == 1
    champion = bench.registry.champion(NAME)
    assert champion is not None
    assert champion.version == alias(bench) == 1
    last = bench.registry.history(NAME)[-1]
    assert (last.action, last.version, last.previous, last.actor) == ("rollback", 1, 2, "bob")
    with pytest.raises(RegistryError, match="version 1 is its first champion"):
        bench.registry.rollback(NAME)
    assert len(bench.registry.history(NAME)) == 5


def test_nothing_to_roll_back_to(bench: Bench) -> None:
    with pytest.raises(RegistryError, match="it has no champion"):
        bench.registry.rollback(NAME)


@pytest.mark.parametrize("move", ["promote", "rollback"])
def test_a_crash_between_log_and_alias_is_mended(
    bench: Bench, move: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = bench.version("one", 60), bench.version("two", 70)
    bench.registry.promote(NAME, one)
    if move == "rollback":
        bench.registry.promote(NAME, two)
    before = alias(bench)

    class Killed(BaseException):
        pass

    def back() -> int:
        return bench.registry.rollback(NAME)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("factory.registry.mlflow_store.VersionStore.set_alias", die)
        step = {"promote": lambda: bench.registry.promote(NAME, two), "rollback": back}[move]
        with pytest.raises(Killed):
            step()
    assert alias(bench) == before
    wanted = two if move == "promote" else one
    champion = Registry(bench.settings, bench.ledger).champion(NAME)
    assert champion is not None
    assert champion.version == alias(bench) == wanted


def test_an_alias_moved_by_hand_is_reported_and_put_right(bench: Bench) -> None:
    one, two, bad = bench.version("one", 60), bench.version("two", 70), bench.version("bad", 1)
    bench.registry.promote(NAME, one)
    bench.registry.promote(NAME, two)
    bench.mlflow().set_alias(NAME, CHAMPION, bad)
    with pytest.raises(RegistryError, match=f"points to version {bad} but .* says {two}"):
        bench.registry.champion(NAME)
    bench.registry.promote(NAME, two)
    champion = bench.registry.champion(NAME)
    assert champion is not None
    assert champion.version == two


def test_an_alias_without_any_promotion_is_reported(bench: Bench) -> None:
    bench.mlflow().set_alias(NAME, CHAMPION, bench.version("one", 60))
    with pytest.raises(RegistryError, match="nothing was ever promoted"):
        bench.registry.champion(NAME)


def test_a_champion_deleted_by_hand_is_reported_and_rolled_back(bench: Bench) -> None:
    one, two = bench.version("one", 60), bench.version("two", 70)
    bench.registry.promote(NAME, one)
    bench.registry.promote(NAME, two)
    bench.mlflow().delete(NAME, two)
    with pytest.raises(RegistryError, match="deleted from MLflow; run `factory registry rollback"):
        bench.registry.champion(NAME)
    assert bench.registry.rollback(NAME) == one


def test_delete_keeps_what_a_rollback_may_need(bench: Bench) -> None:
    one, two, worse = bench.version("one", 60), bench.version("two", 70), bench.version("w", 10)
    bench.registry.promote(NAME, one)
    bench.registry.promote(NAME, two)
    for kept in (one, two):
        with pytest.raises(RegistryError, match="cannot be deleted"):
            bench.registry.delete(NAME, kept)
    bench.registry.delete(NAME, worse)
    assert [version.version for version in bench.registry.list(NAME)] == [one, two]


def test_unknown_versions_and_gates_are_one_sentence(bench: Bench) -> None:
    with pytest.raises(RegistryError, match="register one by evaluating"):
        bench.registry.promote(NAME, 1)
    one = bench.version("one", 60)
    with pytest.raises(RegistryError, match=r"no version 9; known versions: \[1\]"):
        bench.registry.promote(NAME, 9)
    bare = bench.mlflow().create(NAME, "/nowhere", None, {})
    with pytest.raises(RegistryError, match="not made by the registry"):
        bench.registry.promote(NAME, bare)
    ungated = Registry(bench.settings.model_copy(update={"gates": {}}), bench.ledger)
    with pytest.raises(RegistryError, match=r"no gate for 'helpdesk'; add gates\.helpdesk"):
        ungated.promote(NAME, one)
    assert promotions.history(bench.ledger, NAME) == []


def test_a_small_suite_promotes_nothing(bench: Bench) -> None:
    small = bench.version("one", 20, make_suite(cases=20), base=0)
    assert "judged on 20 cases" in bench.registry.promote(NAME, small).reasons[0]


@pytest.mark.parametrize("kind", ["adapters", "evaluations"])
def test_files_changed_since_judging_are_not_promoted(bench: Bench, kind: str) -> None:
    one = bench.version("one", 60)
    for item in bench.store.list(kind):
        for file in item.files:
            spoiled = bytearray((item.path / file).read_bytes())
            spoiled[-2] ^= 1
            Path(item.path / file).write_bytes(spoiled)
    with pytest.raises(RegistryError, match="is not what was stored"):
        bench.registry.promote(NAME, one)
    assert bench.registry.history(NAME) == []
    assert alias(bench) is None


def test_the_gate_uses_todays_price(bench: Bench) -> None:
    dear = Gate(accuracy=Accuracy(), cost_per_1k_usd={"max": 1e-9})
    strict = Registry(bench.settings.model_copy(update={"gates": {NAME: dear}}), bench.ledger)
    decision = strict.promote(NAME, bench.version("one", 60))
    assert [reason for reason in decision.reasons if "1,000 cases cost $" in reason]
    assert not decision.passed


def test_base_weights_are_part_of_a_version(bench: Bench) -> None:
    tags = bench.mlflow().get(NAME, bench.version("one", 60))
    assert tags is not None
    assert tags.tags["base_hash"] == BASE
    assert tags.tags["code_commit"] == "c0ffee"
