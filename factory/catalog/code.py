"""Which code is running: its commit, and whether files differ from it.

code_state(os.environ)             # Code(commit="4ee95fa…", dirty=False)
declaration(code)                  # what a job, whose folder has no .git, is told
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMIT_VARIABLE = "FACTORY_CODE_COMMIT"
UNKNOWN = "unknown"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """The code that ran."""

    commit: str
    """Git commit, or `unknown`."""
    dirty: bool | None
    """True when files differed from the commit; None when that is not known."""


def code_state(env: Mapping[str, str], root: Path = _ROOT) -> Code:
    """Commit and dirty flag of the code under `root`.

    Where the code is not in git, as in the working directory of a Ray job, the commit is taken
    from FACTORY_CODE_COMMIT (a `-dirty` ending is understood), and is `unknown` without it.
    """
    if _git(root, "ls-files", "--error-unmatch", "factory/sdk.py") is not None:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain")
        if commit and changes is not None:
            return Code(commit=commit, dirty=bool(changes))
    declared = env.get(COMMIT_VARIABLE, "").strip()
    if declared and declared != UNKNOWN:
        return Code(commit=declared.removesuffix("-dirty"), dirty=declared.endswith("-dirty"))
    return Code(commit=UNKNOWN, dirty=None)


def declaration(code: Code) -> dict[str, str]:
    """The environment variable that tells another process which code it runs."""
    return {COMMIT_VARIABLE: code.commit + ("-dirty" if code.dirty else "")}


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None when it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
