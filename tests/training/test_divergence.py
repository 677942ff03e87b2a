import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.training.divergence import Kind, divergence, sparse

KINDS: tuple[Kind, ...] = ("forward_kl", "reverse_kl", "jsd")


def logits(seed: int, rows: int = 4, vocabulary: int = 11, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * scale


def direct(kind: Kind, student: torch.Tensor, teacher: torch.Tensor, t: float, beta: float) -> list:
    """The textbook formula in plain Python floats."""
    found = []
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = _softmax(theirs, t), _softmax(mine, t)
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        match kind:
            case "forward_kl":
                found.append(_kl(p, q))
            case "reverse_kl":
                found.append(_kl(q, p))
            case "jsd":
                found.append(beta * _kl(p, m) + (1 - beta) * _kl(q, m))
    return found


def _softmax(row: list[float], t: float) -> list[float]:
    top = max(row)
    raised = [math.exp((value - top) / t) for value in row]
    return [value / sum(raised) for value in raised]


def _kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    beta=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_the_whole_vocabulary_gives_the_textbook_formula(
    kind: Kind, seed: int, temperature: float, beta: float
) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    kept = sparse(teacher, k=11, temperature=temperature)
    found = divergence(kind, student, kept, temperature=temperature, beta=beta)
    expected = torch.tensor(direct(kind, student, teacher, temperature, beta))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 11))
def test_it_is_never_negative_grows_with_k_and_is_zero_for_the_teacher_itself(
    kind: Kind, seed: int, k: int
) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    few = divergence(kind, student, sparse(teacher, k, 2.0), temperature=2.0)
    all_ = divergence(kind, student, sparse(teacher, 11, 2.0), temperature=2.0)
    assert (few >= -1e-5).all()
    assert (few <= all_ + 1e-4).all()
    same = divergence(kind, teacher, sparse(teacher, k, 2.0), temperature=2.0)
    torch.testing.assert_close(same, torch.zeros(4), atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), beta=st.floats(0.05, 0.95))
def test_jensen_shannon_is_bounded_by_the_entropy_of_its_weights(seed: int, beta: float) -> None:
    student, teacher = logits(seed, scale=20.0), logits(seed + 1, scale=20.0)
    found = divergence("jsd", student, sparse(teacher, 6, 1.0), temperature=1.0, beta=beta)
    bound = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))
    assert (found <= bound + 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [3, 11])
def test_descending_the_gradient_makes_the_student_the_teacher(kind: Kind, k: int) -> None:
    teacher = logits(3)
    student = torch.zeros_like(teacher, requires_grad=True)
    kept = sparse(teacher, k, 2.0)
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        divergence(kind, student, kept, temperature=2.0).sum().backward()
        optimizer.step()
    mine = torch.softmax(student / 2.0, -1).gather(-1, kept.ids)
    theirs = torch.softmax(teacher / 2.0, -1).gather(-1, kept.ids)
    torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0)


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    teacher = torch.tensor([[1e4, -1e4, 0.0, 5.0]])
    for kind in KINDS:
        student = torch.tensor([[-1e4, 1e4, 3.0, 0.0]], requires_grad=True)
        loss = divergence(kind, student, sparse(teacher, 2, 1.0), temperature=1.0).sum()
        loss.backward()
        assert math.isfinite(loss.item())
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_padded_beyond_the_shared_vocabulary_loses_only_what_it_puts_there(
    kind: Kind,
) -> None:
    student, kept = logits(5), sparse(logits(6), 11, 2.0)
    silent = torch.cat([student, torch.full((4, 5), -1e4)], -1)
    plain = divergence(kind, student, kept, temperature=2.0)
    torch.testing.assert_close(divergence(kind, silent, kept, temperature=2.0), plain)
    loud = torch.cat([student, torch.full((4, 5), 5.0)], -1)
    assert (divergence(kind, loud, kept, temperature=2.0) > plain).all()


def test_another_temperature_and_a_beta_at_the_edge_are_refused() -> None:
    kept = sparse(logits(1), 4, 2.0)
    with pytest.raises(ValueError, match=r"kept at temperature 2.0, not 1.0"):
        divergence("forward_kl", logits(2), kept, temperature=1.0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        divergence("jsd", logits(2), kept, temperature=2.0, beta=1.0)
