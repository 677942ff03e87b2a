"""A small suite and a model folder small enough to run in milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.evaluation.suite import Case, Suite
from tests.training import tiny

WORDS = {"json": "serialise an object", "os": "a process and its files", "ssl": "a certificate"}


def case(number: int, expected: str) -> Case:
    """A case of the small suite."""
    question = f"{WORDS[expected]} " * (1 + number % 3) + f"number {number}"
    return Case.model_validate(
        {
            "id": f"{expected}.{number}",
            "messages": [
                {"role": "system", "content": "Name the module: json, os or ssl."},
                {"role": "user", "content": question},
            ],
            "expected": expected,
        }
    )


@pytest.fixture
def suite() -> Suite:
    """Twelve cases over three labels."""
    labels = tuple(WORDS)
    cases = [case(number, labels[number % 3]) for number in range(12)]
    return Suite.build(name="small", version=1, labels=labels, cases=cases)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with a tokenizer."""
    return tiny.model(tmp_path_factory.mktemp("tiny"))
