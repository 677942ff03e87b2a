"""How the versions of what is deployed are told apart.

deployment_version(asdict(spec), cores)              # "5b0c…": 16 hexadecimal digits
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any


def deployment_version(*facts: Any) -> str:
    """Changes when a replica must be started anew, and not otherwise.

    Without it Serve takes every deployment of a `serve.run` for a new one.
    """
    text = json.dumps([version("budget-ai-factory"), *facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
