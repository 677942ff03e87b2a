"""Vector stores through the gateway: a search, the same search again, and what exact search takes.

    python -m benchmarks.retrieval --texts train.csv --questions test.csv

Both files have a column `text`, and `category` where the same category means a right answer. The
texts go into a store over HTTP, each a chunk, embedded by the static embedder; the questions are
asked one after the other, each twice. The reference is NumPy's matrix product over the same vectors
in memory. The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import csv
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from numpy.typing import NDArray

from factory.catalog.objects import ObjectStore
from factory.cluster.ports import free
from factory.config import load, parse
from factory.embedding import StaticEmbedder, installed
from factory.gateway.app import build_app
from factory.gateway.pipeline import Gateway
from factory.gateway.served import Served
from factory.ledger.keys import create_key
from factory.ledger.store import open_ledger
from factory.ledger.writer import LedgerWriter
from serve_apps.listener import Listener

CONFIG = """
home: home
teams: {support: {}}
models:
  static:
    source: {path: static}
    engine: encoder
    tier: 1
    price: {input_usd_per_mtok: 0.01, output_usd_per_mtok: 0}
endpoints:
  search: {team: support, task: embed, tiers: [0, 1]}
"""

FILE = 2_000
"""Texts that are sent together."""
NEAREST = 10


@dataclass(frozen=True, slots=True)
class Text:
    """A line of a file."""

    text: str
    category: str


class Embeds:
    """The static embedder as an engine."""

    def __init__(self, embedder: StaticEmbedder) -> None:
        self.embedder = embedder

    async def embed(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[int]]:
        """Vectors, and a rough count of the tokens of each text."""
        return self.embedder.encode(list(texts)), [len(text) // 4 + 1 for text in texts]

    async def check(self) -> None:
        """It always can."""


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def read(path: Path) -> list[Text]:
    """The texts of a CSV file. Ends with exit code 2 when they are not there."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [Text(row["text"], row.get("category") or "") for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        say(f"error: {path} must be a CSV file with a column `text`: {error!r}")
        raise typer.Exit(2) from error
    found = [row for row in rows if row.text and row.text.strip()]
    if not found:
        say(f"error: {path} has no texts")
        raise typer.Exit(2)
    return found


@asynccontextmanager
async def gateway(folder: Path, embedder: StaticEmbedder) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway over HTTP with one encoder."""
    settings = parse(CONFIG, "benchmark", folder, {})
    ledger = open_ledger(settings.database_url)
    secret, _ = create_key(ledger, settings, "support")
    served = Served(
        model="static",
        tier=1,
        version=embedder.hash,
        label="static",
        price=settings.models["static"].price,
        embedder=Embeds(embedder),
        max_model_len=512,
    )
    writer = LedgerWriter(ledger)
    made = Gateway(settings, ledger, writer, {"search": {1: served}})
    port = free(1, Random())[0]
    listener = Listener(build_app(made), "127.0.0.1", port)
    await listener.start()
    headers = {"Authorization": f"Bearer {secret}"}
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
        yield client
    await listener.stop(1)
    await made.drain()
    await writer.close()
    ledger.close()


async def fill(client: httpx.AsyncClient, texts: Sequence[Text]) -> str:
    """A store of the texts; returns its path."""
    store = (await client.post("/v1/vector_stores", json={})).raise_for_status().json()
    place = f"/v1/vector_stores/{store['id']}"
    for start in range(0, len(texts), FILE):
        chunks = [one.text for one in texts[start : start + FILE]]
        body = {"file_id": f"texts-{start}", "chunks": chunks}
        added = await client.post(f"{place}/files", json=body)
        if added.status_code != 200:
            raise RuntimeError(f"the store does not take the texts: {added.text[:300]}")
        say(f"  {start + len(chunks)} of {len(texts)} texts")
    return place


async def ask(
    client: httpx.AsyncClient, place: str, question: str
) -> tuple[list[int], float, float, str]:
    """Places of the nearest texts, milliseconds of two searches, and what the second one was."""
    body = {"query": question, "max_num_results": NEAREST}
    took = []
    for _ in range(2):
        begun = time.perf_counter()
        reply = (await client.post(f"{place}/search", json=body)).raise_for_status()
        took.append((time.perf_counter() - begun) * 1000)
    near = [
        int(row["file_id"].removeprefix("texts-")) + row["chunk"] for row in reply.json()["data"]
    ]
    return near, *took, reply.headers["x-factory-cache"]


async def measure(
    embedder: StaticEmbedder, texts: Sequence[Text], questions: Sequence[Text]
) -> dict[str, Any]:
    """Everything that is printed."""
    with tempfile.TemporaryDirectory(prefix="factory-retrieval-") as name:
        async with gateway(Path(name), embedder) as client:
            begun = time.perf_counter()
            place = await fill(client, texts)
            filled_s = time.perf_counter() - begun
            await ask(client, place, "the first search opens the table")
            found = [await ask(client, place, one.text) for one in questions]
    vectors = embedder.encode([one.text for one in texts])
    exact_ms, shared = [], []
    for one, (near, *_) in zip(questions, found, strict=True):
        begun = time.perf_counter()
        scores = vectors @ embedder.encode([one.text])[0]
        best = np.argpartition(-scores, NEAREST)[:NEAREST]
        exact_ms.append((time.perf_counter() - begun) * 1000)
        # Texts of equal distance may stand for each other.
        shared.append(np.mean(scores[near] >= scores[best].min() - 1e-5))
    right = [
        texts[near[0]].category == one.category
        for one, (near, *_) in zip(questions, found, strict=True)
        if one.category
    ]
    told: dict[str, Any] = {"chunks": len(texts), "questions": len(questions)}
    told |= {"chunks_per_s": len(texts) / filled_s, "dimensions": embedder.dimensions}
    told |= percentiles("miss", [one[1] for one in found])
    told |= percentiles("hit", [one[2] for one in found])
    told |= percentiles("exact", exact_ms)
    told["hits"] = float(np.mean([one[3] == "hit" for one in found]))
    told["recall_at_10"] = float(np.mean(shared))
    told["right_at_1"] = float(np.mean(right)) if right else None
    return told


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """The median and the 95th percentile."""
    cuts = quantiles(values, n=20)
    return {f"{name}_p50_ms": cuts[9], f"{name}_p95_ms": cuts[18]}


def main(
    texts: Annotated[Path, typer.Option(help="CSV with a column `text`: what is searched.")],
    questions: Annotated[Path, typer.Option(help="CSV with a column `text`: what is asked.")],
    count: Annotated[int, typer.Option(min=20, help="Questions that are asked.")] = 300,
    seed: Annotated[int, typer.Option(help="Of their choice.")] = 0,
) -> None:
    """Measure searches. Example: python -m benchmarks.retrieval --texts a.csv --questions b.csv"""
    kept, asked = read(texts), read(questions)
    settings = load(None)
    static = installed.make(settings, ObjectStore(settings.objects), say)
    embedder = StaticEmbedder.load(static.path)
    chosen = Random(seed).sample(asked, min(count, len(asked)))
    told = asyncio.run(measure(embedder, kept, chosen))
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in told.items()}))


if __name__ == "__main__":
    typer.run(main)
