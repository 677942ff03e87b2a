"""TCP ports on this machine: which are free, and whether one is."""

from __future__ import annotations

import socket
from random import Random

from factory.cluster.errors import ClusterError

_LOW, _HIGH = 20000, 32000
"""Below Linux's ephemeral range, so that no outgoing connection takes a port in between."""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free(count: int, random: Random) -> list[int]:
    """Different ports that nobody listens on, on any interface.

    Raises `ClusterError` when the machine has not that many.
    """
    candidates = random.sample(range(_LOW, _HIGH), _HIGH - _LOW)
    found: list[int] = []
    for port in candidates:
        if is_free(port, "0.0.0.0"):
            found.append(port)
            if len(found) == count:
                return found
    raise ClusterError(f"fewer than {count} TCP ports are free between {_LOW} and {_HIGH}")
