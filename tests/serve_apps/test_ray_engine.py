"""What the gateway makes of a call of an engine that broke."""

from __future__ import annotations

import asyncio

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorUnavailableError, TaskCancelledError

from factory.gateway.engine import EngineError
from serve_apps.ray_engine import translated


@pytest.mark.parametrize(
    "error",
    [
        ActorUnavailableError("it is gone", b"\0" * 16),
        AioRpcError(StatusCode.RESOURCE_EXHAUSTED, Metadata(), Metadata(), "message too large"),
    ],
    ids=["actor", "grpc"],
)
def test_a_call_that_broke_may_be_asked_again(error: Exception) -> None:
    with pytest.raises(EngineError, match="not answering") as caught, translated():
        raise error
    assert (caught.value.status, caught.value.retryable) == (503, True)


def test_a_cancelled_call_is_a_cancellation() -> None:
    with pytest.raises(asyncio.CancelledError), translated():
        raise TaskCancelledError
