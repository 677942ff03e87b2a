"""After an attempt has ended: done, once more and when, or dead, with a diagnosis. Pure.

    verdict = judge(Ending("FAILED", exit_code=1, output=log_tail), failures=1, …)
    verdict.next, verdict.wait_s, verdict.diagnosis

An attempt that was interrupted (preempted, its node or head lost) is no failure of the job and has
a budget of its own. Mistakes that come again by themselves, such as a module that does not exist,
are not tried again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from factory.config import Retries

Next = Literal["done", "retry", "dead", "cancelled"]

_HOPELESS = (
    (re.compile(r"No module named ['\"]?(?P<what>[\w.]+)"), "the module {what} does not exist"),
    (re.compile(r"SyntaxError: (?P<what>.+)"), "its code has a syntax error: {what}"),
    (
        re.compile(r"error: (?P<what>(?:unrecognized|the following) arguments.*)"),
        "wrong usage: {what}",
    ),
)
_KNOWN = (
    (
        re.compile(r"CUDA out of memory|torch\.OutOfMemoryError"),
        "the GPU ran out of memory; lower the batch size or ask for more gpus",
    ),
    (
        re.compile(r"OutOfMemoryError|MemoryError|Killed by the OOM|\boom-kill", re.IGNORECASE),
        "the node ran out of memory; ask for a larger node",
    ),
    (re.compile(r"No space left on device"), "a disk is full; free space where the job writes"),
    (
        re.compile(r"Connection refused|Name or service not known|timed out", re.IGNORECASE),
        "something it talks to did not answer",
    ),
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How one attempt ended."""

    status: Literal["SUCCEEDED", "FAILED", "STOPPED", "LOST"]
    """Ray's status; LOST when cluster or node died with it."""
    exit_code: int | None = None
    message: str = ""
    """What Ray says."""
    output: str = ""
    """The end of what the job printed."""
    asked: Literal["cancel", "preempt"] | None = None
    """Whether we stopped it, and what for."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows."""

    next: Next
    diagnosis: str
    wait_s: float = 0.0
    failed: bool = False
    """Whether it counts as a failure of the job."""
    interrupted: bool = False
    """Whether it counts as an interruption."""


def judge(
    ending: Ending, failures: int, interruptions: int, retries: Retries, apart_s: float = 0.0
) -> Verdict:
    """What follows an attempt, after `failures` and `interruptions` of earlier ones."""
    if ending.status == "SUCCEEDED":
        return Verdict("done", "succeeded")
    if ending.asked == "cancel":
        return Verdict("cancelled", "cancelled by request")
    if ending.asked == "preempt" or ending.status in ("LOST", "STOPPED"):
        why = {
            "preempt": "preempted for another job",
        }.get(ending.asked or "", ending.message or "stopped from outside")
        if interruptions + 1 > retries.max_interruptions:
            return Verdict(
                "dead", f"interrupted {interruptions + 1} times, last: {why}", interrupted=True
            )
        return Verdict("retry", why, apart_s, interrupted=True)
    cause, hopeless = diagnose(ending)
    failed = failures + 1
    if hopeless:
        return Verdict("dead", f"{cause}; trying again would not help", failed=True)
    if failed >= retries.max_attempts:
        return Verdict("dead", f"failed {failed} times, last: {cause}", failed=True)
    wait = min(retries.backoff_s * 2 ** min(failed - 1, 60), retries.max_backoff_s)
    return Verdict("retry", f"{cause}; attempt {failed} of {retries.max_attempts}", wait, True)


def diagnose(ending: Ending) -> tuple[str, bool]:
    """A sentence for people, and whether the same would happen again."""
    if ending.exit_code is not None and ending.exit_code in (137, -9):
        return "it was killed, mostly for want of memory (exit code 137)", False
    for pattern, sentence in _HOPELESS:
        if found := pattern.search(ending.output):
            return sentence.format(what=found["what"].strip()), True
    for pattern, sentence in _KNOWN:
        if pattern.search(ending.output) or pattern.search(ending.message):
            return sentence, False
    lines = [line.strip() for line in ending.output.splitlines() if line.strip()]
    code = "" if ending.exit_code is None else f"exit code {ending.exit_code}: "
    last = lines[-1] if lines else ending.message.strip().splitlines()[-1:] or "no output"
    return f"{code}{last if isinstance(last, str) else last[0]}"[:500], False
