"""A lesson before it is given: who teaches, who learns, from what, and what that will take.

lesson = plan(settings, config)      # found and checked; the student's first weights are stored
foresee(settings, lesson)            # tokens, memory, time, dollars by pool: `--dry-run`
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from factory.catalog import pull
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.ledger.store import open_ledger
from factory.registry.versions import Registry
from factory.training import estimate, student
from factory.training.chat import IGNORED, Sample, encode_all
from factory.training.config import TrainConfig
from factory.training.distill import DistillConfig
from factory.training.errors import TrainingError
from factory.training.estimate import Beside, Estimate
from factory.training.merge import merge
from factory.training.prompts import Prompt
from factory.training.teaching import shared_vocabulary
from factory.training.train import load_data
from pipelines.finetune import Corpus, find_base, find_data
from pipelines.taught import Teacher, find_prompts

_VERSION = re.compile(r"(?P<name>[\w.-]+)@(?P<version>champion|\d+)")


def find_teacher(settings: Settings, store: ObjectStore, wanted: str) -> Teacher:
    """The weights that teach: of the registry, of the catalog, or in a folder.

    An adapter is folded into its base. Raises `TrainingError`, `RegistryError` or `CatalogError`.
    """
    if found := _VERSION.fullmatch(wanted):
        return _registered(settings, store, found["name"], found["version"])
    if wanted in settings.models:
        weights = pull.find(settings, wanted, store)
        if weights is None:
            raise TrainingError(
                f"model '{wanted}' is not in the object store; run `factory models pull {wanted}`"
            )
        revision = str(weights.meta.get("revision") or weights.hash)
        return _teacher(wanted, weights, wanted, weights.hash, revision)
    base = find_base(settings, store, wanted)
    return Teacher(
        name=base.name,
        path=base.folder,
        hash=base.revision,
        base_model=base.name,
        base_hash=base.revision,
        base_revision=base.revision,
    )


def _registered(settings: Settings, store: ObjectStore, name: str, which: str) -> Teacher:
    with closing(open_ledger(settings.database_url)) as ledger:
        registry = Registry(settings, ledger)
        if which == "champion":
            version = registry.champion(name)
            if version is None:
                raise TrainingError(
                    f"no version of '{name}' is promoted; evaluate and promote one first, or name "
                    f"a version as {name}@NUMBER"
                )
        else:
            version = registry.get(name, int(which))
        weights = registry.weights(name, version.version)
    line = version.lineage
    if not version.whole:
        base = store.get(pull.KIND, line.base_model, line.base_hash)
        weights = merge(store, base, version.path, version.adapter_hash)
    label = f"{name}@{version.version}"
    found = _teacher(label, weights, line.base_model, line.base_hash, line.base_revision)
    return replace(found, data_hash=line.data_hash)


def _teacher(
    name: str, weights: Object, base_model: str, base_hash: str, base_revision: str
) -> Teacher:
    return Teacher(
        name=name,
        path=weights.path,
        hash=weights.hash,
        base_model=base_model,
        base_hash=base_hash,
        base_revision=base_revision,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The weights a student starts from."""

    path: Path
    hash: str
    layers: tuple[int, ...] | None
    """Which of the teacher's; None for a student that was given."""


def find_student(
    settings: Settings, store: ObjectStore, teacher: Teacher, config: DistillConfig
) -> Start:
    """The student that was given, or one cut from the teacher, found or made.

    Raises `TrainingError`.
    """
    if config.student is not None:
        given = find_base(settings, store, config.student)
        return Start(path=given.folder, hash=given.revision, layers=None)
    total = json.loads((teacher.path / "config.json").read_text("utf-8")).get("num_hidden_layers")
    wanted = config.student_layers
    if isinstance(wanted, int):
        wanted = list(student.choose_layers(int(total or 0), wanted, config.student_layer_choice))
    meta = {"teacher": teacher.hash, "layers": wanted}
    name = f"{teacher.base_model}-{len(wanted)}-layers"
    for item in store.list("students"):
        if item.name == name and all(item.meta.get(key) == meta[key] for key in meta):
            return Start(path=item.path, hash=item.hash, layers=tuple(wanted))

    def fill(folder: Path) -> dict[str, Any]:
        cut = student.make_student(teacher.path, wanted, folder)
        return {"parameters": cut.parameters, "teacher_parameters": cut.teacher_parameters}

    made = store.put("students", name, fill, meta)
    return Start(path=made.path, hash=made.hash, layers=tuple(wanted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Everything a distillation needs, found and checked."""

    config: DistillConfig
    teacher: Teacher
    start: Start
    corpus: Corpus
    prompts: tuple[Prompt, ...]

    @property
    def learner(self) -> str:
        """The student in words."""
        if self.start.layers is None:
            return f"the student in {self.start.path}"
        return f"a student of its layers {', '.join(map(str, self.start.layers))}"


def plan(settings: Settings, config: DistillConfig) -> Lesson:
    """Find teacher, student, data and prompts.

    Raises `TrainingError`, `DatasetError`, `RegistryError` or `CatalogError`.
    """
    store = ObjectStore(settings.objects)
    teacher = find_teacher(settings, store, config.teacher)
    start = find_student(settings, store, teacher, config)
    if config.distillation != "sequence":
        _check_vocabulary(teacher.path, start.path)
    return Lesson(
        config=config,
        teacher=teacher,
        start=start,
        corpus=find_data(store, config.dataset),
        prompts=tuple(find_prompts(store, config.prompts)),
    )


def _check_vocabulary(teacher: Path, learner: Path) -> None:
    """Raises `TrainingError` when logits of the two cannot be compared."""
    from transformers import AutoTokenizer

    shared_vocabulary(
        AutoTokenizer.from_pretrained(teacher, local_files_only=True),
        AutoTokenizer.from_pretrained(learner, local_files_only=True),
    )


def foresee(settings: Settings, lesson: Lesson) -> Estimate:
    """What teaching and training will take, as if nothing were taught yet.

    A prompt counts as long as one with the data's usual answer. Raises `TrainingError` where the
    lesson does not fit this machine's memory, or `DatasetError`.
    """
    from transformers import AutoTokenizer

    config, teacher = lesson.config, lesson.teacher.path
    tokenizer = AutoTokenizer.from_pretrained(lesson.start.path, local_files_only=True)
    data = load_data(lesson.corpus.folder, tokenizer, config).train
    usual = sorted(data, key=lambda sample: sample.learned)[len(data) // 2]
    words = tokenizer.decode([token for token in usual.targets if token != IGNORED])
    said = [prompt.answered(words, None) for prompt in lesson.prompts]
    asked = encode_all(tokenizer, said, config.max_length, True) if said else []
    shape = estimate.measure(lesson.start.path, config)
    if config.freeze_embeddings and not config.use_peft:
        shape = replace(shape, trainable=shape.in_layers)
    work = estimate.workload(config, [*data, *asked])
    found = estimate.estimate(
        config,
        shape,
        work,
        flops_per_core=estimate.matrix_rate(config.bf16),
        cores=len(os.sched_getaffinity(0)),
        pools=settings.pools,
        beside=_teaching(config, estimate.measure(teacher, _whole(config)), data, asked, work),
    )
    estimate.refuse_what_does_not_fit(found, psutil.virtual_memory().total)
    return found


def _whole(config: DistillConfig) -> TrainConfig:
    """The teacher is looked at as it is, without an adapter of the student's."""
    return config.model_copy(update={"use_peft": False})


def _teaching(
    config: DistillConfig,
    teacher: estimate.Shape,
    data: Sequence[Sample],
    asked: Sequence[Sample],
    work: estimate.Workload,
) -> Beside:
    """What the teacher computes, and what it holds while the student is in memory too.

    It answers the prompts; it reads the data where its distributions are learned; and on policy it
    reads what the student says, and stays.
    """
    read = [*asked, *(data if config.distillation == "logits" else ())]
    flops = estimate.reading(
        teacher,
        sum(len(sample.ids) for sample in read),
        sum(sample.learned for sample in read),
    )
    if config.distillation != "on_policy":
        return Beside(flops=flops)
    flops += config.lmbda * estimate.reading(teacher, work.rows, work.learned)
    return Beside(flops=flops, memory_bytes=teacher.parameters * (2 if config.bf16 else 4))
