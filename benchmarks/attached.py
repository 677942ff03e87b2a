"""This process on the cluster of a line that a benchmark has started.

with attached(factory, file):
    serve.status()
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from factory.cluster.local import environment, require

if TYPE_CHECKING:
    from factory import Factory


@contextmanager
def attached(factory: Factory, config: Path) -> Iterator[None]:
    """Ray is connected as long as the block lasts. It must not be imported before the first."""
    cluster = require(factory.settings)
    ours = environment(factory.settings, config)
    # Ray reads how to log in, and that one machine is a cluster, when it is imported.
    os.environ.update({name: value for name, value in ours.items() if name.startswith("RAY_")})
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
    try:
        yield
    finally:
        ray.shutdown()
