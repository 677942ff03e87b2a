"""Who asks, and what may they use: bearer keys checked against the ledger, off the event loop.

key = await keys.check("Bearer sk-factory-...")    # ApiError 401
permit(settings, serving, pinned, key, "helpdesk", "generate")    # ApiError 400, 403, 404
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

from cachetools import TTLCache

from factory.config import Endpoint, Settings
from factory.gateway.clock import Clock
from factory.gateway.errors import ApiError
from factory.gateway.served import Pinned, Served, Serving
from factory.ledger.errors import LedgerError
from factory.ledger.keys import ApiKey, authenticate, revoked_since
from factory.ledger.store import Ledger

_log = logging.getLogger(__name__)

Task = Literal["generate", "embed"]

FRESH_S = 60.0
"""Seconds a checked key is believed unless it is revoked."""

LOOK_S = 0.1
"""Seconds between looks for revocations: about the longest time a revoked key still works."""

_OVERLAP = timedelta(seconds=30)
"""How far back a look goes: a revocation carries the time of the machine that made it."""


class Keys:
    """Checked keys, remembered so that the database is not asked for each request."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._fresh: TTLCache[bytes, ApiKey] = TTLCache(4096, FRESH_S, timer=clock.monotonic)

    async def check(self, authorization: str | None) -> ApiKey:
        """The key behind an `Authorization` header. Raises `ApiError` 401.

        Unknown keys are never remembered, so a key works from the moment it is created.
        """
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise _unauthorized(
                "missing_api_key", "send your key as 'Authorization: Bearer sk-factory-...'"
            )
        mark = hashlib.sha256(secret.encode()).digest()
        self._look()
        known = self._fresh.get(mark)
        if known is not None:
            return known
        key = await asyncio.to_thread(authenticate, self._ledger, secret)
        if key is None:
            raise _unauthorized(
                "invalid_api_key",
                "this API key is unknown or revoked; `factory keys create` makes one",
            )
        self._fresh[mark] = key
        return key

    def _look(self) -> None:
        """Begin to look for revocations, where it is time; nobody waits for it."""
        now = self._clock.monotonic()
        if self._fresh and now - self._looked_at >= LOOK_S and not self._looking:
            self._looked_at = now
            if not self._ledger.changed():
                return
            self._looking = asyncio.create_task(self._forget_revoked())

    async def _forget_revoked(self) -> None:
        try:
            since = self._clock.now() - _OVERLAP
            revoked = await asyncio.to_thread(revoked_since, self._ledger, since)
        except LedgerError as error:
            # Better nobody than somebody who may be revoked.
            _log.warning("revocations cannot be read, so keys are checked anew: %s", error)
            self._fresh.clear()
            return
        finally:
            self._looking = None
        for mark, key in list(self._fresh.items()):
            if key.key_id in revoked:
                del self._fresh[mark]


def _unauthorized(code: str, message: str) -> ApiError:
    return ApiError(401, code, message, headers={"WWW-Authenticate": "Bearer"})


def allows(key: ApiKey, name: str, endpoint: Endpoint) -> bool:
    """True when the endpoint belongs to the key's team and the key includes it."""
    return endpoint.team == key.team and ("*" in key.endpoints or name in key.endpoints)


def usable(settings: Settings, key: ApiKey) -> list[str]:
    """Names of the endpoints the key may use."""
    return [name for name, endpoint in settings.endpoints.items() if allows(key, name, endpoint)]


def permit(
    settings: Settings, serving: Serving, pinned: Pinned, key: ApiKey, name: str, task: Task
) -> tuple[str, Endpoint, Mapping[int, Served]]:
    """The endpoint that `model` names, as it is or pinned to one model, and who answers for it.

    A model may be pinned by a key that includes an endpoint with that model on its ladder, and the
    request is charged to that endpoint. Raises `ApiError` 404 for an unknown name, 403 for a closed
    one, 400 for one that does something else.
    """
    if "inference" not in key.roles:
        raise ApiError(
            403,
            "role_missing",
            "this key has not the role 'inference', so it may not ask models; "
            "`factory keys create --role inference --role reviewer` makes one that may do both",
        )
    endpoint, one = settings.endpoints.get(name), pinned.get(name)
    if endpoint is not None and allows(key, name, endpoint):
        if endpoint.task != task:
            raise _wrong_task(name, endpoint.task)
        return name, endpoint, serving.get(name, {})
    if endpoint is None and one is not None:
        for own in usable(settings, key):
            through = settings.endpoints[own]
            if one.model in dict(settings.ladder(through)):
                if through.task != task:
                    raise _wrong_task(name, through.task)
                tiers = (0, one.tier) if 0 in through.tiers else (one.tier,)
                return own, through.model_copy(update={"tiers": tiers}), {one.tier: one}
    choices = ", ".join(usable(settings, key)) or "none"
    if endpoint is None and one is None:
        raise ApiError(
            404,
            "model_not_found",
            f"there is no endpoint or model '{name[:64]}'; this key may use: {choices}",
            param="model",
        )
    raise ApiError(
        403,
        "endpoint_not_allowed",
        f"this key does not include '{name}'; it may use: {choices}",
        param="model",
    )


def _wrong_task(name: str, task: str) -> ApiError:
    route = "/v1/embeddings" if task == "embed" else "/v1/chat/completions"
    return ApiError(
        400, "wrong_route", f"'{name[:64]}' answers at {route}, not here", param="model"
    )
