"""The line end to end, as a user meets it: tune, judge, promote, serve, account.

The tests run in order: the first find the base served, the later ones the promoted adapter.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from factory.cluster.errors import ClusterError
from factory.cluster.local import require
from pipelines import helpdesk
from tests.line import STEPS, Line

pytestmark = [pytest.mark.ray, pytest.mark.engine]

QUESTION = helpdesk.prompt("Return the cosine of the given number of radians as a float.")


@pytest.fixture(scope="module")
def key(line: Line) -> str:
    return line.factory.create_key("support", ["helpdesk"])[0]


@pytest.fixture
def client(line: Line, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{line.url}/v1", api_key=key, max_retries=0)


def _ask(client: openai.OpenAI, **fields: Any) -> Any:
    body = {"model": "helpdesk", "messages": QUESTION, "max_tokens": 6, "temperature": 0}
    return client.chat.completions.with_raw_response.create(**(body | fields))


def test_the_base_answers_and_says_so(client: openai.OpenAI) -> None:
    reply = _ask(client)

    assert reply.parse().choices[0].message.content
    assert reply.headers["x-factory-model"] == "smollm2-135m"
    assert reply.headers["x-factory-tier"] == "1"
    assert reply.headers["x-factory-cache"] == "miss"
    assert float(reply.headers["x-factory-cost-usd"]) > 0


def test_a_repeat_comes_from_the_cache_for_nothing(client: openai.OpenAI) -> None:
    first, again = _ask(client), _ask(client)

    assert again.headers["x-factory-cache"] == "hit"
    assert again.headers["x-factory-tier"] == "0"
    assert float(again.headers["x-factory-cost-usd"]) == 0
    assert again.parse().choices[0].message.content == first.parse().choices[0].message.content


def test_a_stream_says_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    question = [{"role": "user", "content": "Count from one to five."}]
    fields = {"messages": question, "max_tokens": 8}
    stream = client.chat.completions.create(
        model="helpdesk",
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"Cache-Control": "no-store"},
        **fields,
    )
    chunks = list(stream)
    whole = _ask(client, extra_headers={"Cache-Control": "no-store"}, **fields).parse()

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_confidence_is_judged_and_a_missing_premium_is_labelled(client: openai.OpenAI) -> None:
    reply = _ask(client, messages=[{"role": "user", "content": "Invent an unlikely name."}])

    assert reply.headers["x-factory-degraded"] == "true"
    assert "confidence" in reply.headers["x-factory-route-reason"]
    assert "models.premium has no base_url or api_key" in reply.headers["x-factory-route-reason"]


def test_every_answer_is_in_the_ledger_with_its_parts(line: Line, client: openai.OpenAI) -> None:
    reply = _ask(client, extra_headers={"Cache-Control": "no-store"})
    request_id = reply.headers["x-factory-request-id"]

    # Asked over HTTP it is there at once; in the database a moment later.
    told = httpx.get(
        f"{line.url}/v1/requests/{request_id}",
        headers={"authorization": f"Bearer {client.api_key}"},
    )
    assert told.json()["request_id"] == request_id
    found = line.factory.ledger.request(request_id)
    assert found is not None
    record, charges = found
    usage = reply.parse().usage
    price = line.factory.settings.models["smollm2-135m"].price
    assert record.team == "support"
    assert record.endpoint == "helpdesk"
    assert (record.prompt_tokens, record.completion_tokens) == (
        usage.prompt_tokens,
        usage.completion_tokens,
    )
    assert sum(charge.cost_nusd for charge in charges) == price.nano_usd(
        usage.prompt_tokens, usage.completion_tokens
    )
    assert record.top_tier_nusd > record.cost_nusd
    assert request_id in str(line.factory.explain(request_id))


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"model": "helpdesk", "messages": [', 400, "JSON"),
        (b'{"model": "helpdesk"}', 400, "messages"),
        (b'{"model": "gpt-404", "messages": [{"role": "user", "content": "x"}]}', 404, "gpt-404"),
        (
            b'{"model": "helpdesk-batch", "messages": [{"role": "user", "content": "x"}]}',
            403,
            "helpdesk-batch",
        ),
        (
            b'{"model": "helpdesk", "messages": [{"role": "user", "content": "'
            + b"word " * 2000
            + b'"}]}',
            400,
            "context",
        ),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    line: Line, key: str, body: bytes, status: int, says: str
) -> None:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    reply = httpx.post(f"{line.url}/v1/chat/completions", content=body, headers=headers)

    assert reply.status_code == status
    assert says in reply.json()["error"]["message"]


def test_an_invalid_key_is_refused(line: Line) -> None:
    client = openai.OpenAI(base_url=f"{line.url}/v1", api_key="sk-factory-no", max_retries=0)

    with pytest.raises(openai.AuthenticationError, match="unknown or revoked"):
        _ask(client)


def test_nothing_listens_beyond_loopback(line: Line) -> None:
    assert line.url
    head = psutil.Process(require(line.factory.settings).pid)
    listening = {
        connection.laddr.ip
        for process in [head, *head.children(recursive=True)]
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }

    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_a_second_up_is_refused_and_the_first_goes_on(line: Line) -> None:
    url = line.url
    with pytest.raises(ClusterError, match="up already"):
        line.factory.up()

    assert httpx.get(f"{url}/readyz", timeout=10).status_code == 200


def test_a_port_in_use_is_said_before_anything_starts(line: Line, tmp_path: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file = tmp_path / "factory.yaml"
        text = (line.factory.settings.home / "factory.yaml").read_text("utf-8")
        file.write_text(text.replace("port: 0", f"port: {taken.getsockname()[1]}"), "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "factory.cli", "--config", str(file), "up"],
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_tuning_by_plain_ray_job_submit_learns_and_the_gate_promotes(line: Line) -> None:
    assert line.tuned["steps"] == STEPS
    assert Path(line.tuned["adapter"]).is_relative_to(line.factory.settings.home)
    decision = line.factory.promote("helpdesk", line.judged["version"])

    assert decision.passed, decision.reasons
    assert line.judged["candidate"]["accuracy"] > line.judged["base"]["accuracy"]
    champion = line.factory.champion("helpdesk")
    assert champion is not None
    assert champion.lineage.data_hash != "unknown"
    assert champion.lineage.code.commit != ""


def test_the_promoted_adapter_is_served_and_the_cache_forgets(
    line: Line, client: openai.OpenAI
) -> None:
    before = _ask(client).parse().choices[0].message.content
    version = line.judged["version"]
    line.factory.promote("helpdesk", version)
    assert line.factory.deploy().url == line.url, "a roll-over keeps the address"

    reply = _ask(client)
    assert reply.headers["x-factory-model"] == f"smollm2-135m:helpdesk@{version}"
    assert reply.headers["x-factory-cache"] == "miss"
    after = reply.parse().choices[0].message.content
    assert after != before
    assert len(after.split()) == 1, "the tuned model answers with a module's name"
