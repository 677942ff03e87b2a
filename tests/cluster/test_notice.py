"""Interruption notices from a server that speaks the clouds' metadata protocols."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest

from factory.cluster.clouds.notice import Notice, read_aws, read_gcp, watch
from factory.cluster.errors import ClusterError


class Metadata(ThreadingHTTPServer):
    """IMDSv2 and GCP's metadata server: tokens and headers are demanded, as by the real ones."""

    answers: list[str | int]

    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def _say(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        self._say(200 if self.path == "/latest/api/token" and ttl else 400, "secret")

    def do_GET(self) -> None:
        aws = self.path == "/latest/meta-data/spot/instance-action"
        if aws and self.headers.get("X-aws-ec2-metadata-token") != "secret":
            return self._say(401)
        if not aws and self.headers.get("Metadata-Flavor") != "Google":
            return self._say(403)
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return self._say(answer) if isinstance(answer, int) else self._say(200, answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Metadata]:
    with Metadata(("127.0.0.1", 0), Handler) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_aws_announces_the_action_and_its_time(server: Metadata) -> None:
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    said = {"action": "terminate", "time": "2026-11-24T12:02:00Z"}
    server.answers = [404, json.dumps(said), "{}", 500]
    with httpx.Client(base_url=server.url()) as client:
        assert read_aws(client, now) is None
        assert read_aws(client, now) == Notice("terminate", 120.0)
        with pytest.raises(ClusterError, match="makes no sense"):
            read_aws(client, now)
        with pytest.raises(httpx.HTTPError):
            read_aws(client, now + timedelta(hours=1))


def test_gcp_says_true(server: Metadata) -> None:
    server.answers = ["FALSE", "TRUE"]
    with httpx.Client(base_url=server.url()) as client:
        assert read_gcp(client, datetime.now(UTC)) is None
        assert read_gcp(client, datetime.now(UTC)) == Notice("preempt", 30.0)


def test_the_watch_outlives_a_service_that_fails_and_a_drain_that_is_refused(
    server: Metadata,
) -> None:
    said = json.dumps({"action": "terminate", "time": "2020-01-01T00:00:00Z"})
    server.answers = [503, "nonsense", 404, said]
    acted: list[Notice] = []

    def act(found: Notice) -> None:
        acted.append(found)
        if len(acted) == 1:
            raise ClusterError("the head does not answer")

    found = watch("aws", act, base_url=server.url(), every_s=0)
    assert found == Notice("terminate", 0.0)  # the time is past: none is left, not less
    assert len(acted) == 2
