"""How fast, lean and good our tuning is beside TRL's `SFTTrainer`, as it comes and at its best.

    python -m benchmarks.finetune --steps 12
    python -m benchmarks.finetune --steps 12 --rounds 2 --data chats.jsonl

The same model, LoRA adapter, conversations, examples a step, learning rate and number of steps;
tokens are those of the conversations, padding not counted, the first step left out as a warm-up.
Each run is a process of its own, ours and theirs in turn, and its peak memory is what the
operating system saw until training ended. All adapters are then scored by the same plain
forward pass on held-out conversations. TRL goes into a virtual environment of its own beside ours.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory import config as factory_config
from factory.catalog.errors import CatalogError
from factory.catalog.objects import ObjectStore
from factory.catalog.pull import pull
from factory.config import ConfigError
from factory.evaluation.suite import SuiteError
from factory.training import dataset
from factory.training.dataset import DatasetError, Example
from pipelines import helpdesk

VERSION = "1.16.0"
MODEL = "smollm2-135m"
BATCH = 8
HELD_OUT = 48
_LEARNING = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "seed": 7,
    "lora_r": 16,
    "lora_alpha": 32,
}
_BETTER = ("trl_packed", "trl_packed_lean", "trl_lean")
"""Settings of TRL that may beat its defaults on a CPU; its best is whichever does in this run.

Packing with PyTorch's fused attention, TRL's way on a GPU, and padding without checkpointing were
slower than its defaults on a CPU (docs/benchmarks.md).
"""


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def install(folder: Path) -> Path:
    """A virtual environment with TRL that sees this one's packages; returns its Python."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        say(f"installing TRL {VERSION} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        inside = sysconfig.get_path("purelib", vars={"base": str(folder)})
        (Path(inside) / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, f"trl=={VERSION}"], check=True, stdout=sys.stderr)
        (folder / "ready").touch()
    return python


def conversations(given: Path | None, store: ObjectStore) -> list[Example]:
    """Examples of a messages file, or the pilot's. Raises `DatasetError` or `SuiteError`."""
    if given is not None:
        return dataset.read_messages(given)
    data, _ = helpdesk.build(store)
    return dataset.read_messages(data.path / "train.jsonl")


def ours(path: Path) -> None:
    """One run of ours, in this process."""
    import torch

    from factory.training import adapter, model
    from factory.training.chat import encode_all
    from factory.training.config import check
    from factory.training.loop import Data, Peers, fit
    from factory.training.run import RunFolder

    job = json.loads(path.read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    config = check(
        {
            **{key: job[key] for key in _LEARNING},
            "max_steps": job["steps"],
            "per_device_train_batch_size": BATCH,
            "max_length": job["max_length"],
            "save_steps": 10**6,
            "logging_steps": 1,
            "eval_samples": 0,
            **job["settings"],
        },
        "the benchmark",
    )
    tuned, tokenizer = model.build(job["model"], config)
    examples = [Example.model_validate({"messages": row}) for row in job["rows"]]
    data = Data(train=encode_all(tokenizer, examples, config.max_length, True), validation=[])
    run = RunFolder(path.parent / f"run-{path.stem}")
    fit(config, tuned, data, run, "benchmark", Peers())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(job["adapter"]).mkdir(parents=True)
    adapter.save(tuned, Path(job["adapter"]), base_name=job["model"], revision="")
    first, last = run.points()[0], run.points()[-1]
    figures = {
        "tokens": last["tokens"] - first["tokens"],
        "seconds": last["elapsed"] - first["elapsed"],
        "peak_rss_mb": peak,
        "weights_mb": model.weight_bytes(tuned.get_base_model()) / 1e6,
    }
    Path(job["out"]).write_text(json.dumps(figures), "utf-8")


def score(path: Path) -> None:
    """Loss of an adapter on held-out conversations, by a plain forward pass each."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from factory.training.chat import IGNORED, encode_all

    job = json.loads(path.read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    examples = [Example.model_validate({"messages": row}) for row in job["held_out"]]
    samples = encode_all(tokenizer, examples, job["max_length"], True)
    tuned = PeftModel.from_pretrained(base, job["adapter"]) if job["adapter"] else base
    total, count = 0.0, 0
    with torch.no_grad():
        for sample in samples:
            logits = tuned(input_ids=torch.tensor([sample.ids])).logits[0, :-1]
            targets = torch.tensor(sample.targets[1:])
            total += torch.nn.functional.cross_entropy(
                logits, targets, reduction="sum", ignore_index=IGNORED
            ).item()
            count += sample.learned
    Path(job["out"]).write_text(json.dumps({"loss": total / count}), "utf-8")


def settings_of(name: str, mean_tokens: float) -> dict[str, Any]:
    """Arguments of a contender; packing takes as many tokens a step as the others see."""
    size = {"per_device_train_batch_size": 1, "max_length": int(BATCH * mean_tokens)}
    packed = {
        **size,
        "packing": True,
        "gradient_checkpointing": False,
        "model_init_kwargs": {"attn_implementation": "eager"},
    }
    lean = {"loss_type": "chunked_nll"}
    known: dict[str, dict[str, Any]] = {
        "trl": {"per_device_train_batch_size": BATCH},
        "trl_packed": packed,
        "trl_packed_lean": {**packed, **lean},
        "trl_lean": {"per_device_train_batch_size": BATCH, **lean},
        "qlora": {"load_in_4bit": True},
    }
    return known.get(name, {})


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of each run")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each contender, in turn")
    parser.add_argument("--data", type=Path, help="messages file, JSON Lines; the pilot's if none")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--environment", type=Path, help="folder of TRL's virtual environment")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        {"ours": ours, "score": score}[given.one[0]](Path(given.one[1]))
        return 0
    if given.steps < 2 or given.rounds < 1:
        parser.error("--steps must be at least 2 and --rounds at least 1")
    try:
        settings = factory_config.load()
        store = ObjectStore(settings.objects)
        weights = pull(settings, MODEL, store).path
        examples = conversations(given.data, store)
    except (CatalogError, ConfigError, DatasetError, SuiteError) as error:
        say(f"error: {error}")
        return 1
    if len(examples) < 2 * HELD_OUT:
        say(f"error: {len(examples)} conversations are too few; give at least {2 * HELD_OUT}")
        return 1
    python = install(given.environment or settings.home / "benchmarks" / f"trl-{VERSION}")
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        closing = compare(Path(folder), weights, examples, given, python)
    print(json.dumps(closing))
    return 0


def compare(
    folder: Path, weights: Path, examples: Sequence[Example], given: Any, python: Path
) -> dict[str, Any]:
    """Run everybody in turn and put the figures side by side."""
    from transformers import AutoTokenizer

    from factory.training.chat import encode

    tokenizer = AutoTokenizer.from_pretrained(weights)
    sizes = [len(encode(tokenizer, example).ids) for example in examples[HELD_OUT:]]
    common = {
        "model": str(weights),
        "threads": given.threads,
        "steps": given.steps,
        "rows": [example.chat for example in examples[HELD_OUT:]],
        "held_out": [example.chat for example in examples[:HELD_OUT]],
        "max_length": max(max(sizes), 256),
        **_LEARNING,
    }
    mean = statistics.fmean(sizes)
    say(f"{len(sizes)} conversations of {mean:.0f} tokens, {BATCH} a step")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", "trl", *_BETTER)}
    for number in range(given.rounds):
        for name in found:
            found[name].append(_one(folder, f"{name}-{number}", name, common, mean, python))
            latest = found[name][-1]
            say(
                f"{name}: {latest['tokens_per_s']:.0f} tok/s, peak {latest['peak_rss_mb']:.0f} MB, "
                f"held-out loss {latest['loss']:.3f}"
            )
    quantized = _one(folder, "qlora", "qlora", {**common, "steps": 2}, mean, python)
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    untuned = _score(folder, "base", {**common, "adapter": None})
    own = middle["ours"]
    best = max(_BETTER, key=lambda name: middle[name]["tokens_per_s"])
    middle["trl_best"] = middle[best]
    return {
        "tokens_per_s": round(own["tokens_per_s"], 1),
        "trl_tokens_per_s": round(middle["trl"]["tokens_per_s"], 1),
        "trl_best_tokens_per_s": round(middle["trl_best"]["tokens_per_s"], 1),
        "ratio": round(own["tokens_per_s"] / middle["trl"]["tokens_per_s"], 2),
        "ratio_best": round(own["tokens_per_s"] / middle["trl_best"]["tokens_per_s"], 2),
        "peak_rss_mb": round(own["peak_rss_mb"]),
        "trl_peak_rss_mb": round(middle["trl"]["peak_rss_mb"]),
        "trl_best_peak_rss_mb": round(middle["trl_best"]["peak_rss_mb"]),
        "qlora_weight_ratio": round(quantized["weights_mb"] / own["weights_mb"], 3),
        "loss": round(own["loss"], 4),
        "trl_loss": round(middle["trl"]["loss"], 4),
        "trl_best_loss": round(middle["trl_best"]["loss"], 4),
        "untuned_loss": round(untuned, 4),
        "trl_best_is": best,
        "steps": given.steps,
        "rounds": given.rounds,
        "mean_tokens": round(mean, 1),
    }


def _one(
    folder: Path, run: str, name: str, common: dict[str, Any], mean: float, python: Path
) -> dict[str, float]:
    """One contender's run in a process of its own, and its held-out loss."""
    job = {
        **common,
        "settings": settings_of(name, mean),
        "adapter": str(folder / f"adapter-{run}"),
        "out": str(folder / f"out-{run}.json"),
    }
    path = folder / f"{run}.json"
    path.write_text(json.dumps(job), "utf-8")
    if name.startswith("trl"):
        command = [str(python), str(Path(__file__).with_name("trl_sft.py")), str(path)]
    else:
        command = [sys.executable, "-m", "benchmarks.finetune", "--one", "ours", str(path)]
    _start(command)
    figures = json.loads(Path(job["out"]).read_text("utf-8"))
    figures["tokens_per_s"] = figures["tokens"] / figures["seconds"]
    figures["loss"] = 0.0 if name == "qlora" else _score(folder, run, job)
    return dict(figures)


def _score(folder: Path, run: str, job: dict[str, Any]) -> float:
    path, out = folder / f"score-{run}.json", folder / f"loss-{run}.json"
    path.write_text(json.dumps({**job, "out": str(out)}), "utf-8")
    _start([sys.executable, "-m", "benchmarks.finetune", "--one", "score", str(path)])
    return float(json.loads(out.read_text("utf-8"))["loss"])


def _start(command: list[str]) -> None:
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    raise SystemExit(main())
