"""Keep what Ray Serve opens for itself off the network while the cluster is one machine.

Every replica runs a gRPC server for calls between deployments; Ray 2.60 binds it to all interfaces,
without TLS unless the cluster has it, and reads pickles from it.
"""

from __future__ import annotations

import os
from typing import Any

from factory.cluster.local import ONE_MACHINE


def keep_replica_on_loopback() -> None:
    """Bind this replica's internal gRPC server to 127.0.0.1. Call it in a deployment's constructor.

    Serve starts the server after the constructor. On a cluster of several machines, where replicas
    must reach each other, nothing is changed.
    """
    from ray.serve._private import replica

    if os.environ.get(ONE_MACHINE) != "0":
        return
    bind = replica.add_port_to_grpc_server

    def bind_locally(server: Any, address: str) -> int:
        port: int = bind(server, address.replace("[::]", "127.0.0.1"))
        return port

    replica.add_port_to_grpc_server = bind_locally
