"""What a teacher makes of a data set: its answers to unlabelled prompts, and its distributions.

    found = teach_data(store, teacher, corpus, config, progress)
    found.path                       # train.jsonl, validation.jsonl, card.json, part-*.parquet

One object of kind `taught` a pair of teacher and data, found again rather than made again. While it
is made its parts lie in a folder of their own, so that a pass that was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from factory.catalog.code import UNKNOWN
from factory.catalog.objects import Object, ObjectStore
from factory.evaluation.scorers import first_label, normalise
from factory.evaluation.suite import read as read_suite
from factory.evaluation.transformers_answerer import TransformersAnswerer
from factory.training import dataset, teaching
from factory.training.chat import IGNORED, Sample, encode, encode_all
from factory.training.dataset import DatasetError, Example
from factory.training.distill import DistillConfig
from factory.training.divergence import Teaching, sparse
from factory.training.prompts import Prompt, prompts_hash, read_prompts
from factory.training.screening import CONTAMINATED, Filter, Overlap, asked, screen
from factory.training.teaching import teach
from pipelines.candidate import asked_of

KIND = "taught"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Weights that teach."""

    name: str
    path: Path
    hash: str
    base_model: str
    """Catalog name of the model they were made from."""
    base_hash: str
    base_revision: str
    data_hash: str = UNKNOWN
    """Of the data they were tuned on."""


def find_prompts(store: ObjectStore, wanted: str | None) -> list[Prompt]:
    """The prompts of the object store of that name, of a file or folder; none without a name.

    Raises `DatasetError`.
    """
    if wanted is None:
        return []
    path = Path(wanted).expanduser()
    if path.exists() or os.sep in wanted:
        return read_prompts(path)
    found = store.find("prompts", wanted)
    if found is None:
        raise DatasetError(
            f"there are no prompts '{wanted}' in the object store; make them first "
            "(`python -m pipelines.helpdesk --prompts` makes the pilot's) or give a file"
        )
    return read_prompts(found.path)


def teach_data(
    store: ObjectStore,
    teacher: Teacher,
    name: str,
    folder: Path,
    prompts: Sequence[Prompt],
    config: DistillConfig,
    scratch: Path,
    say: Say,
) -> Object:
    """The taught data set of `folder`, from the store or made now, under the name `name`.

    `scratch` keeps what is done until all of it is. Raises `TrainingError`, `DatasetError`, or
    `EvaluationError` for a prompt that is too long.
    """
    split = dataset.read(folder, ("train", "validation"))
    facts = {
        "teacher": teacher.hash,
        "data_hash": dataset.dataset_hash(split),
        "prompts_hash": prompts_hash(prompts) if prompts else None,
        "top_k": config.top_k if config.distillation == "logits" else 0,
        "temperature": config.temperature,
        "max_length": config.max_length,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    for item in store.list(KIND):
        if item.name == name and item.meta.get("key") == key:
            say(f"what {teacher.name} says about {name} is in the object store already")
            return item
    making = _Making(teacher, config, scratch / key[:16], say)
    labels = tuple(dataset.read_card(folder).get("labels") or ())
    clean, dropped = screen(prompts, [_unjudged(store, split)])
    answered, outside = making.answers(clean, labels)
    taught = {"train": [*split["train"], *answered], "validation": split["validation"]}
    if config.distillation == "logits":
        making.distributions(split["train"])
    card = dataset.card(
        taught,
        **{key: value for key, value in dataset.read_card(folder).items() if key not in _COUNTED},
        taught_by=teacher.hash,
        prompts=len(prompts),
        left_out={**dropped, "answer is no label": outside},
    )

    def fill(target: Path) -> None:
        dataset.write(target, taught, card)
        for path in making.parts:
            shutil.copyfile(path, target / path.name)

    made = store.put(KIND, name, fill, {"key": key, **facts})
    shutil.rmtree(making.folder, ignore_errors=True)
    return made


_COUNTED = ("hash", "counts", "labels", "synthetic", "suite_hash")
"""Facts of a card that are about other examples than the taught data set has."""


def _unjudged(store: ObjectStore, split: dataset.Split) -> Filter[Prompt]:
    """Lets no prompt pass that a stored suite, or the validation split, asks as well."""
    index = Overlap()
    for item in store.list("suites"):
        for case in read_suite(item.path).cases:
            index.add(asked_of(case))
    for example in split["validation"]:
        index.add(asked(example))

    def passes(prompt: Prompt) -> bool:
        said = "\n".join(turn.content for turn in prompt.messages if turn.role == "user")
        return index.share(said) < CONTAMINATED

    return "asked by a suite or the validation split", passes


class _Making:
    """A taught data set in the making: part files that a killed pass finds again."""

    def __init__(self, teacher: Teacher, config: DistillConfig, folder: Path, say: Say) -> None:
        self.teacher, self.config, self.folder, self.say = teacher, config, folder, say
        self.parts: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def tokenizer(self) -> Any:
        """The teacher's."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.teacher.path, local_files_only=True)

    def answers(
        self, prompts: Sequence[Prompt], labels: Sequence[str]
    ) -> tuple[list[Example], int]:
        """Answered prompts, and how many answers were none of the labels."""
        answered: list[Example] = []
        heard: dict[int, tuple[list[int], Teaching]] = {}
        answerer = TransformersAnswerer(
            self.teacher.path,
            batch_size=32,
            threads=len(os.sched_getaffinity(0)),
            max_model_len=None,
            heard=lambda at, ids, logits: heard.__setitem__(at, (ids, self._sparse(logits))),
        )
        for start in range(0, len(prompts), teaching.PART):
            number, part = start // teaching.PART, prompts[start : start + teaching.PART]
            path = self.folder / f"answers-{number:05d}.json"
            if not path.exists():
                heard.clear()
                texts = [
                    one.text
                    for one in answerer.answer(
                        [prompt.chat for prompt in part], self.config.max_answer_tokens, _silent
                    )
                ]
                self._keep(number, part, texts, heard)
                _write_json(path, texts)
                self.say(f"{self.teacher.name} answered {start + len(part)} of {len(prompts)}")
            if (logits := self.folder / f"part-prompts-{number:05d}.parquet").exists():
                self.parts.append(logits)
            for prompt, text in zip(part, json.loads(path.read_text("utf-8")), strict=True):
                label = first_label(text, labels)
                if text and (not labels or (label and normalise(text) == normalise(label))):
                    answered.append(prompt.answered(text, label))
        kept = {sample.id for sample in self._encoded(answered)}
        return [one for one in answered if one.id in kept], len(prompts) - len(answered)

    def distributions(self, examples: Sequence[Example]) -> None:
        """Write what the teacher says at the learned tokens of the data's own examples."""
        samples = self._encoded(examples)
        for number, part in teaching.parts(samples):
            path = self.folder / f"part-data-{number:05d}.parquet"
            if not path.exists():
                said = teach(
                    self._model,
                    part,
                    vocabulary=len(self.tokenizer),
                    k=self.config.top_k,
                    temperature=self.config.temperature,
                )
                teaching.write(path, [sample.id for sample in part], said)
                done = min((number + 1) * teaching.PART, len(samples))
                self.say(f"{self.teacher.name} has seen {done} of {len(samples)} examples")
            self.parts.append(path)

    def _encoded(self, examples: Sequence[Example]) -> list[Sample]:
        config = self.config
        return encode_all(self.tokenizer, examples, config.max_length, True) if examples else []

    def _keep(
        self,
        number: int,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        heard: Mapping[int, tuple[list[int], Teaching]],
    ) -> None:
        """Write the distributions behind a part's answers.

        An answer that is tokenized otherwise when it is read again has none of its own: the
        teacher reads it.
        """
        if self.config.distillation != "logits":
            return
        names: list[str] = []
        said: list[Teaching] = []
        for at, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            if not text:
                continue
            sample = encode(self.tokenizer, prompt.answered(text, None))
            ids, teaching_ = heard[at]
            if [target for target in sample.targets if target != IGNORED] == ids:
                names.append(sample.id)
                said.append(teaching_)
            else:
                names.append(sample.id)
                said += teach(
                    self._model,
                    [sample],
                    vocabulary=len(self.tokenizer),
                    k=self.config.top_k,
                    temperature=self.config.temperature,
                )
        if names:
            teaching.write(self.folder / f"part-prompts-{number:05d}.parquet", names, said)

    def _sparse(self, logits: Any) -> Teaching:
        return sparse(logits[:, : len(self.tokenizer)], self.config.top_k, self.config.temperature)

    @cached_property
    def _model(self) -> Any:
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        return teaching.load_teacher(self.teacher.path)


def _silent(_: int) -> None:
    return None


def _write_json(path: Path, value: Any) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value), "utf-8")
    draft.replace(path)
