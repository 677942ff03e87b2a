"""Several regressions' outputs to one chance by tier.

mix = stack(out_of_fold, good, prior)     # weights (2, members)
chances = mixed(outputs, mix, prior)      # float32 (n, tiers) in [0, 1]

Stacked regressions (Breiman 1996) with weights that are not negative, shrunk towards equal ones:
one set for how good the lowest tier is, another for what each further tier adds, since a view may
tell the one and not the other. Outputs are float32 (n, members, tiers).
"""

from __future__ import annotations

import numpy as np

from factory.routing.members import Floats


def steps(values: Floats) -> Floats:
    """The last axis (tiers) as the lowest tier's value and what each further tier adds."""
    return np.concatenate([values[..., :1], np.diff(values, axis=-1)], axis=-1)


def gain_error(outputs: Floats, good: Floats) -> float:
    """Squared error of what further tiers add: the order of requests depends on nothing else."""
    difference = (steps(outputs) - steps(good))[:, 1:] if good.shape[1] > 1 else outputs - good
    return float(np.nanmean(difference**2))


def stack(outputs: Floats, good: Floats, prior: Floats) -> Floats:
    """Weights (2, members), not negative, shrunk towards equal ones."""
    from scipy.optimize import nnls

    members = outputs.shape[1]
    inputs, labels = steps(outputs - prior), steps(good - prior)
    mix = np.full((2, members), 1 / members, dtype=np.float32)
    for row, part in enumerate((slice(0, 1), slice(1, None))):
        x = inputs[:, :, part].transpose(0, 2, 1).reshape(-1, members).astype(np.float64)
        y = labels[:, part].reshape(-1).astype(np.float64)
        x, y = x[~np.isnan(y)], y[~np.isnan(y)]
        if not len(y):
            continue
        # Predictions explain little of a noisy label, so the data speak softly; so does this.
        strength = float(np.sqrt(np.mean(x**2) * len(y) * 0.5))
        tie = strength * np.eye(members)
        mix[row] = nnls(
            np.vstack([x, tie]), np.concatenate([y, np.full(members, strength / members)])
        )[0]
    return mix


def mixed(outputs: Floats, mix: Floats, prior: Floats) -> Floats:
    """Members' outputs (n, members, tiers) to chances (n, tiers)."""
    moves = steps(outputs - prior)
    low = np.einsum("nm,m->n", moves[:, :, 0], mix[0])[:, None]
    more = np.einsum("nmt,m->nt", moves[:, :, 1:], mix[1])
    chances = prior + np.cumsum(np.concatenate([low, more], axis=1), axis=1)
    out: Floats = np.clip(chances, 0.0, 1.0).astype(np.float32)
    return out
