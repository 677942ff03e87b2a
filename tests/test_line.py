"""The line end to end, as a user meets it: tune, judge, promote, serve, account.

The tests run in order: the first find the base served, the later ones the promoted adapter.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

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


def test_prometheus_sees_what_the_engine_counts(line: Line, client: openai.OpenAI) -> None:
    _ask(client)
    deadline = time.monotonic() + 60
    counted: dict[str, float] = {}
    # An engine that is busy is left out of a scrape.
    while "vllm:generation_tokens_total" not in counted:
        assert time.monotonic() < deadline, "no scrape had the engine"
        text = httpx.get(f"{line.url}/metrics", timeout=30).text
        counted = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("deployment") == "engine-smollm2-135m-helpdesk"
        }
    assert counted["factory_engine_replicas"] == 1
    assert counted["vllm:generation_tokens_total"] > 0
    assert counted["vllm:time_to_first_token_seconds_count"] > 0
    assert counted["vllm:request_prompt_tokens_sum"] > counted["vllm:generation_tokens_total"]


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


@dataclass
class Asking:
    """Somebody who asks the same question without pause, as long as the block lasts."""

    client: openai.OpenAI
    answers: list[tuple[str, str]] = field(default_factory=list)
    """Model and text of each answer."""
    longest_s: float = 0.0

    def __enter__(self) -> Asking:
        self._going = True
        self._pool = ThreadPoolExecutor(1)
        self._loop = self._pool.submit(self._ask_on)
        return self

    def __exit__(self, *failure: object) -> None:
        self._going = False
        self._loop.result()
        self._pool.shutdown()

    def _ask_on(self) -> None:
        while self._going:
            begun = time.monotonic()
            reply = _ask(self.client, extra_headers={"Cache-Control": "no-store"})
            self.longest_s = max(self.longest_s, time.monotonic() - begun)
            text = reply.parse().choices[0].message.content
            self.answers.append((reply.headers["x-factory-model"], text))
            # The rest of the cores is for the engine that starts.
            time.sleep(0.2)


def _start_of_the_engine() -> float:
    """Seconds from the start of the only engine's process until it could answer."""
    from ray import serve

    (app,) = [name for name in serve.status().applications if name.startswith("factory:engine-")]
    handle = serve.get_deployment_handle(app.split(":")[1], app)
    return float(handle.options(method_name="state").remote().result()["process_s"])


def test_the_promoted_adapter_is_served_and_the_cache_forgets(
    line: Line, key: str, client: openai.OpenAI, ray_cluster: None
) -> None:
    before = _ask(client).parse().choices[0].message.content
    version = line.judged["version"]
    line.factory.promote("helpdesk", version)
    with Asking(openai.OpenAI(base_url=f"{line.url}/v1", api_key=key)) as asking:
        assert line.factory.deploy().url == line.url, "a roll-over keeps the address"

    base, tuned = "smollm2-135m", f"smollm2-135m:helpdesk@{version}"
    models = [model for model, _ in asking.answers]
    assert models == sorted(models), "once the new version answers, the old one does not"
    assert set(models) == {base, tuned}
    assert len({text for model, text in asking.answers if model == base}) == 1
    assert {len(text.split()) for model, text in asking.answers if model == tuned} == {1}
    assert asking.longest_s < _start_of_the_engine(), "nobody waited while the new one started"

    reply = _ask(client)
    assert reply.headers["x-factory-model"] == f"smollm2-135m:helpdesk@{version}"
    assert reply.headers["x-factory-cache"] == "miss"
    after = reply.parse().choices[0].message.content
    assert after != before
    assert len(after.split()) == 1, "the tuned model answers with a module's name"


def test_a_version_that_does_not_start_leaves_what_was_served(
    line: Line, client: openai.OpenAI, ray_cluster: None, tmp_path: Path
) -> None:
    import ray
    from ray import serve

    from serve_apps.applications import Applications
    from serve_apps.up import resolve

    before = set(serve.status().applications)
    planned = resolve(line.factory.settings, line.factory.ledger)
    ((name, spec),) = planned.engines.items()
    broken = replace(planned, engines={name: replace(spec, path=str(tmp_path))})
    applications = Applications(
        broken, cores=2, capacity=ray.cluster_resources(), gateways=1, say=lambda _: None
    )
    with pytest.raises(RuntimeError, match=f"{name} does not start: .*has no model"):
        applications.roll_over(lambda _: pytest.fail("the gateway must not be switched"))

    assert set(serve.status().applications) == before
    reply = _ask(client, extra_headers={"Cache-Control": "no-store"})
    assert reply.headers["x-factory-model"].startswith("smollm2-135m:helpdesk@")
