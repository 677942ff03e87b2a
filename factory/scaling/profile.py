"""How fast one replica is: the cost of a step, of a prompt token, of a running request.

    profile = Profile.read(Path("profile.json"))
    profile.step_s(running=16, prompt_tokens=0, context=8000)      # 0.11

A step of continuous batching computes a token for every running request and a piece of waiting
prompts. Its time is nearly linear in all of it, and `fit` finds the costs from measured
requests. `factory profile MODEL` measures a running engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.optimize import nnls

from factory.scaling.errors import ScalingError


class Profile(BaseModel):
    """The costs of one replica, in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """What was measured."""
    hardware: str
    """On what."""
    measured: str
    """When, and by which command."""
    per_step_s: float = Field(gt=0, lt=60)
    """Seconds of a step before anything is computed for anybody."""
    per_sequence_s: float = Field(ge=0, lt=60)
    """Seconds more for every running request."""
    per_prompt_token_s: float = Field(gt=0, lt=10)
    """Seconds more for every prompt token in the step."""
    per_context_token_s: float = Field(default=0.0, ge=0, lt=1)
    """Seconds more for every token of context that the running requests hold."""
    overhead_s: float = Field(default=0.0, ge=0, lt=60)
    """Seconds that a request spends outside of steps: gateway, tokens, network."""
    max_batch: int = Field(gt=0, le=4096)
    """Requests that run at once."""
    max_ongoing: int = Field(gt=0, le=100_000)
    """Requests that a replica takes at once; the others wait where any replica may take them."""
    step_tokens: int = Field(default=2048, gt=0)
    """Most tokens of a step, prompts and running requests together."""
    kv_tokens: int = Field(gt=0)
    """Tokens that the KV cache holds."""
    startup_s: float = Field(gt=0, lt=86_400)
    """Seconds from the order of a replica to its first answer."""
    usd_per_hour: float = Field(default=0.0, ge=0)
    """What an hour of a replica costs."""

    def step_s(self, *, running: int, prompt_tokens: float, context: float) -> float:
        """Seconds of one step."""
        return (
            self.per_step_s
            + self.per_sequence_s * running
            + self.per_prompt_token_s * prompt_tokens
            + self.per_context_token_s * context
        )

    def alone_s(self, prompt: float) -> float:
        """Time to first token of a prompt on an idle replica."""
        steps = self.per_step_s * max(1.0, prompt / self.step_tokens)
        return self.overhead_s + steps + self.per_prompt_token_s * prompt

    @classmethod
    def read(cls, path: Path) -> Profile:
        """A profile from its JSON file. Raises `ScalingError`."""
        try:
            return cls.parse(path.read_text("utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ScalingError(f"cannot read the profile {path}: {error}") from error

    @classmethod
    def parse(cls, text: str, name: str) -> Profile:
        """A profile from JSON text. Raises `ScalingError`."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ScalingError(
                f"{name} is not a profile: {where}: {first['msg']}; `factory profile` makes one"
            ) from error

    @classmethod
    def packaged(cls, name: str = "smollm2-135m-2cores") -> Profile:
        """A profile that was measured beforehand and ships with the package."""
        text = resources.files("factory.scaling").joinpath("profiles", f"{name}.json").read_text()
        return cls.parse(text, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Some requests that ran together on an otherwise idle replica."""

    running: int
    """How many ran at once."""
    prompt: float
    """Tokens of each prompt."""
    generated: float
    """Tokens of each answer."""
    ttft_s: float
    """Median time to first token."""
    inter_token_s: float
    """Median time between two tokens once all of them ran."""
    beside: float = 0.0
    """Answers that were under way already when these requests came."""
    context: float = 0.0
    """Tokens of context that those held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The costs that `fit` finds, in seconds."""

    per_step_s: float
    per_sequence_s: float
    per_prompt_token_s: float
    per_context_token_s: float
    overhead_s: float
    error: float
    """Mean relative error of the fitted step times."""


def fit(samples: Sequence[Sample]) -> Costs:
    """The costs behind the measurements, by non-negative least squares on relative errors.

    Decoding gives (step, sequence, context). A request that comes by itself then waits for half a
    step of the answers under way, and for the step that computes its prompt beside them; what is
    left of its time to first token is a line in its length: the cost of a prompt token, and what
    it spends outside of steps. Raises `ScalingError` when the measurements do not determine them.
    """
    decoding = [one for one in samples if one.inter_token_s > 0]
    alone = [one for one in samples if one.running == 1 and one.ttft_s > 0]
    if len({one.running for one in decoding}) < 2 or len({one.prompt for one in alone}) < 2:
        raise ScalingError(
            "a profile needs at least two batch sizes and, for single requests, two prompt lengths"
        )
    rows = np.array(
        [[1.0, one.running, one.running * (one.prompt + one.generated / 2)] for one in decoding]
    )
    times = np.array([one.inter_token_s for one in decoding])
    (step, sequence, context), _ = nnls(rows / times[:, None], np.ones(len(times)))
    firsts = np.array([one.ttft_s for one in alone])
    busy = np.array([[1.0, one.beside, one.context] for one in alone]) @ [step, sequence, context]
    left = firsts - busy * np.where([one.beside > 0 for one in alone], 1.5, 1.0)
    design = np.array([[1.0, one.prompt] for one in alone])
    (overhead, prompt), _ = nnls(design / firsts[:, None], left / firsts)
    if step <= 0 or prompt <= 0:
        raise ScalingError("the measurements are too noisy for a profile; measure a quiet machine")
    fitted = rows @ np.array([step, sequence, context])
    return Costs(
        per_step_s=float(step),
        per_sequence_s=float(sequence),
        per_prompt_token_s=float(prompt),
        per_context_token_s=float(context),
        overhead_s=float(overhead),
        error=float(np.mean(np.abs(fitted - times) / times)),
    )
