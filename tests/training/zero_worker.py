"""One of two workers that train with ZeRO: `python -m tests.training.zero_worker RANK JOB.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from factory.training import model
from factory.training.chat import encode_all
from factory.training.config import check
from factory.training.errors import TrainingError
from factory.training.loop import Data, Peers, fit
from factory.training.run import RunFolder
from tests.training import tiny


def total(tensor: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(tensor)
    return tensor


def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(parts, tensor)
    return parts


def main(rank: int, job: dict[str, object]) -> None:
    folder = str(job["model"])
    dist.init_process_group("gloo", init_method=str(job["meet"]), rank=rank, world_size=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = encode_all(tokenizer, tiny.examples(40), 256, drop_long=False)
    data = Data(train=rows[:32], validation=rows[32:])
    peers = Peers(rank=rank, size=2, sum=total, gather=gather)
    for name, steps, changes in job["runs"]:  # type: ignore[attr-defined]
        config = check({**job["config"], **changes}, "zero")  # type: ignore[dict-item]
        run = RunFolder(Path(str(job["root"])) / name)
        stopping = config.model_copy(update={"max_steps": steps})
        try:
            fit(stopping, model.build(folder, config)[0], data, run, name, peers)
        except TrainingError as error:
            raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text("utf-8")))
