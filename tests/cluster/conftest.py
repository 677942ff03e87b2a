"""Settings under a temporary home, and one running line for the tests of this folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.cluster import serving
from factory.config import Settings, parse

GATEWAY = """
import json, sys
print("deploying with", *sys.argv[1:], file=sys.stderr)
print(json.dumps({"url": "http://127.0.0.1:9", "notes": ["nothing is promoted"]}))
"""
"""A child that deploys nothing and says so in the way `serve_apps.up` does."""

PROBE = """
import json, os, sys, ray
ray.init(log_to_driver=False)
home = ray.get(ray.remote(lambda: os.environ["FACTORY_HOME"]).remote())
print(json.dumps({"home": home, "python": sys.executable, "args": sys.argv[2:]}), flush=True)
if sys.argv[1] != "0":
    sys.exit(int(sys.argv[1]))
"""
"""A job that reports how it finds itself and ends with the exit code it is told."""


def settings_at(home: Path, port: int = 0) -> Settings:
    document = {"models": {}, "teams": {}, "endpoints": {}, "gateway": {"port": port}}
    return parse(json.dumps(document), "test.yaml", home, {"FACTORY_HOME": str(home)})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_at(tmp_path / "home")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A home on which `up` has been run."""
    settings = settings_at(tmp_path_factory.mktemp("line"))
    serving.up(settings, cpus=2, deploy=[sys.executable, "-c", GATEWAY])
    yield settings
    serving.down(settings)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working folder with one module, `probing.probe`."""
    package = tmp_path / "work" / "probing"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "probe.py").write_text(PROBE)
    return package.parent
