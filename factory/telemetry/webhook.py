"""Tells people about budgets from a process without an event loop: in the log, and by a webhook.

    messenger = Messenger(settings.alerts)
    messenger.tell(alert)
    messenger.close()                    # waits for the posts that are under way

The alert is in the ledger already; a webhook that does not answer delays nothing and loses nothing.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import httpx

from factory.config import Alerts
from factory.ledger.alerts import Alert

_log = logging.getLogger(__name__)
_TRIES = 3
_TIMEOUT_S = 5.0


class Messenger:
    """Passes alerts on, one after the other, in a thread of its own."""

    def __init__(self, alerts: Alerts) -> None:
        self._webhook = alerts.webhook
        self._posts = ThreadPoolExecutor(1, thread_name_prefix="alert")

    def tell(self, alert: Alert) -> None:
        """Log the alert, and post it where a webhook is configured."""
        _log.warning("budget alert: %s", alert.sentence)
        if self._webhook:
            self._posts.submit(self._post, alert)

    def close(self) -> None:
        """Wait for the posts that are under way."""
        self._posts.shutdown()

    def _post(self, alert: Alert) -> None:
        transport = httpx.HTTPTransport(retries=_TRIES)
        try:
            with httpx.Client(transport=transport, timeout=_TIMEOUT_S) as client:
                client.post(self._webhook, json=alert.as_dict()).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            _log.error("the alert webhook did not take it: %s", error)
