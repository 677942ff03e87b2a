"""A bench on which versions with a chosen accuracy are made in milliseconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from factory.catalog.code import Code
from factory.catalog.objects import Object, ObjectStore
from factory.config import Accuracy, Gate, Settings
from factory.evaluation.harness import judge
from factory.evaluation.suite import Case, Suite
from factory.ledger.store import Ledger, open_ledger
from factory.registry.lineage import Lineage
from factory.registry.mlflow_store import VersionStore
from factory.registry.versions import Registry
from tests.conftest import default_settings
from tests.evaluation.scripted import Scripted

NAME, BASE = "helpdesk", "b" * 64


def make_suite(version: int = 1, cases: int = 100) -> Suite:
    """A suite over two labels."""
    rows = [
        {
            "id": str(number),
            "messages": [{"role": "user", "content": f"question {number}"}],
            "expected": ("json", "os")[number % 2],
        }
        for number in range(cases)
    ]
    return Suite.build(
        name=NAME,
        version=version,
        labels=("json", "os"),
        cases=[Case.model_validate(row) for row in rows],
    )


@dataclass(frozen=True)
class Bench:
    """A registry with its store, and a way to make versions."""

    settings: Settings
    ledger: Ledger
    registry: Registry
    store: ObjectStore

    def adapter(self, content: str) -> Object:
        """An adapter folder with that content."""

        def fill(folder: Path) -> None:
            (folder / "adapter_config.json").write_text("{}")
            (folder / "adapter_model.safetensors").write_text(content)

        return self.store.put("adapters", NAME, fill)

    def results(
        self, suite: Suite, right: int, adapter_hash: str | None, model_hash: str = BASE
    ) -> Object:
        """Saved results with `right` right answers, the first ones."""
        answers = {
            case.chat[-1]["content"]: case.expected if place < right else "no idea"
            for place, case in enumerate(suite.cases)
        }
        return judge(
            suite, Scripted(answers, model_hash, adapter_hash), self.store, force=True
        ).item

    def version(self, content: str, right: int, suite: Suite | None = None, base: int = 5) -> int:
        """Register an adapter that answers `right` cases where its base answers `base`."""
        suite = suite or make_suite()
        adapter = self.adapter(content)
        return self.registry.register(
            NAME,
            adapter,
            None,
            lineage(suite, data_hash=content),
            self.results(suite, right, adapter.hash),
            self.results(suite, base, None),
        )

    def mlflow(self) -> VersionStore:
        """MLflow, behind the registry's back."""
        return VersionStore(self.settings.mlflow_uri)


def lineage(suite: Suite, data_hash: str = "data") -> Lineage:
    """A lineage for the bench's base."""
    return Lineage(
        base_model="smollm2-135m",
        base_hash=BASE,
        data_hash=data_hash,
        suite_hash=suite.hash,
        config={"lora_r": 16, "model": "smollm2-135m"},
        seeds={"train": 7},
        code=Code(commit="c0ffee", dirty=False),
        versions={"python": "3.11"},
    )


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database without any model."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    assert VersionStore(f"sqlite:///{path}").entries(NAME) == []
    return path


@pytest.fixture
def bench(tmp_path: Path, empty_mlflow: Path) -> Iterator[Bench]:
    """A fresh home whose gate wants 40 % on 30 cases, better than base, no worse than before."""
    gate = Gate(accuracy=Accuracy(min=0.4, no_worse_than_champion=0.01), min_cases=30)
    settings = default_settings(tmp_path).model_copy(update={"gates": {NAME: gate}})
    shutil.copyfile(empty_mlflow, tmp_path / "mlflow.db")
    ledger = open_ledger(settings.database_url)
    yield Bench(settings, ledger, Registry(settings, ledger), ObjectStore(settings.objects))
    ledger.close()
