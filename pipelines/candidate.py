"""A candidate for promotion, what it was made from, and the suite that judges it.

tuned = find_adapter(store, "helpdesk", None)            # the newest adapter or whole weights
model, base = find_base(settings, store, "helpdesk", tuned)
suite = find_suite(store, "helpdesk", None)
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from factory.catalog import pull
from factory.catalog.code import UNKNOWN, code_state
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.evaluation.results import EvaluationError
from factory.evaluation.suite import Case, Suite, SuiteError, read
from factory.evaluation.transformers_answerer import TransformersAnswerer
from factory.registry.lineage import Lineage, library_versions
from factory.registry.versions import WEIGHTS
from factory.training import dataset
from factory.training.screening import asked


def find_case(
    settings: Settings,
    store: ObjectStore,
    name: str,
    *,
    adapter: str | None,
    suite: Path | None,
    limit: int | None,
    seed: int,
) -> tuple[Suite, Object, str, Object]:
    """The suite, the candidate, and catalog name and weights of what it was made from.

    Raises `SuiteError` or `EvaluationError`.
    """
    questions = find_suite(store, name, suite)
    if limit is not None:
        questions = questions.sample(limit, seed)
    refuse_generated(store, questions)
    tuned = find_adapter(store, name, adapter)
    return questions, tuned, *find_base(settings, store, name, tuned)


def find_suite(store: ObjectStore, name: str, path: Path | None) -> Suite:
    """The suite at `path`, or the newest stored one of that name. Raises `SuiteError`."""
    if path is not None:
        return read(path)
    stored = store.find("suites", name)
    if stored is None:
        raise SuiteError(
            f"there is no suite '{name}' in the object store; make one first "
            "(`python -m pipelines.helpdesk` makes the pilot's) or pass --suite FILE"
        )
    return read(stored.path)


def refuse_generated(store: ObjectStore, suite: Suite) -> None:
    """Raises `SuiteError` when a case of the suite was written by a model.

    It compares with the examples that stored data sets mark as synthetic: what a model wrote must
    not decide which model is promoted.
    """
    questions = {_words(asked_of(case)): case.id for case in suite.cases}
    for item in store.list("datasets"):
        if not item.meta.get("synthetic"):
            continue
        parts = [part for part in dataset.SPLITS if (item.path / f"{part}.jsonl").exists()]
        for examples in dataset.read(item.path, parts).values():
            for example in examples:
                if example.synthetic and (found := questions.get(_words(asked(example)))):
                    raise SuiteError(
                        f"case '{found}' of suite '{suite.name}' is the synthetic example "
                        f"'{example.id}' of data set '{item.name}'; judge with real cases only"
                    )


def asked_of(case: Case) -> str:
    """What the user of a case says."""
    return "\n".join(one.content for one in case.messages if one.role == "user")


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def find_adapter(store: ObjectStore, name: str, wanted: str | None) -> Object:
    """A stored candidate by hash, by folder, or the newest of that name; a new folder is stored.

    Raises `EvaluationError`.
    """
    stored = [
        item for kind in ("adapters", WEIGHTS) for item in store.list(kind) if item.name == name
    ]
    if wanted is None:
        if not stored:
            raise EvaluationError(
                f"there is no adapter '{name}' in the object store, and no weights of that name; "
                "tune one with `python -m pipelines.finetune` or pass --adapter FOLDER"
            )
        return max(stored, key=lambda item: (item.created, item.hash))
    folder = Path(wanted)
    if not folder.is_dir():
        found = [item for item in stored if len(wanted) >= 8 and item.hash.startswith(wanted)]
        if len(found) != 1:
            raise EvaluationError(
                f"'{wanted}' is neither a folder nor the hash (8 digits or more) of one adapter "
                f"or model '{name}'"
            )
        return found[0]
    whole = (folder / "config.json").is_file()
    for file in () if whole else ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise EvaluationError(f"'{folder}' has no {file}; name a complete PEFT adapter folder")
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    for item in stored:
        if dict(item.files) == files:
            return item

    def fill(target: Path) -> None:
        for relative in files:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / relative, target / relative)

    return store.put(WEIGHTS if whole else "adapters", name, fill)


def find_base(
    settings: Settings, store: ObjectStore, name: str, adapter: Object
) -> tuple[str, Object]:
    """Catalog name and weights of the model a candidate was made from.

    Raises `EvaluationError` when it is not pulled, or has changed since.
    """
    trained_on = (adapter.meta.get("config") or {}).get("model")
    wearers = [key for key, model in settings.models.items() if name in model.adapters]
    known = [trained_on] if trained_on in settings.models else wearers
    if not known:
        raise EvaluationError(
            f"no model lists an adapter '{name}'; add it under models.MODEL.adapters"
        )
    model = str(known[0])
    base = pull.find(settings, model, store)
    if base is None:
        raise EvaluationError(f"model '{model}' is not pulled; run `factory models pull {model}`")
    tuned_on = adapter.meta.get("base_revision")
    if tuned_on is not None and tuned_on not in (base.hash, base.meta.get("revision")):
        raise EvaluationError(
            f"adapter {adapter.hash[:12]} was tuned on {model} {tuned_on[:12]}, but the pulled "
            f"weights are {base.hash[:12]}; tune again, or pull the model it was tuned on"
        )
    return model, base


def lineage_of(
    adapter: Object, model: str, base: Object, suite: Suite, env: Mapping[str, str]
) -> Lineage:
    """Lineage of an adapter from what its tuning recorded and what is installed here."""
    meta = adapter.meta
    training = dict(meta.get("config") or {})
    seeds = {"train": training["seed"]} if isinstance(training.get("seed"), int) else {}
    return Lineage(
        base_model=model,
        base_hash=base.hash,
        base_revision=str(meta.get("base_revision") or base.meta.get("revision") or UNKNOWN),
        data_hash=str(meta.get("data_hash") or UNKNOWN),
        suite_hash=suite.hash,
        config=training,
        seeds=seeds,
        synthetic=dict(meta.get("synthetic") or {}),
        code=code_state(env),
        versions=library_versions() | dict(meta.get("libraries") or {}),
    )


def answerer_of(
    settings: Settings, weights: Object, catalog: str, wearing: Path | None, batch_size: int
) -> TransformersAnswerer:
    """Who answers for these weights, with the context that their catalog entry gives them."""
    entry = settings.models.get(catalog)
    return TransformersAnswerer(
        weights.path,
        wearing,
        batch_size=batch_size,
        threads=len(os.sched_getaffinity(0)),
        max_model_len=entry.max_model_len if entry else None,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
