"""Distilling a teacher into a student: its arguments, and what a worker does with them.

    config = load_as(DistillConfig, Path("distill.yaml"), {"student_layers": 10})
    summary = launch(task, cpus=2, work=run_distillation, kind=DistillConfig)

The trainer is the one of every tuning run; a student differs in its loss (`distillation.py`), in
being trained whole, and in keeping its embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from factory.training import adapter, dataset, teaching
from factory.training.config import TrainConfig, check_as
from factory.training.distillation import FromTeacher, in_order
from factory.training.divergence import Kind
from factory.training.errors import TrainingError
from factory.training.loop import Data, Peers, Summary, fit, precision
from factory.training.objective import Objective
from factory.training.on_policy import OnPolicy
from factory.training.run import RunFolder
from factory.training.student import How
from factory.training.train import Task, gathered, load_data

if TYPE_CHECKING:
    from torch import nn

ALL_OF_IT = "a student is small, and all of it has to make up for the layers it lost"


class DistillConfig(TrainConfig):
    """One distillation."""

    teacher: str = "helpdesk@champion"
    """`NAME@champion` or `NAME@VERSION` of the registry, a catalog entry, or a folder."""
    student: str | None = None
    """Weights to start from, a catalog entry or a folder; none cuts layers out of the teacher."""
    student_layers: int | list[int] = 10
    """How many of the teacher's layers a student keeps, or which."""
    student_layer_choice: How = "first"
    """Which layers are kept where only their number is given."""
    prompts: str | None = None
    """Unlabelled prompts that the teacher answers: of the object store, or a JSON Lines file."""
    distillation: Literal["logits", "sequence", "on_policy"] = "logits"
    """Learn the teacher's distributions; or (for another vocabulary) only its answers; or its
    distributions at what the student itself answers, with the teacher in memory."""
    divergence: Kind = "forward_kl"
    """How far from the teacher is measured."""
    temperature: float = Field(default=2.0, gt=0)
    """Softens both distributions."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture of `jsd`."""
    ce_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the cross-entropy where the data has answers of its own."""
    top_k: int = Field(default=64, ge=1)
    """Logits of the teacher that are kept for a token; the rest is kept as one number."""
    max_answer_tokens: int = Field(default=16, ge=1)
    """Longest answer of the teacher to a prompt."""
    lmbda: float = Field(default=0.5, ge=0, le=1)
    """`on_policy`: share of batches that the student answers itself; the others have the data's
    answers."""
    max_new_tokens: int = Field(default=16, ge=1)
    """`on_policy`: longest answer of the student."""
    freeze_embeddings: bool = True
    """Leave embeddings and output layer as the teacher has them."""
    use_peft: bool = False
    """Train an adapter only; a student is trained whole unless told otherwise."""
    full_tuning_reason: str | None = ALL_OF_IT
    """Why an adapter is not enough."""

    @model_validator(mode="after")
    def _in_one_piece(self) -> DistillConfig:
        if self.distillation == "on_policy" and self.zero_stage:
            raise ValueError(
                "on_policy lets the student answer, which it cannot while ZeRO spreads it over "
                "workers; leave zero_stage out, or choose the distillation 'logits'"
            )
        return self


def run_distillation(task: Task, peers: Peers) -> Summary:
    """One worker's whole work. Raises `TrainingError` or `DatasetError`."""
    import torch
    from transformers.utils import logging

    from factory.training import model

    logging.disable_progress_bar()
    torch.set_num_threads(task.threads)
    config = check_as(DistillConfig, task.config, "the job")
    student, tokenizer = model.build(task.model, config)
    if config.freeze_embeddings and not config.use_peft:
        for layer in (student.get_input_embeddings(), student.get_output_embeddings()):
            layer.requires_grad_(False)
    data = load_data(Path(task.data), tokenizer, config)
    run = RunFolder(Path(task.run))
    objective: Callable[[Any], nn.Module] | None = None
    match config.distillation:
        case "logits":
            loss = _loss(config, Path(task.data), data)
            objective = lambda trained: Objective(trained, loss, precision(config))  # noqa: E731
        case "on_policy":
            objective = _on_policy(config, task, tokenizer, data)
    summary = fit(config, student, data, run, task.fingerprint, peers, objective=objective)
    if peers.rank == 0:
        if config.zero_stage:
            student, summary = gathered(task, config, data, run, summary)
        if config.use_peft:
            adapter.export(student, run, base_name=task.base_name, revision=task.revision)
        else:
            model.export(student, Path(task.model), run)
    return summary


def _loss(config: DistillConfig, folder: Path, data: Data) -> FromTeacher:
    return FromTeacher(
        in_order(
            teaching.read(folder),
            [sample.id for sample in data.train],
            [sample.learned for sample in data.train],
        ),
        _trusted(folder, data),
        kind=config.divergence,
        temperature=config.temperature,
        ce_weight=config.ce_weight,
        beta=config.beta,
    )


def _on_policy(
    config: DistillConfig, task: Task, tokenizer: Any, data: Data
) -> Callable[[Any], nn.Module]:
    if task.teacher is None:
        raise TrainingError("on_policy needs the teacher's weights; run it by pipelines.distill")
    teacher = teaching.load_teacher(Path(task.teacher))
    trusted = _trusted(Path(task.data), data)

    def objective(trained: Any) -> nn.Module:
        declared = trained.generation_config.eos_token_id
        stops = declared if isinstance(declared, list) else [declared]
        return OnPolicy(
            trained,
            teacher,
            data.train,
            trusted,
            vocabulary=len(tokenizer),
            stops={*stops, tokenizer.eos_token_id} - {None},
            lmbda=config.lmbda,
            max_new_tokens=config.max_new_tokens,
            top_k=config.top_k,
            kind=config.divergence,
            temperature=config.temperature,
            ce_weight=config.ce_weight,
            beta=config.beta,
            autocast=precision(config),
        )

    return objective


def _trusted(folder: Path, data: Data) -> list[bool]:
    """Whether the answer of each example is the data's own, not the teacher's."""
    written = {item.id: bool(item.synthetic) for item in dataset.read(folder, ["train"])["train"]}
    return [not written[sample.id] for sample in data.train]
