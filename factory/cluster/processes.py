"""The processes of one Ray head: finding all of them, and ending exactly those.

A head is known by pid and start time, so a recycled pid is never taken for it. What it started
is known by any of: being a descendant, standing in the head's session, or carrying the head's
mark in its environment (Ray moves some children to other sessions and rewrites their titles).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

from factory.cluster.errors import ClusterError

MARK = "FACTORY_CLUSTER_ID"
"""Environment variable that every process of a cluster inherits."""


def started(pid: int) -> float | None:
    """Start time of a process in seconds since the epoch; None when it is gone or a zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_same(pid: int, start: float) -> bool:
    """Whether the process that had this pid at that start time still runs."""
    now = started(pid)
    return now is not None and abs(now - start) < 1.0


def family(pid: int, start: float, mark: str) -> list[psutil.Process]:
    """The head, if it lives, and everything it started; never the caller itself."""
    members: dict[int, psutil.Process] = {}
    head_lives = is_same(pid, start)
    recycled = not head_lives and started(pid) is not None
    if head_lives:
        head = psutil.Process(pid)
        for process in [head, *_children(head)]:
            members[process.pid] = process
    for process in psutil.process_iter():
        if process.pid not in members and _belongs(process, None if recycled else pid, mark, start):
            members[process.pid] = process
    members.pop(os.getpid(), None)
    return [process for process in members.values() if _alive(process)]


def end(pid: int, start: float, mark: str, grace_s: float = 10.0) -> None:
    """End a head and all it started: ask first, then kill whoever is left.

    The head asks its own children; those beside it (the node meter, the queue's controller) are
    asked here. Raises `ClusterError` when something survives.
    """
    members = family(pid, start, mark)
    if is_same(pid, start):
        head = psutil.Process(pid)
        below = {process.pid for process in _children(head)}
        for process in members:
            if process.pid not in below:
                _signal(process.terminate)
        members = _left(members, grace_s)
    known = {process.pid: process for process in members}
    known.update({process.pid: process for process in family(pid, start, mark)})
    for process in known.values():
        _signal(process.kill)
    left = _left(known.values(), grace_s)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise ClusterError(f"the cluster's processes {pids} do not end; end them by hand")


def _belongs(process: psutil.Process, session: int | None, mark: str, start: float) -> bool:
    try:
        if process.create_time() < start - 1.0:
            return False
        if session is not None and os.getsid(process.pid) == session:
            return True
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def _children(process: psutil.Process) -> Iterable[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _left(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still live then; returns as soon as none does. A zombie has ended."""
    until = time.monotonic() + seconds
    living = list(processes)
    while (living := [process for process in living if _alive(process)]) and (
        time.monotonic() < until
    ):
        time.sleep(0.05)
    return living


def _signal(send: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        send()
