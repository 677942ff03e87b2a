"""Alerts from a process without an event loop reach a webhook, and one that fails costs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest

from factory.config import Alerts
from factory.ledger.alerts import Alert
from factory.telemetry.webhook import Messenger

ALERT = Alert(
    scope="team:support",
    window="month",
    starts_at=datetime(2026, 11, 1, tzinfo=UTC),
    fraction=0.8,
    created_at=datetime(2026, 11, 23, tzinfo=UTC),
    spent_nusd=81_000_000_000,
    limit_nusd=100_000_000_000,
)


class Ear(BaseHTTPRequestHandler):
    heard: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append(json.loads(body))
        self.send_response(204 if self.path == "/alerts" else 500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Ear)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    Ear.heard.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_alerts_are_posted_in_order(url: str, caplog: pytest.LogCaptureFixture) -> None:
    messenger = Messenger(Alerts(webhook=f"{url}/alerts"))
    for _ in range(2):
        messenger.tell(ALERT)
    messenger.close()
    assert [said["scope"] for said in Ear.heard] == ["team:support"] * 2
    assert "80% is passed" in Ear.heard[0]["message"]
    assert "did not take it" not in caplog.text


@pytest.mark.parametrize("path", ["/elsewhere", None])
def test_a_webhook_that_fails_is_in_the_log(
    url: str, path: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    messenger = Messenger(Alerts(webhook="http://[bad" if path is None else url + path))
    messenger.tell(ALERT)
    messenger.close()
    assert "the alert webhook did not take it" in caplog.text


def test_without_a_webhook_nothing_is_posted(caplog: pytest.LogCaptureFixture) -> None:
    messenger = Messenger(Alerts())
    messenger.tell(ALERT)
    messenger.close()
    assert "80% is passed" in caplog.text
