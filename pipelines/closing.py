"""How every job ends: one JSON line on standard output, or one sentence on standard error.

def main(argv=None) -> int:
    options = parser().parse_args(argv)
    return closed(lambda: run(config.load(), options))
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from factory.catalog.errors import CatalogError
from factory.cluster.errors import ClusterError
from factory.config import ConfigError
from factory.evaluation.results import EvaluationError
from factory.evaluation.suite import SuiteError
from factory.ledger.errors import LedgerError
from factory.registry.errors import RegistryError
from factory.routing.errors import RoutingError
from factory.training.dataset import DatasetError
from factory.training.errors import TrainingError

ERRORS = (
    CatalogError,
    ClusterError,
    ConfigError,
    DatasetError,
    EvaluationError,
    LedgerError,
    RegistryError,
    RoutingError,
    SuiteError,
    TrainingError,
)
"""Ours: each says what is wrong, where, and what to do."""

FAILED, REFUSED, INTERRUPTED = 1, 3, 130
"""Exit codes beside 0; `REFUSED` is a gate that does not let a candidate pass."""

GOES_ON = "interrupted; the same command with the same --run-name goes on"


def closed(
    job: Callable[[], Mapping[str, Any]],
    *,
    code: Callable[[Mapping[str, Any]], int] = lambda _: 0,
    interrupted: str = "interrupted; nothing half-made was stored",
) -> int:
    """Do the job, print the object it returns, and return the exit code that `code` says."""
    try:
        line = job()
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(line), flush=True)
    return code(line)


def gate_code(line: Mapping[str, Any]) -> int:
    """The exit code of a job that may ask a gate, which says `promoted` in its line."""
    return REFUSED if line.get("promoted") is False else 0
