"""How far a student's next-token distribution is from its teacher's.

    teacher = sparse(logits, k=64)                        # what the cache keeps
    divergence("forward_kl", student_logits, teacher, temperature=2.0)

A teacher is kept as the logits of its `k` likeliest tokens and one number for all others: the
logarithm of their summed exponentials at a temperature. Both distributions are then compared over
`k + 1` outcomes, the last being "any other token". With `k` the whole vocabulary that is the
textbook formula; with fewer it is a lower bound on it (the data processing inequality), and its
gradient still pulls the student's mass away from what the teacher holds unlikely.

Forward and reverse Kullback-Leibler divergence as in Hinton et al. 2015 (arXiv:1503.02531) and Gu
et al. 2024 (arXiv:2306.08543); the generalized Jensen-Shannon divergence as in Agarwal et al. 2024
(GKD, arXiv:2306.13649, equation 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["forward_kl", "reverse_kl", "jsd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """A teacher's distribution over the next token, for a number of positions."""

    ids: torch.Tensor
    """Token ids of the likeliest tokens, `[positions, k]`, int64."""
    logits: torch.Tensor
    """Their logits, `[positions, k]`, float32."""
    tail: torch.Tensor
    """`T * logsumexp(logit / T)` over all other tokens, `[positions]`; -inf without any."""
    temperature: float
    """The `T` that `tail` was taken at."""

    def to(self, device: torch.device) -> Teaching:
        """The same on another device."""
        return Teaching(
            ids=self.ids.to(device),
            logits=self.logits.to(device),
            tail=self.tail.to(device),
            temperature=self.temperature,
        )


def sparse(logits: torch.Tensor, k: int, temperature: float) -> Teaching:
    """What is kept of a teacher's `logits`, `[positions, vocabulary]`, at one temperature.

    Logits are shifted so that the likeliest token of each position has 0: the distribution is the
    same, and half-precision storage keeps its digits where they count.
    """
    full = logits.float()
    full = full - full.amax(-1, keepdim=True)
    k = min(k, full.shape[-1])
    values, ids = full.topk(k, dim=-1)
    rest = (full / temperature).scatter(-1, ids, float("-inf"))
    tail = temperature * torch.logsumexp(rest, -1)
    return Teaching(ids=ids, logits=values, tail=tail, temperature=temperature)


def divergence(
    kind: Kind,
    student: torch.Tensor,
    teacher: Teaching,
    *,
    temperature: float,
    beta: float = 0.5,
) -> torch.Tensor:
    """Divergence of each position, `[positions]`, in nats, not multiplied by `temperature**2`.

    `student` are logits, `[positions, vocabulary]`. `beta` weighs the teacher in the mixture of
    the Jensen-Shannon divergence and lies strictly between 0 and 1. Raises `ValueError` for a
    temperature that the teacher was not kept at.
    """
    if temperature != teacher.temperature:
        raise ValueError(
            f"the teacher was kept at temperature {teacher.temperature}, not {temperature}"
        )
    log_p = _teacher(teacher)
    log_q = _student(student, teacher.ids, temperature)
    match kind:
        case "forward_kl":
            return _kl(log_p, log_q)
        case "reverse_kl":
            return _kl(log_q, log_p)
        case "jsd":
            if not 0 < beta < 1:
                raise ValueError(f"beta is {beta}; it must lie between 0 and 1")
            weights = torch.tensor([beta, 1 - beta], device=student.device).log()
            mixture = torch.logsumexp(torch.stack([log_p + weights[0], log_q + weights[1]]), dim=0)
            return beta * _kl(log_p, mixture) + (1 - beta) * _kl(log_q, mixture)


_FLOOR = -60.0
"""Log-probabilities below this are nothing: it keeps 0 times infinity out of the sums."""


def _teacher(teacher: Teaching) -> torch.Tensor:
    """Log-probabilities of the kept tokens and of any other, `[positions, k + 1]`."""
    scaled = torch.cat([teacher.logits, teacher.tail[:, None]], -1) / teacher.temperature
    return torch.log_softmax(scaled, -1).clamp_min(_FLOOR)


def _student(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """The same outcomes under the student."""
    log_q = torch.log_softmax(logits.float() / temperature, -1)
    kept = log_q.gather(-1, ids)
    if ids.shape[-1] >= logits.shape[-1]:
        rest = torch.full_like(kept[:, :1], _FLOOR)
    else:
        rest = torch.logsumexp(log_q.scatter(-1, ids, float("-inf")), -1, keepdim=True)
    return torch.cat([kept, rest], -1).clamp_min(_FLOOR)


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
