"""The token that keeps other users of the machine out of the cluster.

Ray runs whatever it is sent, and other users of the machine reach its loopback ports too, so a head
is started with `RAY_AUTH_MODE=token` unless that variable says otherwise. The token is Ray's own:
`RAY_AUTH_TOKEN`, the file in `RAY_AUTH_TOKEN_PATH`, or `~/.ray/auth_token`, made when missing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from factory.cluster.errors import ClusterError

MODE = "RAY_AUTH_MODE"


def mode(env: Mapping[str, str]) -> str:
    """`token`, or what RAY_AUTH_MODE says."""
    return env.get(MODE) or "token"


def ensure(env: Mapping[str, str]) -> str:
    """The token, made on first use and readable by its owner only.

    Raises `ClusterError` when its file cannot be read or written.
    """
    if given := env.get("RAY_AUTH_TOKEN"):
        return given
    path = Path(env.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if token := path.read_text("utf-8").strip():
                return token
            handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(token := secrets.token_hex(32))
        return token
    except OSError as error:
        raise ClusterError(
            f"cannot use the cluster's token file '{path}': {error}. "
            "Set RAY_AUTH_TOKEN_PATH to a file you can write."
        ) from error


def headers(auth: str, env: Mapping[str, str]) -> dict[str, str]:
    """HTTP headers that open a cluster started with that auth mode."""
    return {"Authorization": f"Bearer {ensure(env)}"} if auth == "token" else {}
