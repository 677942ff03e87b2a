"""API keys: who is calling, which team pays, what the key may do and how much.

    secret, key = create_key(ledger, settings, "support", ["*"])   # the secret is shown once
    key = authenticate(ledger, secret)                             # None: unknown or revoked
    gone = revoked_since(ledger, a_moment_ago)                     # to forget keys that are cached

Only the SHA-256 of a secret is stored. That is enough for a secret of 256 random bits, which
nobody can guess from its hash, and costs a request microseconds where a password hash would cost
it a tenth of a second.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from pydantic import ValidationError
from sqlalchemy import Row, bindparam, select

from factory.config import Budget, Limits, Settings
from factory.ledger.errors import LedgerError
from factory.ledger.schema import API_KEYS
from factory.ledger.store import Ledger

Role = Literal["inference", "reviewer", "metrics"]
"""`inference` asks models, `reviewer` decides what waits for a person, `metrics` reads `/metrics`
where that is not open: the figures of all teams."""
ROLES: tuple[Role, ...] = get_args(Role)

PREFIX = "sk-factory-"
ALL = "*"
_LONGEST = 200
_COLUMNS = [column for column in API_KEYS.c if column.name != "hash"]
_BY_HASH = select(API_KEYS.c.hash, *_COLUMNS).where(API_KEYS.c.hash == bindparam("digest"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key without its secret."""

    key_id: str
    prefix: str
    """The first characters of the secret, to recognize it by."""
    team: str
    endpoints: tuple[str, ...]
    """Names of endpoints; `("*",)` means all of the team."""
    created_at: datetime
    revoked_at: datetime | None = None
    roles: tuple[Role, ...] = ("inference",)
    """What the key may do, in the order of `ROLES`."""
    budget: Budget = field(default_factory=Budget)
    """Money that may be spent with this key, within its team's and endpoint's budgets."""
    limits: Limits = field(default_factory=Limits)
    """Bounds on the key's requests, within its team's and endpoint's limits."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values; of budget and limits only what is set."""
        return {
            "key_id": self.key_id,
            "prefix": self.prefix,
            "team": self.team,
            "endpoints": list(self.endpoints),
            "roles": list(self.roles),
            "budget": _plain(self.budget),
            "limits": _plain(self.limits),
            "created_at": self.created_at.isoformat(),
            "revoked_at": self.revoked_at and self.revoked_at.isoformat(),
        }


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def create_key(
    ledger: Ledger,
    settings: Settings,
    team: str,
    endpoints: Sequence[str] = (ALL,),
    *,
    roles: Sequence[str] = ("inference",),
    budget: Budget = Budget(),
    limits: Limits = Limits(),
    clock: Callable[[], datetime] = now,
    token: Callable[[int], str] = secrets.token_urlsafe,
) -> tuple[str, ApiKey]:
    """Make a key for `team`; returns the secret, which cannot be shown again, and the key.

    Raises `LedgerError` for an unknown team or role, or an endpoint that is not the team's.
    """
    if team not in settings.teams:
        raise LedgerError(
            f"'{team}' is not under teams in factory.yaml; known are {_listed(settings.teams)}"
        )
    own = [name for name, endpoint in settings.endpoints.items() if endpoint.team == team]
    if not endpoints:
        raise LedgerError("a key needs at least one endpoint; '*' means all of the team")
    if strangers := [name for name in endpoints if name != ALL and name not in own]:
        raise LedgerError(
            f"'{strangers[0]}' is not an endpoint of team '{team}'; its endpoints are "
            f"{_listed(own)}, and '*' means all of them"
        )
    if strangers := [role for role in roles if role not in ROLES]:
        raise LedgerError(f"'{strangers[0]}' is not a role; the roles are {', '.join(ROLES)}")
    if not roles:
        raise LedgerError(f"a key needs at least one role of {', '.join(ROLES)}")
    secret = PREFIX + token(32)
    key = ApiKey(
        key_id=f"key-{_hash(secret)[:12]}",
        prefix=secret[: len(PREFIX) + 4],
        team=team,
        endpoints=(ALL,) if ALL in endpoints else tuple(dict.fromkeys(endpoints)),
        created_at=clock(),
        roles=tuple(role for role in ROLES if role in roles),
        budget=budget,
        limits=limits,
    )
    with ledger.write() as connection:
        connection.execute(
            API_KEYS.insert().values(
                key_id=key.key_id,
                hash=_hash(secret),
                prefix=key.prefix,
                team=key.team,
                endpoints=list(key.endpoints),
                created_at=key.created_at,
                revoked_at=None,
                roles=list(key.roles),
                budget=_plain(key.budget),
                limits=_plain(key.limits),
            )
        )
    return secret, key


def authenticate(ledger: Ledger, secret: str) -> ApiKey | None:
    """The key that `secret` belongs to, or None when there is none or it was revoked.

    One look-up by the hash's index. How long it takes says nothing about other secrets, since
    only hashes are compared, the last time in constant time.
    """
    if not secret.startswith(PREFIX) or len(secret) > _LONGEST or not secret.isascii():
        return None
    digest = _hash(secret)
    with ledger.read() as connection:
        row = connection.execute(_BY_HASH, {"digest": digest}).first()
    if row is None or not hmac.compare_digest(row.hash, digest) or row.revoked_at is not None:
        return None
    return _key(row)


def list_keys(ledger: Ledger, team: str | None = None) -> list[ApiKey]:
    """All keys, revoked ones too, of one team or of all, oldest first."""
    query = select(*_COLUMNS).order_by(API_KEYS.c.created_at, API_KEYS.c.key_id)
    if team is not None:
        query = query.where(API_KEYS.c.team == team)
    with ledger.read() as connection:
        return [_key(row) for row in connection.execute(query)]


def revoke(ledger: Ledger, key_id: str, *, clock: Callable[[], datetime] = now) -> ApiKey:
    """Revoke a key at once and for ever; again is no error. Raises `LedgerError` if unknown."""
    with ledger.write() as connection:
        row = connection.execute(select(*_COLUMNS).where(API_KEYS.c.key_id == key_id)).first()
        if row is None:
            raise LedgerError(f"there is no key '{key_id}'; `factory keys list` shows all")
        key = _key(row)
        if key.revoked_at is None:
            key = replace(key, revoked_at=clock())
            change = API_KEYS.update().where(API_KEYS.c.key_id == key_id)
            connection.execute(change.values(revoked_at=key.revoked_at))
    return key


def revoked_since(ledger: Ledger, moment: datetime) -> frozenset[str]:
    """Ids of the keys revoked at or after `moment`, to drop them from a cache of checked keys.

    One query of a small table for all keys together, so that it can be asked often.
    """
    query = select(API_KEYS.c.key_id).where(API_KEYS.c.revoked_at >= moment)
    with ledger.read() as connection:
        return frozenset(connection.scalars(query))


def _plain(section: Budget | Limits) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_defaults=True)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Row[Any]) -> ApiKey:
    try:
        budget, limits = Budget.model_validate(row.budget), Limits.model_validate(row.limits)
    except ValidationError as error:
        raise LedgerError(
            f"the budget or limits stored for {row.key_id} are not valid: "
            f"{error.errors()[0]['msg']}; revoke the key and make another"
        ) from error
    return ApiKey(
        key_id=row.key_id,
        prefix=row.prefix,
        team=row.team,
        endpoints=tuple(row.endpoints),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        roles=tuple(row.roles),
        budget=budget,
        limits=limits,
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
