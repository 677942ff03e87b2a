"""Calibrations: thresholds found from labelled data, kept with what they hold for.

    save(ledger, Calibration(kind="semantic", scope="support/helpdesk", subject="smollm2@3",
                             detail={"threshold": 0.93, "bound": 0.008}, created_at=now))
    newest(ledger, "semantic", "support/helpdesk")

None is ever changed; the newest of a kind and scope holds, and only while its `subject` (model
versions, the embedder's hash) is what runs. Each is sealed in the audit log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import select

from factory.ledger.audit import Event, fingerprint, pledge, seal
from factory.ledger.errors import LedgerError
from factory.ledger.schema import CALIBRATIONS
from factory.ledger.store import Ledger
from factory.ledger.text import check_name

Kind = Literal["semantic", "confidence", "router"]
MAX_DETAIL_BYTES = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Thresholds, and what they hold for. Raises `LedgerError` for what makes no sense."""

    kind: Kind
    scope: str
    """The tenant or endpoint it is for."""
    subject: str
    """The model versions or the embedder's hash it holds for."""
    detail: Mapping[str, Any]
    """The thresholds and how they were found, as plain JSON."""
    created_at: datetime
    id: int | None = None
    """Position in the log; None until it is saved."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise LedgerError(f"kind must be one of {', '.join(get_args(Kind))}, not {self.kind!r}")
        check_name("a calibration's scope", self.scope)
        check_name("a calibration's subject", self.subject)
        if not isinstance(self.created_at, datetime) or self.created_at.tzinfo is None:
            raise LedgerError(
                f"created_at must be a datetime with a time zone, not {self.created_at!r}"
            )
        try:
            text = json.dumps(self.detail, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise LedgerError(
                f"a calibration's detail must be plain JSON without NaN: {error}"
            ) from error
        if not text.startswith("{") or len(text) > MAX_DETAIL_BYTES:
            raise LedgerError(
                f"a calibration's detail must be an object of at most {MAX_DETAIL_BYTES} bytes"
            )
        object.__setattr__(self, "detail", json.loads(text))
        object.__setattr__(self, "created_at", self.created_at.astimezone(UTC))

    @property
    def digest(self) -> str:
        """What the audit log keeps of it."""
        content = (self.id, self.created_at, self.kind, self.scope, self.subject, self.detail)
        return fingerprint(content)

    def holds_for(self, subject: str) -> bool:
        """True when what runs now is what it was found for."""
        return self.subject == subject


def save(ledger: Ledger, calibration: Calibration, actor: str = "system") -> Calibration:
    """Append a calibration; returns it with its `id`. Raises `LedgerError`."""
    if calibration.id is not None:
        raise LedgerError(f"calibration {calibration.id} is saved already; save a new one")
    row = {item.name: getattr(calibration, item.name) for item in fields(calibration)}
    del row["id"]
    insert = CALIBRATIONS.insert().values(row).returning(CALIBRATIONS.c.id)
    with ledger.write() as connection:
        saved = replace(calibration, id=connection.execute(insert).scalar_one())
        seal(connection, [_event(saved, actor)])
    return saved


def newest(ledger: Ledger, kind: Kind, scope: str) -> Calibration | None:
    """The calibration of a kind and scope that was saved last; None when there is none."""
    query = select(CALIBRATIONS).where(CALIBRATIONS.c.kind == kind, CALIBRATIONS.c.scope == scope)
    with ledger.read() as connection:
        row = connection.execute(query.order_by(CALIBRATIONS.c.id.desc()).limit(1)).first()
    return None if row is None else Calibration(**row._asdict())


def _event(saved: Calibration, actor: str) -> Event:
    assert saved.id is not None, "it was saved"
    return Event(
        created_at=saved.created_at,
        actor=actor,
        action=f"calibration.{saved.kind}",
        subject=saved.scope,
        detail=pledge(saved.id, saved.digest) | {"holds_for": saved.subject},
    )
