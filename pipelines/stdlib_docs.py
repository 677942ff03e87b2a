"""What the standard library says about itself: the documented public members of its modules.

    python -I -S pipelines/stdlib_docs.py json os       # one JSON document on standard output
    members, skipped = collect(("json", "os"))          # the same, from another process
    members, skipped = collect(("json",), inside=True)  # private members as well

Imports nothing but the standard library and runs in an interpreter of its own: whatever else a
process has imported may have changed the modules that are read here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import json
import pkgutil
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

_SKIPPED = re.compile(r"(^|\.)(__main__|test|tests|.*win32.*|.*windows.*)(\.|$)")
INSIDE = "--inside"
_NATIVE = {"os": ("posix", "nt"), "datetime": ("_datetime",)}


class DocsError(Exception):
    """A module that cannot be read; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Member:
    """A documented public callable or attribute of the standard library."""

    label: str
    group: str
    name: str
    doc: str
    context: str = ""
    """What the class of a method is for; follows the method's own words where there is room."""


def collect(labels: Sequence[str], inside: bool = False) -> tuple[list[Member], list[str]]:
    """Members of all these modules, and the names of submodules that were left out.

    With `inside` also those whose names begin with an underscore.
    Raises `DocsError` when this Python has no such module.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__, *([INSIDE] if inside else []), *labels],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DocsError(lines[-1])
    found = json.loads(done.stdout)
    return [Member(**member) for member in found["members"]], list(found["skipped"])


def modules(label: str, skipped: list[str]) -> Iterator[ModuleType]:
    """The module and its importable submodules, by name; names left out go to `skipped`.

    Raises `DocsError` when the module itself cannot be imported.
    """
    with _quiet():
        try:
            root = importlib.import_module(label)
        except Exception as error:
            raise DocsError(
                f"label '{label}': this Python has no such module ({error}); "
                "leave the label out or use another Python"
            ) from error
    yield root
    for info in pkgutil.iter_modules(getattr(root, "__path__", ()), f"{label}."):
        yield from _submodules(info.name, skipped)


def _submodules(name: str, skipped: list[str]) -> Iterator[ModuleType]:
    if _SKIPPED.search(name):
        skipped.append(name)
        return
    with _quiet():
        try:
            module = importlib.import_module(name)
        except Exception:
            skipped.append(name)
            return
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        yield from _submodules(info.name, skipped)


def members(label: str, skipped: list[str], inside: bool = False) -> Iterator[Member]:
    """The documented public members of a module and its submodules, each once.

    With `inside` also those whose names begin with an underscore.
    """
    hidden = "__" if inside else "_"
    seen: set[int] = set()
    for module in modules(label, skipped):
        for name, item in sorted(vars(module).items()):
            if name.startswith(hidden) or id(item) in seen or not callable(item):
                continue
            home = str(getattr(item, "__module__", ""))
            if not _belongs(home, label):
                continue
            seen.add(id(item))
            group = f"{home if home.startswith(label) else label}.{name}"
            yield from _documented(label, group, group, item)
            if inspect.isclass(item):
                about = _first_paragraph(item)
                for key, value in sorted(vars(item).items()):
                    if not key.startswith(hidden) and _describes_itself(value):
                        yield from _documented(label, group, f"{group}.{key}", value, about)


def _belongs(home: str, label: str) -> bool:
    return (
        home == label or home.startswith(f"{label}.") or home in _NATIVE.get(label, (f"_{label}",))
    )


def _describes_itself(value: Any) -> bool:
    kinds = (property, classmethod, staticmethod, functools.cached_property)
    return inspect.isroutine(value) or isinstance(value, kinds) or inspect.isgetsetdescriptor(value)


def _documented(
    label: str, group: str, name: str, item: Any, context: str = ""
) -> Iterator[Member]:
    if doc := _doc(item):
        yield Member(label, group, name, doc, context)


def _first_paragraph(item: Any) -> str:
    return _doc(item).split("\n\n")[0]


def _doc(item: Any) -> str:
    with _quiet():
        doc = getattr(item, "__doc__", None)
    return inspect.cleandoc(doc).strip() if isinstance(doc, str) else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def main(labels: Sequence[str]) -> int:
    """Print what `collect` reads."""
    inside, skipped = INSIDE in labels, list[str]()
    try:
        found = [
            asdict(member)
            for label in labels
            if label != INSIDE
            for member in members(label, skipped, inside)
        ]
    except DocsError as error:
        print(error, file=sys.stderr)
        return 1
    json.dump({"members": found, "skipped": skipped}, sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
