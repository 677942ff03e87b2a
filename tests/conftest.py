"""What is expensive is made once: the real model, one Ray cluster, one served line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory import config
from factory.catalog.objects import ObjectStore
from factory.catalog.pull import pull
from factory.config import Settings
from factory.embedding import installed
from tests.line import Line

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
for leaked in ("FACTORY_CONFIG", "FACTORY_HOME", "RAY_ADDRESS", "PREMIUM_BASE_URL"):
    os.environ.pop(leaked, None)


MODEL = "smollm2-135m"


@pytest.fixture(scope="session")
def model_dir(pytestconfig: pytest.Config) -> Path:
    """The packaged instruct model as safetensors; converted once, kept in pytest's cache."""
    store = ObjectStore(Path(pytestconfig.cache.mkdir("factory-objects")))
    return pull(default_settings(store.root.parent), MODEL, store).path


@pytest.fixture(scope="session")
def static_dir(pytestconfig: pytest.Config) -> Path:
    """The static embedder of the packaged encoder; distilled once, kept in pytest's cache."""
    store = ObjectStore(Path(pytestconfig.cache.mkdir("factory-objects")))
    return installed.make(default_settings(store.root.parent), store).path


def default_settings(home: Path) -> Settings:
    """The packaged configuration with its state under `home`."""
    settings = config.parse(config.default_text(), "the packaged factory.yaml", home, {})
    return settings.model_copy(update={"home": home})


@pytest.fixture(scope="session")
def line_home(model_dir: Path, static_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh home whose object store has the real models already."""
    home = tmp_path_factory.mktemp("home")
    objects = home / "objects"
    objects.mkdir()
    for kind, made in (("models", model_dir), ("embedders", static_dir)):
        (objects / kind).symlink_to(made.parents[1], target_is_directory=True)
    return home


@pytest.fixture(scope="session")
def line(line_home: Path) -> Iterator[Line]:
    """Data, a cluster, the base served, and after it a tuned champion: made once for all tests."""
    from factory import Factory
    from pipelines import helpdesk

    file = line_home / "factory.yaml"
    file.write_text(_line_config(), "utf-8")
    os.environ["FACTORY_CONFIG"] = str(file)
    factory = Factory(file, progress=lambda _: None)
    helpdesk.build(factory.objects, helpdesk.LABELS, 7)
    try:
        factory.start()
        yield Line(factory)
    finally:
        factory.down()
        factory.close()
        os.environ.pop("FACTORY_CONFIG", None)


def _line_config() -> str:
    """The packaged configuration with a free port, and a gate that a few steps can pass."""
    text = config.default_text()
    for old, new in (
        ("home: .factory", "home: .\n\ngateway: {port: 0}"),
        ("min: 0.40", "min: 0.02"),
        ("better_than_base: true", "better_than_base: false"),
        ("min_cases: 100", "min_cases: 10"),
        ("p95_ms: {max: 10000}", "p95_ms: {max: 60000}"),
    ):
        assert old in text, f"the packaged factory.yaml has no '{old}' any more"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="session")
def ray_cluster(line: Line) -> Iterator[None]:
    """This process connected to the line's cluster, so that tests share one."""
    import ray

    from factory.cluster.local import require

    cluster = require(line.factory.settings)
    ray.init(address=cluster.address, logging_level="warning", log_to_driver=False)
    yield
    ray.shutdown()
