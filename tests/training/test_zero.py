"""DeepSpeed ZeRO on two worker processes, beside the same run on one worker with everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from factory.training import checkpoint, model
from factory.training.chat import encode_all
from factory.training.config import check
from factory.training.errors import TrainingError
from factory.training.loop import Data, Peers, fit
from factory.training.run import RunFolder
from tests.training import tiny

ROOT = Path(__file__).parents[2]
FULL = {
    "use_peft": False,
    "full_tuning_reason": "the test trains every weight",
    "bf16": False,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
    "lr_scheduler_type": "constant",
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state, _ = checkpoint.newest(folder / "checkpoints")
    assert state is not None
    assert state.counters.step == 4
    return dict(state.weights)


def test_every_stage_learns_what_one_worker_learns_and_resumes_bit_by_bit(
    tiny_model: Path, tmp_path: Path
) -> None:
    runs = []
    for stage in (1, 2, 3):
        changes = {"zero_stage": stage, "num_workers": 2}
        runs.append((f"whole-{stage}", 4, changes))
        if stage != 2:
            runs += [(f"cut-{stage}", 2, changes), (f"cut-{stage}", 4, changes)]
    job = {
        "model": str(tiny_model),
        "meet": f"file://{tmp_path / 'meet'}",
        "root": str(tmp_path),
        "config": FULL,
        "runs": runs,
    }
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job), "utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.zero_worker", str(rank), str(path)],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, said = worker.communicate(timeout=240)
        assert worker.returncode == 0, said[-3000:]

    config = check({**FULL, "per_device_train_batch_size": 8}, "alone")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = encode_all(tokenizer, tiny.examples(40), 256, drop_long=False)
    data = Data(train=rows[:32], validation=rows[32:])
    alone, _ = model.build(str(tiny_model), config)
    fit(config, alone, data, RunFolder(tmp_path / "alone"), "x", Peers())
    losses = [point["loss"] for point in RunFolder(tmp_path / "alone").points()]
    for stage in (1, 2, 3):
        if stage != 2:
            whole, cut = weights(tmp_path / f"whole-{stage}"), weights(tmp_path / f"cut-{stage}")
            assert all(torch.equal(whole[name], cut[name]) for name in whole)
        curve = [point["loss"] for point in RunFolder(tmp_path / f"whole-{stage}").points()]
        assert curve == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"zero_stage": 2}, "at least two workers"),
        ({"zero_stage": 2, "num_workers": 2, "use_peft": True}, "spreads full tuning"),
        ({"zero_stage": 2, "num_workers": [2, 4]}, "a fixed num_workers"),
        ({"num_workers": [3, 2]}, "the least not over the most"),
        ({"num_workers": 0}, "at least 1"),
        ({"full_tuning_reason": None}, "say in full_tuning_reason why"),
        ({"load_in_4bit": True}, "need an adapter"),
    ],
)
def test_what_does_not_go_together_is_told(changes: dict[str, object], wrong: str) -> None:
    with pytest.raises(TrainingError, match=wrong):
        check({**FULL, **changes}, "zero")
