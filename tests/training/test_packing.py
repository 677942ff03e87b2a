from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.training import packing
from factory.training.errors import TrainingError
from factory.training.packing import Layout, alike, attend

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=9)


@given(lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=20))
def test_groups_hold_every_conversation_once_and_similar_ones_together(lengths: list[int]) -> None:
    groups = alike(lengths)
    assert sorted(at for group in groups for at in group) == list(range(len(lengths)))
    for group in groups:
        sizes = [lengths[at] for at in group]
        assert max(sizes) <= max(packing._SHORT, packing._WASTE * min(sizes))


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """Textbook causal attention of one conversation, `[heads, tokens, width]`."""
    times = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    behind = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])[None]
    hidden = (behind < 0) | (behind >= (window or 10_000))
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


@settings(max_examples=30, deadline=None)
@given(
    lengths=LENGTHS,
    shared=st.integers(0, 20),
    window=st.sampled_from([None, 3, 30]),
    few=st.sampled_from([0, 512]),
    short=st.sampled_from([1, 128]),
)
def test_a_conversation_sees_itself_and_the_shared_beginning_only(
    lengths: list[int], shared: int, window: int | None, few: int, short: int
) -> None:
    torch.manual_seed(len(lengths))
    total = shared + sum(lengths)
    row = {
        name: torch.randn(1, heads, total, 8, requires_grad=True)
        for name, heads in (("q", 4), ("k", 2), ("v", 2))
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_FEW", few)
        patch.setattr(packing, "_SHORT", short)
        layout = Layout.of(lengths, shared)
        out, _ = attend(None, *row.values(), None, layout=layout, sliding_window=window)
    weight = torch.randn_like(out)
    packed = torch.autograd.grad((out * weight).sum(), list(row.values()))
    at, expected = shared, []
    for length in lengths:
        whole = [*range(shared), *range(at, at + length)]
        own = alone(*(item[0][:, whole] for item in row.values()), window)
        expected.append(own[:, shared:] if expected or not shared else own)
        at += length
    plain = torch.cat(expected, dim=1).transpose(0, 1)[None]
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad((plain * weight).sum(), list(row.values()))
    for ours, textbook in zip(packed, gradients, strict=True):
        torch.testing.assert_close(ours, textbook, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("odd", [{"softcap": 50.0}, {"attention_mask": torch.ones(1)}])
def test_a_model_with_other_attention_is_refused(odd: dict[str, Any]) -> None:
    row = torch.zeros(1, 2, 4, 8)
    arguments: dict[str, Any] = {"attention_mask": None, **odd}
    with pytest.raises(TrainingError, match="another base model"):
        attend(None, row, row, row, layout=Layout.of([4]), **arguments)
