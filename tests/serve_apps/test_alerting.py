"""Budget alerts reach a webhook, and one that fails costs nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from random import Random
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from factory.cluster.ports import free
from factory.config import Alerts
from factory.ledger.alerts import Alert
from serve_apps.alerting import Alerting
from serve_apps.listener import Listener

ALERT = Alert(
    scope="team:support",
    window="month",
    starts_at=datetime(2026, 11, 1, tzinfo=UTC),
    fraction=0.8,
    created_at=datetime(2026, 11, 23, tzinfo=UTC),
    spent_nusd=81_000_000_000,
    limit_nusd=100_000_000_000,
)


async def test_an_alert_is_posted_as_json() -> None:
    heard: list[Any] = []

    async def hear(request: Request) -> Response:
        heard.append(await request.json())
        return Response(status_code=204)

    port = free(1, Random())[0]
    listener = Listener(
        Starlette(routes=[Route("/alerts", hear, methods=["POST"])]), "127.0.0.1", port
    )
    await listener.start()
    alerting = Alerting(Alerts(webhook=f"http://127.0.0.1:{port}/alerts"))
    alerting.tell(ALERT)
    await alerting.drain()
    await listener.stop(1)
    (said,) = heard
    assert (said["scope"], said["fraction"]) == ("team:support", 0.8)
    assert "80% is passed" in said["message"]


async def test_a_webhook_that_does_not_answer_is_only_logged(caplog: Any) -> None:
    alerting = Alerting(Alerts(webhook=f"http://127.0.0.1:{free(1, Random())[0]}/"))
    alerting.tell(ALERT)
    async with asyncio.timeout(20):
        await alerting.drain()
    assert "did not take it" in caplog.text


async def test_without_a_webhook_an_alert_is_in_the_log(caplog: Any) -> None:
    Alerting(Alerts()).tell(ALERT)
    assert "team:support" in caplog.text
