"""A suite: a versioned set of evaluation cases in one readable file.

    rows = [{"id": "json.dumps", "messages": [...], "expected": "json"}, ...]
    cases = [Case.model_validate(row) for row in rows]
    suite = Suite.build(name="helpdesk", version=1, labels=("json", "os"), cases=cases)
    write(suite, folder / "helpdesk.suite")
    suite = read(folder)               # the file itself, or a folder with one *.suite file

The file is a YAML header between two lines `---`, then one JSON object a line:

    ---
    name: helpdesk
    version: 1
    scorer: mentions
    labels: [json, os]
    ---
    {"id": "json.dumps", "messages": [{"role": "user", "content": "..."}], "expected": "json"}

`suite.hash` covers header and cases by content, so white space and key order do not change it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from factory.evaluation.scorers import ScorerName

SUFFIX = ".suite"


class SuiteError(Exception):
    """A suite that cannot judge anything; the message says what, where, and what to do."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Message(_Row):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str = Field(min_length=1)
    """What is said."""


class Case(_Row):
    """One question with its expected answer."""

    id: str = Field(min_length=1)
    """Unique in its suite, for example the documented member's qualified name."""
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    """The conversation; its last turn is the user's."""
    expected: str = Field(min_length=1)
    """The right answer; one of the suite's labels where it has any."""
    synthetic: bool | None = Field(default=None, exclude_if=lambda value: value is None)
    """Must be absent or false: a case that a model wrote judges nothing."""

    @field_validator("messages")
    @classmethod
    def _ends_with_user(cls, value: tuple[Message, ...]) -> tuple[Message, ...]:
        if value[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return value

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages as plain dictionaries, as chat templates and HTTP APIs take them."""
        return [message.model_dump() for message in self.messages]


class Sample(_Row):
    """How a sample was drawn."""

    cases: int
    """Number of cases drawn."""
    seed: int
    """Seed of the draw."""


class Header(_Row):
    """What a suite says about itself."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=63)
    """Name of the task."""
    version: int = Field(ge=1)
    """Raised by one whenever cases change."""
    description: str = ""
    """Where the cases come from."""
    scorer: ScorerName = "mentions"
    """The primary scorer: its mean is the suite's accuracy. Others are reported beside it."""
    labels: tuple[str, ...] = ()
    """The known answers; each must occur. Empty for free text, scored by `exact`."""
    max_new_tokens: int = Field(default=8, ge=1)
    """Longest answer, in tokens."""
    synthetic: bool = False
    """Must be false: generated cases never judge a model."""
    sample: Sample | None = None
    """Set when this is a seeded sample of a larger suite."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Header and cases, checked. Make one with `build` or `read`."""

    header: Header
    cases: tuple[Case, ...]

    @classmethod
    def build(cls, *, cases: Iterable[Case], **header: Any) -> Self:
        """A checked suite; keywords are the fields of `Header`. Raises `SuiteError`."""
        try:
            suite = cls(header=Header(**header), cases=tuple(cases))
        except ValidationError as error:
            raise SuiteError(f"suite header: {_first(error)}") from error
        suite._check(f"suite '{suite.name}'")
        return suite

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.header.name

    @property
    def version(self) -> int:
        """Version declared in the header."""
        return self.header.version

    @property
    def scorer(self) -> ScorerName:
        """The primary scorer."""
        return self.header.scorer

    @property
    def labels(self) -> tuple[str, ...]:
        """The known answers."""
        return self.header.labels

    @cached_property
    def hash(self) -> str:
        """Hex sha256 over the content of header and cases."""
        digest = hashlib.sha256()
        for row in (self.header, *self.cases):
            digest.update(json.dumps(row.model_dump(mode="json"), sort_keys=True).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def sample(self, cases: int, seed: int) -> Suite:
        """A random sample without replacement, in file order; itself when it is small enough.

        The sample has its own hash. Labels that drop out of it stay known to the scorer.
        """
        if cases < 1:
            raise SuiteError(f"a sample needs at least one case, not {cases}")
        if cases >= len(self.cases):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.cases)), cases))
        header = self.header.model_copy(update={"sample": Sample(cases=cases, seed=seed)})
        return Suite(header=header, cases=tuple(self.cases[i] for i in chosen))

    def _check(self, where: str) -> None:
        if not self.cases:
            raise SuiteError(f"{where} has no cases; add at least one line after the header")
        if self.header.synthetic:
            raise SuiteError(f"{where} is marked synthetic; judge with real cases only")
        if generated := [case.id for case in self.cases if case.synthetic]:
            raise SuiteError(
                f"{where}: case '{generated[0]}' is synthetic, {len(generated)} in all; judge with "
                "real cases only"
            )
        repeated = [key for key, n in Counter(case.id for case in self.cases).items() if n > 1]
        if repeated:
            raise SuiteError(f"{where}: case id '{repeated[0]}' occurs twice; ids must be unique")
        if len({label.casefold() for label in self.labels}) < len(self.labels):
            raise SuiteError(f"{where}: two labels differ only in case; remove one")
        if self.scorer == "mentions" and not self.labels:
            raise SuiteError(f"{where}: scorer 'mentions' needs labels; list them or use 'exact'")
        expected = {case.expected for case in self.cases}
        if self.labels and (strange := sorted(expected - set(self.labels))):
            raise SuiteError(f"{where}: expected '{strange[0]}' is not among the labels; add it")
        if self.header.sample is None and (unused := sorted(set(self.labels) - expected)):
            raise SuiteError(
                f"{where}: label '{unused[0]}' is never expected by any case; "
                "add a case for it or remove the label"
            )


def read(path: Path) -> Suite:
    """The suite in `path`, a file or a folder with exactly one `*.suite` file.

    Raises `SuiteError` naming the file and line.
    """
    path = _file(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"cannot read the suite '{path}': {error}") from error
    lines = text.split("\n")
    marks = [number for number, line in enumerate(lines) if line.rstrip() == "---"][:2]
    if len(marks) < 2 or marks[0] != 0:
        raise SuiteError(f"{path}, line 1: a suite starts with a YAML header between two lines ---")
    header = _header(path, "\n".join(lines[1 : marks[1]]))
    cases = [
        _case(path, number, line)
        for number, line in enumerate(lines[marks[1] + 1 :], start=marks[1] + 2)
        if line.strip()
    ]
    suite = Suite(header=header, cases=tuple(cases))
    suite._check(str(path))
    return suite


def write(suite: Suite, path: Path) -> Path:
    """Write `suite` to the file `path` atomically and return the path.

    Raises `SuiteError` when the file name does not end in `.suite`.
    """
    if path.suffix != SUFFIX:
        raise SuiteError(f"the suite file '{path.name}' must end in {SUFFIX}")
    header = suite.header.model_dump(mode="json", exclude_none=True)
    rows = (json.dumps(case.model_dump(mode="json"), ensure_ascii=False) for case in suite.cases)
    text = "\n".join(
        ["---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(), "---", *rows]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
            out.write(text + "\n")
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) != 1:
        raise SuiteError(
            f"the folder '{path}' holds {len(found)} *{SUFFIX} files, not one; name the file"
        )
    return found[0]


def _header(path: Path, text: str) -> Header:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SuiteError(f"{path}: the header is not valid YAML: {error}") from error
    if not isinstance(raw, dict) or not isinstance(node, yaml.MappingNode):
        raise SuiteError(f"{path}, line 2: the header must be a mapping with name and version")
    try:
        return Header.model_validate(raw)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        keys = {item.value: item.start_mark.line for item, _ in node.value}
        raise SuiteError(f"{path}, line {keys.get(key, -1) + 2}: {_first(error)}") from error


def _case(path: Path, number: int, line: str) -> Case:
    try:
        return Case.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise SuiteError(f"{path}, line {number}: not valid JSON: {error}") from error
    except ValidationError as error:
        raise SuiteError(f"{path}, line {number}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    item = error.errors()[0]
    where = ".".join(str(part) for part in item["loc"]) or "the row"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key; remove it"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"
