"""A real gateway: real HTTP on loopback, real SQLite ledger, two scriptable providers."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from pydantic import SecretStr

from factory.config import Settings, parse
from factory.embedding.static import StaticEmbedder
from factory.gateway.app import build_app
from factory.gateway.clock import Clock
from factory.gateway.engine import EmbeddingEngine, EngineError
from factory.gateway.meaning import Meaning
from factory.gateway.patience import Patience
from factory.gateway.pipeline import Gateway
from factory.gateway.provider import OpenAIEngine
from factory.gateway.served import Served
from factory.ledger.budgets import configured
from factory.ledger.keys import create_key
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.store import Ledger, open_ledger
from factory.ledger.writer import LedgerWriter

sys.path.insert(0, str(Path(__file__).parent))
from provider_server import PREMIUM_KEY, Listening, Provider

CONFIG = """
teams: {support: {}, research: {}}
models:
  small:
    source: {path: weights}
    engine: vllm
    tier: 1
    price: {input_usd_per_mtok: 0.02, output_usd_per_mtok: 0.04}
    max_model_len: 64
  premium:
    source: {base_url: http://example.invalid/v1, model: frontier, api_key: unused}
    engine: openai
    tier: 3
    price: {input_usd_per_mtok: 2.5, output_usd_per_mtok: 10}
  encoder:
    source: {path: encoder}
    engine: encoder
    tier: 1
    price: {input_usd_per_mtok: 0.01, output_usd_per_mtok: 0}
endpoints:
  ladder: {team: support, tiers: [0, 1, 3]}
  cheap: {team: support, tiers: [0, 1]}
  fresh: {team: support, tiers: [1, 3]}
  swift: {team: support, tiers: [1, 3], target: {ttft_ms: 20}}
  secret: {team: support, tiers: [0, 1, 3], sensitivity: restricted}
  foreign: {team: research, tiers: [0, 1]}
  search: {team: support, task: embed, tiers: [0, 1]}
routing: {confidence_threshold: 0.5, hard_prompt_tokens: 30, hard_patterns: ["(?i)prove that"]}
gateway: {max_body_bytes: 20000}
"""


def count_words(turns: Sequence[Any]) -> int:
    """A tokenizer that is easy to reckon with: a word is a token."""
    return sum(len(turn["content"].split()) for turn in turns)


class Spelling:
    """Embeds a text by its letters; a text with the word `fail` fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def embed(self, texts: Sequence[str]) -> tuple[Any, list[int]]:
        self.asked += texts
        if any("fail" in text for text in texts):
            raise EngineError(503, "the encoder is down", retryable=True)
        counts = [[text.count(letter) + 0.1 for letter in "abcdefgh"] for text in texts]
        vectors = np.array(counts, dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / lengths, [len(text.split()) for text in texts]

    async def check(self) -> None:
        pass


@dataclass
class World:
    """Everything a test wants to look at or change."""

    settings: Settings
    ledger: Ledger
    writer: LedgerWriter
    gateway: Gateway
    serving: dict[str, dict[int, Served]]
    small: Provider
    premium: Provider
    url: str
    secret: str
    http: httpx.AsyncClient = field(repr=False)
    client: openai.AsyncOpenAI = field(repr=False)

    def recorded(self, response: httpx.Response) -> tuple[RequestRecord, list[ChargeRecord]]:
        found = self.ledger.request(response.headers["x-factory-request-id"])
        assert found is not None
        return found

    async def ask(self, text: str = "which module?", model: str = "ladder", **fields: Any) -> Any:
        headers = fields.pop("headers", {})
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    def key(self, team: str = "support", **more: Any) -> dict[str, str]:
        """The header of a new key."""
        secret, _ = create_key(self.ledger, self.settings, team, **more)
        return {"Authorization": f"Bearer {secret}"}

    def all_requests(self) -> list[RequestRecord]:
        return list(self.ledger.requests())


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database to copy, since migrating takes longer than most tests here."""
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    open_ledger(f"sqlite:///{path}").close()
    return path


@asynccontextmanager
async def made(
    folder: Path,
    config: str = CONFIG,
    embedder: StaticEmbedder | None = None,
    version: str = "1",
    encoder: EmbeddingEngine | None = None,
) -> AsyncIterator[World]:
    """A world from a configuration; its ledger is `folder/ledger.db`, which may exist already.

    `version` is that of the small model's weights; `encoder` answers instead of a `Spelling`.
    """
    settings = parse(config, "test", folder, {})
    ledger = open_ledger(f"sqlite:///{folder / 'ledger.db'}")
    secret, _ = create_key(ledger, settings, "support")
    small, premium = Provider(), Provider(words=("asyncio", " surely"))
    engines = (
        OpenAIEngine(small.base_url, "small", SecretStr("none")),
        OpenAIEngine(premium.base_url, "frontier", SecretStr(PREMIUM_KEY)),
    )
    rungs = {
        1: Served(
            model="small",
            tier=1,
            version=version,
            label=f"small@{version}",
            price=settings.models["small"].price,
            engine=engines[0],
            max_model_len=settings.models["small"].max_model_len,
            count_tokens=count_words,
        ),
        3: Served(
            model="premium",
            tier=3,
            version="frontier",
            label="premium",
            price=settings.models["premium"].price,
            engine=engines[1],
            max_model_len=128_000,
            external=True,
        ),
    }
    embeds = Served(
        model="encoder",
        tier=1,
        version="1",
        label="encoder",
        price=settings.models["encoder"].price,
        embedder=encoder or Spelling(),
        max_model_len=256,
    )
    serving = {
        name: {tier: rungs[tier] for tier in endpoint.tiers if tier}
        if endpoint.task == "generate"
        else {1: embeds}
        for name, endpoint in settings.endpoints.items()
    }
    writer = LedgerWriter(ledger, budgets=configured(settings))
    gateway = Gateway(
        settings,
        ledger,
        writer,
        serving,
        pinned={"premium": rungs[3], "small": rungs[1]},
        meaning=embedder and Meaning(settings, ledger, embedder, Clock()),
        patience=Patience(retry_s=0.001, attempt_s=20, first_token_s=20, idle_s=20),
        jitter=lambda: 0.0,
    )
    listening = Listening(build_app(gateway))
    bearer = {"Authorization": f"Bearer {secret}"}
    async with (
        httpx.AsyncClient(base_url=listening.url, headers=bearer, timeout=30) as http,
        openai.AsyncOpenAI(base_url=f"{listening.url}/v1", api_key=secret, max_retries=0) as client,
    ):
        yield World(
            settings,
            ledger,
            writer,
            gateway,
            serving,
            small,
            premium,
            listening.url,
            secret,
            http,
            client,
        )
    for engine in engines:
        await engine.close()
    await asyncio.gather(listening.stop(), small.stop(), premium.stop())
    await gateway.drain()
    await writer.close()
    ledger.close()


@pytest.fixture
def folder(tmp_path: Path, empty_ledger: Path) -> Path:
    """Where a world may be made."""
    shutil.copy(empty_ledger, tmp_path / "ledger.db")
    return tmp_path


@pytest.fixture
async def world(folder: Path) -> AsyncIterator[World]:
    async with made(folder) as world:
        yield world
