"""A head that cannot be started as it is asked for."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from factory.cluster import local
from factory.cluster.errors import ClusterError
from factory.config import Settings


def test_a_cluster_configuration_that_is_not_there_starts_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match=r"there is no cluster configuration '.*absent\.yaml'"):
        local.start(settings, autoscaling=tmp_path / "absent.yaml")
    assert local.current(settings) is None


def test_a_port_that_is_taken_starts_nothing(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"port {port} is taken"):
            local.start(settings, port=port)
    assert local.current(settings) is None
