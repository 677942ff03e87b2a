"""The arguments of a tuning run, under the names Hugging Face and PEFT use.

    config = load(Path("finetune.yaml"), {"max_steps": 20})

Unknown keys are errors. `max_train_seconds` is a budget of training time: the schedule then
anneals over the share of the budget that is spent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from factory.training.errors import TrainingError

_ENDING = {
    "num_train_epochs",
    "max_steps",
    "max_train_seconds",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "eval_samples",
    "cpus_per_worker",
    "adapter_name",
    "checkpoint_url",
    "max_failures",
    "max_preemption_failures",
    "max_tokens",
    "gradient_checkpointing",
    "full_tuning_reason",
    "full_tuning_min_examples",
}
"""Fields that may change when a run is resumed."""


class TrainConfig(BaseModel):
    """One tuning run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str = "smollm2-135m"
    """A catalog entry that is pulled, or a folder with weights."""
    dataset: str = "helpdesk"
    """A data set of the object store, or a folder with train.jsonl and validation.jsonl."""
    adapter_name: str | None = None
    """Name of the adapter in the object store; none takes the data set's name."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    label_smoothing_factor: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of the cross-entropy."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(default=10, ge=0)
    """Optimizer steps over which the learning rate rises."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Examples a worker sees at once."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches an optimizer step adds up."""
    num_train_epochs: float = Field(default=3.0, gt=0)
    """Passes over the data; ignored when `max_steps` or `max_train_seconds` is given."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    max_train_seconds: float | None = Field(default=None, gt=0)
    """Budget of training time in seconds, loading not counted."""
    max_tokens: int = Field(default=4096, ge=64)
    """Tokens in one pass through the model; a batch with more is cut, its gradient is the same."""
    gradient_checkpointing: bool = False
    """Compute activations a second time in the backward pass instead of keeping them."""
    use_peft: bool = True
    """Train an adapter and leave the base as it is; false trains every weight."""
    full_tuning_reason: str | None = Field(default=None, min_length=10)
    """Why an adapter is not enough; needed where `use_peft` is false."""
    full_tuning_min_examples: int = Field(default=1000, ge=1)
    """Fewer examples than this are refused where `use_peft` is false."""
    load_in_4bit: bool = False
    """Hold the frozen base in 4 bits (QLoRA, bitsandbytes)."""
    load_in_8bit: bool = False
    """Hold the frozen base in 8 bits (LLM.int8, bitsandbytes)."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """What the 4 bits mean."""
    bnb_4bit_use_double_quant: bool = True
    """Quantize the 4-bit scales as well."""
    use_dora: bool = False
    """Learn the magnitude of each weight column apart from its direction (DoRA)."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    lora_alpha: float = Field(default=32, gt=0)
    """Scale of the adapter is `lora_alpha / lora_r`."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in front of the adapter."""
    target_modules: str | list[str] = "all-linear"
    """Module names to adapt, or `all-linear`."""
    layers_to_transform: list[int] | None = None
    """Layers to adapt; needs a list of `target_modules`. None adapts all."""
    max_length: int = Field(default=256, ge=8)
    """Longest example, in tokens."""
    drop_long: bool = False
    """Leave longer examples out; otherwise the first one is an error."""
    bf16: bool = True
    """Hold the frozen base in bfloat16, else in float32. The adapter is float32."""
    seed: int = Field(default=7, ge=0)
    """Decides initial weights, order of the data, and dropout."""
    save_steps: int = Field(default=50, ge=1)
    """Optimizer steps between two checkpoints."""
    save_total_limit: int = Field(default=2, ge=2)
    """Checkpoints kept; at least two, so that a damaged one is no loss."""
    checkpoint_url: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9+.-]*://.+")
    """Where a copy of each checkpoint goes, such as `s3://bucket/run`; none keeps it in the run."""
    max_failures: int = Field(default=2, ge=0)
    """Failures in a row without a new checkpoint after which a run stops."""
    max_preemption_failures: int = Field(default=-1, ge=-1)
    """Nodes lost or taken away that a run survives; -1 is no limit."""
    logging_steps: int = Field(default=5, ge=1)
    """Optimizer steps between two points of the loss curve."""
    eval_samples: int = Field(default=64, ge=0)
    """Validation examples scored at the end; 0 skips it."""
    num_workers: int | tuple[int, int] = 1
    """Ray Train workers; `[least, most]` takes as many as there is room for at each start."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: spread optimizer state (1), gradients (2) and weights (3) over workers."""
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """CPU cores of one worker; none shares out what the cluster has free."""

    @model_validator(mode="after")
    def _layers_need_names(self) -> TrainConfig:
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform needs target_modules as a list of names")
        return self

    @model_validator(mode="after")
    def _one_method(self) -> TrainConfig:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other; choose one")
        if self.use_peft:
            return self
        if self.load_in_4bit or self.load_in_8bit or self.use_dora:
            raise ValueError(
                "use_peft is false, but quantized bases and DoRA need an adapter; set use_peft"
            )
        if self.full_tuning_reason is None:
            raise ValueError(
                "full tuning trains and stores every weight; say in full_tuning_reason why an "
                "adapter is not enough, or set use_peft"
            )
        return self

    @model_validator(mode="after")
    def _workers(self) -> TrainConfig:
        if not 1 <= self.least_workers <= self.most_workers:
            raise ValueError("num_workers must be at least 1, the least not over the most")
        if self.zero_stage and (self.use_peft or self.least_workers < 2):
            raise ValueError(
                "zero_stage spreads full tuning over at least two workers; set use_peft to false "
                "and num_workers, or leave zero_stage out"
            )
        if self.zero_stage and self.least_workers < self.most_workers:
            raise ValueError("zero_stage needs a fixed num_workers")
        return self

    @property
    def least_workers(self) -> int:
        """Fewest Ray Train workers of a start."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Most Ray Train workers of a start; the size of a step is reckoned with so many."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def global_batch(self) -> int:
        """Examples in one optimizer step, over all workers, however many there are."""
        return (
            self.per_device_train_batch_size * self.gradient_accumulation_steps * self.most_workers
        )

    @property
    def method(self) -> str:
        """What is trained, in a word: `lora`, `dora`, `qlora-nf4`, `lora-int8`, …, or `full`."""
        if not self.use_peft:
            return "full"
        kind = "dora" if self.use_dora else "lora"
        if self.load_in_4bit:
            return f"q{kind}-{self.bnb_4bit_quant_type}"
        return f"{kind}-int8" if self.load_in_8bit else kind

    def fingerprint(self) -> str:
        """Hex sha256 over the fields that must not change when a run is resumed."""
        fixed = self.model_dump(mode="json", exclude=_ENDING)
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


Config = TypeVar("Config", bound=TrainConfig)


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Arguments from a YAML file, with `overrides` on top.

    Raises `TrainingError` naming the file and the key.
    """
    return load_as(TrainConfig, path, overrides)


def load_as(kind: type[Config], path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The same for arguments of a kind that has more of them. Raises `TrainingError`."""
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"cannot read the job config '{path}': {error}") from error
    if not isinstance(raw, dict | None):
        raise TrainingError(f"{path} must be a mapping of arguments such as learning_rate")
    flags = overrides or {}
    return check_as(kind, {**(raw or {}), **flags}, str(path), flags)


def check(values: Mapping[str, Any], name: str) -> TrainConfig:
    """Arguments from plain values; `name` is used in messages. Raises `TrainingError`."""
    return check_as(TrainConfig, values, name)


def check_as(
    kind: type[Config], values: Mapping[str, Any], name: str, flags: Container[str] = ()
) -> Config:
    """The same for arguments of a kind that has more of them; `flags` are those of the command.

    Raises `TrainingError`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        item = error.errors()[0]
        if item["loc"] and item["loc"][0] in flags:
            name = "the command line"
        where = ".".join(str(part) for part in item["loc"]) or "the arguments"
        if item["type"] == "extra_forbidden":
            known = ", ".join(sorted(kind.model_fields))
            raise TrainingError(f"{name}: {where}: unknown key; known are {known}") from error
        what = item["msg"].removeprefix("Value error, ")
        raise TrainingError(f"{name}: {where}: {what}") from error
