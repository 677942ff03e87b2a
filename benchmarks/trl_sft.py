"""One run of TRL's `SFTTrainer`, in an environment with TRL; started by `benchmarks.finetune`.

    python trl_sft.py JOB.json      # writes the figures to the job's `out`

It imports nothing of ours, so that the reference is TRL and nothing else.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Watch(TrainerCallback):  # type: ignore[misc]
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def main(path: Path) -> None:
    """Train as the job says."""
    job = json.loads(path.read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    rows = [{"prompt": row[:-1], "completion": row[-1:]} for row in job["rows"]]
    watch, useful = Watch(), []
    trainer = SFTTrainer(
        model=job["model"],
        args=SFTConfig(
            output_dir=str(path.parent / "trl"),
            max_steps=job["steps"],
            learning_rate=job["learning_rate"],
            lr_scheduler_type=job["lr_scheduler_type"],
            warmup_steps=job["warmup_steps"],
            weight_decay=0.0,
            seed=job["seed"],
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            **job["settings"],
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=LoraConfig(
            r=job["lora_r"],
            lora_alpha=job["lora_alpha"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[watch],
    )
    collator = trainer.data_collator

    def counted(features: list[Any]) -> Any:
        batch = collator(features)
        mask = batch.get("attention_mask")
        useful.append(int(batch["input_ids"].numel() if mask is None else mask.sum()))
        return batch

    trainer.data_collator = counted
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    trainer.save_model(job["adapter"])
    tokens = sum(useful[1 : job["steps"]])
    seconds = watch.ends[-1] - watch.ends[0]
    figures = {
        "tokens": tokens,
        "seconds": seconds,
        "peak_rss_mb": peak,
        "dtype": str(trainer.model.dtype),
    }
    Path(job["out"]).write_text(json.dumps(figures), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
