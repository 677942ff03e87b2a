"""The demo's traffic: deterministic, mixed as promised, malformed where it says so."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from factory.evaluation.suite import Case
from pipelines.traffic import Reply, Request, mix


def _cases(count: int = 60) -> list[Case]:
    return [
        Case.model_validate(
            {
                "id": f"m.f{index}",
                "messages": [
                    {"role": "system", "content": "Which module?"},
                    {"role": "user", "content": f"Return the {index}th thing."},
                ],
                "expected": "json",
            }
        )
        for index in range(count)
    ]


def test_the_same_seed_gives_the_same_traffic() -> None:
    assert mix(_cases(), 200, 3) == mix(_cases(), 200, 3)
    assert mix(_cases(), 200, 3) != mix(_cases(), 200, 4)


def test_every_kind_and_both_endpoints_occur() -> None:
    requests = mix(_cases(), 200, 3)

    kinds = Counter(request.kind for request in requests)
    assert set(kinds) == {"easy", "repeat", "hard", "stream", "malformed"}
    assert abs(sum(kinds.values()) - 200) <= 3
    assert {request.endpoint for request in requests} == {"helpdesk", "helpdesk-batch"}


def test_a_repeat_is_the_same_bytes_as_an_easy_one() -> None:
    requests = mix(_cases(), 200, 3)

    easy = {request.content for request in requests if request.kind == "easy"}
    assert all(request.content in easy for request in requests if request.kind == "repeat")


def test_malformed_requests_are_what_they_say() -> None:
    faulty = {
        request.fault: request for request in mix(_cases(), 200, 3) if request.kind == "malformed"
    }

    with pytest.raises(json.JSONDecodeError):
        json.loads(faulty["invalid JSON"].content)
    assert "messages" not in json.loads(faulty["no messages"].content)
    assert faulty["invalid key"].want_status == 401
    assert all(request.want_status >= 400 for request in faulty.values())


def test_a_reply_is_correct_when_it_says_the_expected_name() -> None:
    request = Request(kind="easy", endpoint="helpdesk", content=b"{}", expected="json")

    def reply(text: str, status: int = 200) -> Reply:
        return Reply(request=request, status=status, latency_ms=1, text=text)

    assert reply(" JSON\n").correct
    assert not reply("xml").correct
    assert not reply("json", status=503).correct
