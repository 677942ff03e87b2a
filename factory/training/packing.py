"""Packing: conversations end to end in one row, each attending to nothing but itself.

    layout = Layout.of([31, 12, 18], shared=40)
    backbone(input_ids=row, position_ids=positions, layout=layout)   # a model loaded with NAME

No padding passes through the linear layers. `attend` stands in for the model's attention
function: it cuts the row at the boundaries, computes conversations of similar length together,
and lets each see the beginning that all of them share. A model takes it under the name
`NAME` as `attn_implementation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from factory.training.errors import TrainingError

NAME = "factory_packed"
"""What a model calls this attention."""

_WASTE = 1.35
"""How much longer than its shortest conversation a group's longest may be, beyond `_SHORT`."""

_SHORT = 128
"""Conversations up to this many tokens are one group: padding costs less than another call."""

_FEW = 512
"""Up to this many keys plain matrix products beat the fused kernel on a CPU."""


@dataclass(frozen=True, slots=True)
class Group:
    """Conversations of similar length whose attention is one call."""

    gather: torch.Tensor
    """Position in the row by conversation and place, flat; beyond the end it repeats the last."""
    keep: torch.Tensor
    """Places of `gather` that are no repetition."""
    longest: int
    sees_shared: bool

    def to(self, device: torch.device) -> Group:
        """The same on a device."""
        return replace(self, gather=self.gather.to(device), keep=self.keep.to(device))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the conversations of a packed row begin and end."""

    groups: tuple[Group, ...]
    order: torch.Tensor | None
    """Puts the groups' tokens, one group after the other, back into the row's order."""
    shared: int
    """Tokens at the row's beginning that every conversation sees."""

    @classmethod
    def of(cls, lengths: Sequence[int], shared: int = 0) -> Layout:
        """The layout of `shared` common tokens followed by conversations of these lengths."""
        starts = [shared]
        for length in lengths[:-1]:
            starts.append(starts[-1] + length)
        groups = [_group([(0, shared)], sees_shared=False)] if shared else []
        for part in alike(lengths):
            groups.append(_group([(starts[at], lengths[at]) for at in part], sees_shared=True))
        rows = torch.cat([group.gather[group.keep] for group in groups])
        order = torch.argsort(rows)
        in_order = torch.equal(order, torch.arange(len(order)))
        return cls(tuple(groups), None if in_order else order, shared)

    def to(self, device: torch.device) -> Layout:
        """The same on a device."""
        groups = tuple(group.to(device) for group in self.groups)
        order = None if self.order is None else self.order.to(device)
        return replace(self, groups=groups, order=order)


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Indices grouped by length: no padding worth the name, and as few groups as that allows."""
    order = sorted(range(len(lengths)), key=lambda at: (lengths[at], at))
    groups: list[list[int]] = []
    for at in order:
        if groups and lengths[at] <= max(_SHORT, _WASTE * lengths[groups[-1][0]]):
            groups[-1].append(at)
        else:
            groups.append([at])
    return [sorted(group) for group in groups]


def _group(spans: Sequence[tuple[int, int]], sees_shared: bool) -> Group:
    longest = max(length for _, length in spans)
    place = torch.arange(longest)
    rows = [start + place.clamp(max=length - 1) for start, length in spans]
    keep = torch.cat([place < length for _, length in spans]).nonzero()[:, 0]
    return Group(torch.cat(rows), keep, longest, sees_shared)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each conversation of a row `[1, heads, tokens, width]`.

    The signature is that of transformers' attention functions. Raises `TrainingError` for a model
    that bends its attention scores in a way this function does not know.
    """
    if attention_mask is not None or softcap is not None:
        raise TrainingError(
            "the model needs its own attention mask or soft-caps its attention, which packed "
            "training does not support; choose another base model"
        )
    q, k, v = (item[0].transpose(0, 1) for item in (query, key, value))
    parts = []
    for group in layout.groups:
        seen = layout.shared if group.sees_shared else 0
        asked, keys, values = (_pick(item, group) for item in (q, k, v))
        if seen:
            keys, values = _behind(k, seen, keys), _behind(v, seen, values)
        mask = _mask(group.longest, seen, sliding_window, q.device)
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        few = q.device.type == "cpu" and keys.shape[2] <= _FEW
        out = (_by_matrices if few else _fused)(asked, keys, values, mask, scale, dropout)
        flat = out.transpose(1, 2).reshape(-1, *q.shape[1:])
        parts.append(flat if len(group.keep) == len(flat) else flat.index_select(0, group.keep))
    row = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (row if layout.order is None else row.index_select(0, layout.order))[None], None


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _by_matrices(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """The same by plain matrix products, heads that share keys stacked instead of repeated."""
    count, heads, length, width = query.shape
    stacked = query.reshape(count, key.shape[1], -1, width)
    scores = (stacked * scale) @ key.transpose(2, 3)
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    hidden = ~mask.repeat(heads // key.shape[1], 1)
    weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1)
    weights = torch.nn.functional.dropout(weights, dropout, training=dropout > 0)
    return (weights @ value).view(count, heads, length, width)


def _pick(item: torch.Tensor, group: Group) -> torch.Tensor:
    """`[tokens, heads, width]` as `[conversations, heads, longest, width]`."""
    found = item.index_select(0, group.gather)
    return found.view(-1, group.longest, *item.shape[1:]).transpose(1, 2)


def _behind(item: torch.Tensor, shared: int, part: torch.Tensor) -> torch.Tensor:
    """Keys or values of the shared beginning in front of each conversation's own."""
    beginning = item[:shared].transpose(0, 1).expand(part.shape[0], -1, -1, -1)
    return torch.cat([beginning, part], dim=2)


def _mask(
    length: int, shared: int, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """Which of `shared + length` keys each of `length` queries sees; None means plain causal."""
    windowed = window is not None and window < shared + length
    if not shared and not windowed:
        return None
    seen = torch.ones(length, shared + length, dtype=torch.bool, device=device).tril(shared)
    return seen.triu(shared - window + 1) if windowed and window is not None else seen


AttentionInterface.register(NAME, attend)
