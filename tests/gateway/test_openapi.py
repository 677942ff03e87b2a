"""Whatever the OpenAPI document allows or forbids, the gateway answers as it says there."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

EXAMPLES = {GenerationMode.POSITIVE: 12, GenerationMode.NEGATIVE: 6}
"""Requests to each operation."""

BY_TASK = {"/v1/embeddings": "search", "/v1/vector_stores": "search"}
"""Endpoints for routes that the endpoint `cheap` does not serve."""

load_all_checks()
CONFORMS = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    ]
)


def conforms(url: str, secret: str, mode: GenerationMode) -> list[str]:
    """Ask every operation; returns their names. Raises what schemathesis finds."""
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    headers = {"Authorization": f"Bearer {secret}"}
    seen = []
    for found in document.get_all_operations():
        operation = found.ok()
        seen.append(operation.label)

        @settings(
            max_examples=EXAMPLES[mode],
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            # A name made up by chance only ever leads to 404.
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = BY_TASK.get(case.path, "cheap")
            case.call_and_validate(headers=headers, checks=CONFORMS, timeout=20)

        # An operation without any input has none that could be wrong.
        with contextlib.suppress(Unsatisfiable):
            ask()
    return seen


@pytest.mark.parametrize("mode", list(EXAMPLES))
async def test_every_route_answers_as_its_document_says(world, mode):
    asked = await asyncio.to_thread(conforms, world.url, world.secret, mode)
    assert {"POST /v1/chat/completions", "GET /v1/models", "GET /readyz"} <= set(asked)
    if mode is GenerationMode.POSITIVE:
        assert any(request.http_status == 200 for request in world.all_requests())


async def test_the_document_names_every_field_and_the_key(world):
    document = (await world.http.get("/openapi.json")).json()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    body = chat["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "tools", "response_format", "n", "logit_bias"} <= set(body["properties"])
    assert body["additionalProperties"] is False
    assert chat["security"]
    assert {"200", "202", "400", "401", "403", "404", "413", "429", "503"} <= set(chat["responses"])
    assert "$defs" not in str(document["paths"])
