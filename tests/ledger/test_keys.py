"""Keys: made once, stored as a hash, scoped, revoked for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from factory.config import Budget, Limits, Settings, default_text, parse
from factory.ledger.errors import LedgerError
from factory.ledger.keys import authenticate, create_key, list_keys, revoke, revoked_since
from factory.ledger.store import Ledger

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return parse(default_text(), "factory.yaml", tmp_path_factory.mktemp("home"), {})


def test_a_secret_opens_its_key_and_no_other(ledger: Ledger, settings: Settings) -> None:
    secret, key = create_key(ledger, settings, "support", ["helpdesk"], clock=lambda: NOON)
    other, _ = create_key(ledger, settings, "research")
    assert authenticate(ledger, secret) == key
    assert (key.team, key.endpoints, key.created_at) == ("support", ("helpdesk",), NOON)
    found = authenticate(ledger, other)
    assert found is not None
    assert (found.team, found.endpoints) == ("research", ("*",))


@pytest.mark.parametrize(
    "secret", ["", "sk-factory-", "sk-factory-guess", "x" * 10_000, "sk-factory-\ud800", "Bearer x"]
)
def test_what_is_no_secret_opens_nothing(ledger: Ledger, settings: Settings, secret: str) -> None:
    create_key(ledger, settings, "support")
    assert authenticate(ledger, secret) is None


def test_the_secret_is_nowhere_in_the_database(ledger: Ledger, settings: Settings) -> None:
    secret, key = create_key(ledger, settings, "support")
    assert secret.startswith("sk-factory-")
    assert len(secret) > 50
    with ledger.read() as connection:
        stored = str(connection.execute(text("SELECT * FROM api_keys")).all())
    assert secret not in stored
    assert secret.removeprefix("sk-factory-")[8:] not in stored + repr(key)


def test_a_revoked_key_opens_nothing_but_stays_listed(ledger: Ledger, settings: Settings) -> None:
    secret, key = create_key(ledger, settings, "support", clock=lambda: NOON)
    _, other = create_key(ledger, settings, "research")
    gone = revoke(ledger, key.key_id, clock=lambda: NOON)
    assert gone.revoked_at == NOON
    assert authenticate(ledger, secret) is None
    assert revoke(ledger, key.key_id) == gone
    assert list_keys(ledger, "support") == [gone]
    assert {each.key_id for each in list_keys(ledger)} == {key.key_id, other.key_id}


def test_a_key_carries_its_roles_budget_and_limits(ledger: Ledger, settings: Settings) -> None:
    budget = Budget.model_validate({"daily_usd": "0.000000001", "alert_at": [0.9]})
    secret, key = create_key(
        ledger,
        settings,
        "support",
        roles=["reviewer", "inference", "reviewer"],
        budget=budget,
        limits=Limits(requests_per_minute=60),
    )
    assert authenticate(ledger, secret) == key
    assert key.roles == ("inference", "reviewer")
    assert key.budget.limits_nusd == {"day": 1}
    assert key.as_dict()["budget"] == {"daily_usd": "1E-9", "alert_at": [0.9]}
    assert key.as_dict()["limits"] == {"requests_per_minute": 60}
    plain = create_key(ledger, settings, "support")[1]
    assert (plain.roles, plain.budget, plain.limits) == (("inference",), Budget(), Limits())
    with pytest.raises(LedgerError, match="'root' is not a role; the roles are inference"):
        create_key(ledger, settings, "support", roles=["root"])
    with pytest.raises(LedgerError, match="at least one role"):
        create_key(ledger, settings, "support", roles=[])


def test_revocations_can_be_followed(ledger: Ledger, settings: Settings) -> None:
    _, old = create_key(ledger, settings, "support")
    _, new = create_key(ledger, settings, "support")
    revoke(ledger, old.key_id, clock=lambda: NOON)
    revoke(ledger, new.key_id, clock=lambda: NOON + timedelta(seconds=1))
    assert revoked_since(ledger, NOON) == {old.key_id, new.key_id}
    assert revoked_since(ledger, NOON + timedelta(seconds=1)) == {new.key_id}
    assert revoked_since(ledger, NOON + timedelta(seconds=2)) == set()


def test_a_stored_budget_that_is_not_valid_is_named(ledger: Ledger, settings: Settings) -> None:
    secret, key = create_key(ledger, settings, "support")
    with ledger.write() as connection:
        connection.execute(text("""UPDATE api_keys SET budget = '{"daily_usd": -1}'"""))
    with pytest.raises(LedgerError, match=f"stored for {key.key_id} are not valid"):
        authenticate(ledger, secret)


def test_wrong_scopes_are_refused_with_what_would_be_right(
    ledger: Ledger, settings: Settings
) -> None:
    with pytest.raises(LedgerError, match="known are research, support"):
        create_key(ledger, settings, "sales")
    with pytest.raises(LedgerError, match=r"its endpoints are helpdesk, search, and '\*'"):
        create_key(ledger, settings, "support", ["helpdesk-batch"])
    with pytest.raises(LedgerError, match="at least one endpoint"):
        create_key(ledger, settings, "support", [])
    with pytest.raises(LedgerError, match="factory keys list"):
        revoke(ledger, "key-none")
    assert list_keys(ledger) == []


def test_a_commit_by_anybody_is_noticed_once(ledger: Ledger, settings: Settings, url: str) -> None:
    sqlite = url.startswith("sqlite")
    ledger.changed()
    assert ledger.changed() is not sqlite
    create_key(ledger, settings, "support")
    assert ledger.changed()
    assert ledger.changed() is not sqlite
