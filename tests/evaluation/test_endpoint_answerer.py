from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from factory.evaluation.endpoint_answerer import EndpointAnswerer
from factory.evaluation.harness import run
from factory.evaluation.results import EvaluationError
from factory.evaluation.suite import Suite


class Provider(ThreadingHTTPServer):
    """An OpenAI-compatible server that answers `json`, or fails where it is told to."""

    fails_on = ""
    seen: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Provider
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append({**body, "key": self.headers["authorization"]})
        failing = self.server.fails_on and self.server.fails_on in body["messages"][-1]["content"]
        reply = {"error": {"message": "out of order", "type": "x", "code": "y"}}
        if not failing:
            logprobs = [{"token": t, "logprob": math.log(0.25), "top_logprobs": []} for t in "ab"]
            reply = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": "json"},
                        "logprobs": {"content": logprobs},
                    }
                ],
                "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
            }
        content = json.dumps(reply).encode()
        self.send_response(400 if failing else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = Provider(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def answerer(provider: Provider) -> EndpointAnswerer:
    return EndpointAnswerer(
        f"http://127.0.0.1:{provider.server_port}/v1", "secret", "helpdesk", concurrency=3
    )


def test_every_case_is_asked_once_in_any_order(provider: Provider, suite: Suite) -> None:
    done: list[int] = []
    results = run(suite, answerer(provider), progress=done.append)
    assert sum(done) == len(provider.seen) == 12
    assert results.summary.accuracy == pytest.approx(4 / 12)
    assert [case.id for case in results.cases] == [case.id for case in suite.cases]
    first = results.cases[0]
    assert (first.prompt_tokens, first.completion_tokens) == (7, 2)
    assert first.confidence == pytest.approx(0.25)
    asked = provider.seen[0]
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("helpdesk", 0, 8)
    assert asked["key"] == "Bearer secret"
    assert results.summary.answered_by.model_hash is None


def test_a_failing_request_is_wrong_and_says_why(provider: Provider, suite: Suite) -> None:
    provider.fails_on = "number 3"
    results = run(suite, answerer(provider))
    failed = [case for case in results.cases if case.error]
    assert [case.id for case in failed] == ["json.3"]
    assert "out of order" in (failed[0].error or "")
    assert (failed[0].score, results.summary.errors) == (False, 1)


def test_a_dead_endpoint_is_an_error_not_a_score(suite: Suite) -> None:
    dead = EndpointAnswerer("http://127.0.0.1:9/v1", "secret", "m", max_retries=0)
    with pytest.raises(EvaluationError, match=r"no case .* was answered.*Connection"):
        run(suite, dead)


def test_the_key_is_not_kept(provider: Provider, suite: Suite) -> None:
    results = run(suite, answerer(provider))
    assert "secret" not in results.summary.model_dump_json()
