"""What a teacher says about every learned token, computed once and kept compressed.

    write(path, names, teach(model, samples, vocabulary=49152, k=64, temperature=2.0))
    kept = read(folder)                        # sample id -> Teaching

Parquet with zstd: token ids in as few bits as the vocabulary needs, logits in half precision.
The cache is written part by part, each whole or not at all, so that a pass that was killed goes on
where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from factory.training import packing
from factory.training.chat import Sample, collate
from factory.training.divergence import Teaching, sparse
from factory.training.errors import TrainingError

PART = 256
"""Samples of one part: what a killed pass can lose."""

_FORMAT = 1


def shared_vocabulary(teacher: Any, student: Any) -> int:
    """How many token ids mean the same to both tokenizers.

    Models of one family pad their embedding matrices differently; ids below the number returned
    are real tokens on both sides, whatever lies above is padding. Raises `TrainingError` when an
    id means two things: logits of such a pair cannot be compared.
    """
    mine, theirs = teacher.get_vocab(), student.get_vocab()
    if mine != theirs:
        unequal = sorted(set(mine.items()) ^ set(theirs.items()), key=lambda item: item[1])
        token, number = unequal[0]
        raise TrainingError(
            f"teacher and student do not share a vocabulary (token {number}, '{token}', differs, "
            f"{len(unequal)} in all): logits cannot be compared; use `distillation: sequence`, "
            "which learns from the teacher's answers"
        )
    return int(max(mine.values())) + 1


def load_teacher(folder: Path) -> Any:
    """A model that only answers, with packed attention. Raises `TrainingError`."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation=packing.NAME
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot load the teacher from '{folder}': {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device)


@torch.no_grad()
def teach(
    model: Any,
    samples: Sequence[Sample],
    *,
    vocabulary: int,
    k: int,
    temperature: float,
    batch_size: int = 32,
) -> list[Teaching]:
    """The teacher's distributions at the learned tokens of each sample, in the samples' order.

    `model` has packed attention (`load_teacher`); `vocabulary` cuts off the padding of its output
    layer.
    """
    found: dict[int, Teaching] = {}
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].ids))
    device = next(model.parameters()).device
    layer = model.get_output_embeddings()
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = collate([samples[index] for index in part]).to(device)
        hidden = model.base_model(
            input_ids=batch.ids,
            position_ids=batch.positions,
            layout=batch.layout,
            use_cache=False,
        ).last_hidden_state[0]
        logits = layer(hidden.index_select(0, batch.at))[:, :vocabulary]
        kept = sparse(logits, k, temperature)
        for row, index in enumerate(part):
            mine = batch.row == row
            found[index] = Teaching(
                ids=kept.ids[mine].cpu(),
                logits=kept.logits[mine].cpu(),
                tail=kept.tail[mine].cpu(),
                temperature=temperature,
            )
    return [found[index] for index in range(len(samples))]


def write(path: Path, names: Sequence[str], teachings: Sequence[Teaching]) -> None:
    """One part of the cache, whole or not at all."""
    positions = [len(item.tail) for item in teachings]
    k = teachings[0].ids.shape[-1]
    ids = torch.cat([item.ids for item in teachings]).numpy()
    narrow = np.uint16 if ids.max(initial=0) < 2**16 else np.uint32
    logits = torch.cat([item.logits for item in teachings]).half().numpy()
    table = pa.table(
        {
            "sample": pa.array(np.repeat(np.asarray(names, dtype=object), positions)),
            "ids": _rows(ids.astype(narrow), k),
            "logits": _rows(logits, k),
            "tail": torch.cat([item.tail for item in teachings]).float().numpy(),
        },
        metadata={"temperature": str(teachings[0].temperature), "format": str(_FORMAT)},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, draft, compression="zstd", compression_level=9)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise TrainingError(
            f"cannot write the teacher's cache '{path}': {error}; free some space and run again"
        ) from error


def read(folder: Path) -> dict[str, Teaching]:
    """Everything a cache holds, by sample id. Raises `TrainingError` for an unreadable part."""
    kept: dict[str, Teaching] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        kept |= read_part(path)
    return kept


def read_part(path: Path) -> dict[str, Teaching]:
    """One part by sample id. Raises `TrainingError`."""
    try:
        table = pq.read_table(path)
        temperature = float(table.schema.metadata[b"temperature"])
        names = table["sample"].to_numpy()
        k = table.schema.field("ids").type.list_size
        ids = _matrix(table["ids"], k).astype(np.int64)
        logits = _matrix(table["logits"], k).astype(np.float32)
        tail = table["tail"].to_numpy().astype(np.float32)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrainingError(
            f"the teacher's cache '{path}' cannot be read ({error}); remove it and run again"
        ) from error
    starts = [at for at in range(len(names)) if at == 0 or names[at] != names[at - 1]]
    return {
        str(names[start]): Teaching(
            ids=torch.from_numpy(ids[start:end]),
            logits=torch.from_numpy(logits[start:end]),
            tail=torch.from_numpy(tail[start:end]),
            temperature=temperature,
        )
        for start, end in zip(starts, [*starts[1:], len(names)], strict=True)
    }


def joined(teachings: Sequence[Teaching]) -> Teaching:
    """Teachings of several samples, one after the other, as a batch needs them."""
    return Teaching(
        ids=torch.cat([item.ids for item in teachings]),
        logits=torch.cat([item.logits for item in teachings]),
        tail=torch.cat([item.tail for item in teachings]),
        temperature=teachings[0].temperature,
    )


def parts(samples: Sequence[Sample]) -> Iterator[tuple[int, Sequence[Sample]]]:
    """Consecutive samples, `PART` at a time, with the number of the part."""
    for start in range(0, len(samples), PART):
        yield start // PART, samples[start : start + PART]


def _rows(matrix: np.ndarray[Any, Any], k: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), k)


def _matrix(column: pa.ChunkedArray, k: int) -> np.ndarray[Any, Any]:
    flat: np.ndarray[Any, Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, k)
