"""Tells people about budgets before they are overrun: in the log, and by a webhook.

    alerting = Alerting(settings.alerts)
    LedgerWriter(ledger, on_alert=alerting.tell)

The alert is in the ledger already; a webhook that does not answer delays nothing and loses nothing.
"""

from __future__ import annotations

import asyncio
import logging

import httpx

from factory.config import Alerts
from factory.ledger.alerts import Alert

_log = logging.getLogger(__name__)

_TRIES = 3
_TIMEOUT_S = 5.0


class Alerting:
    """Passes alerts on, in the background."""

    def __init__(self, alerts: Alerts) -> None:
        self._webhook = alerts.webhook
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, alert: Alert) -> None:
        """Log the alert, and post it where a webhook is configured."""
        _log.warning("budget alert: %s", alert.sentence)
        if self._webhook:
            task = asyncio.get_running_loop().create_task(self._post(alert))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait for the posts that are under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _post(self, alert: Alert) -> None:
        transport = httpx.AsyncHTTPTransport(retries=_TRIES)
        try:
            async with httpx.AsyncClient(transport=transport, timeout=_TIMEOUT_S) as client:
                reply = await client.post(self._webhook, json=alert.as_dict())
                reply.raise_for_status()
        except httpx.HTTPError as error:
            _log.error("the alert webhook did not take it: %s", error)
