"""The budget AI factory: tune, judge, promote and serve open models, and know what they cost.

from factory import Factory
factory = Factory()
print(factory.costs())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.sdk import Factory

__all__ = ["Factory"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the SDK on first use, so that `import factory.config` stays light."""
    if name == "Factory":
        from factory.sdk import Factory

        return Factory
    raise AttributeError(f"module 'factory' has no attribute '{name}'")
