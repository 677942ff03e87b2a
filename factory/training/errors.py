"""The one error of training: a sentence for the person who started the run."""

from __future__ import annotations


class TrainingError(Exception):
    """A run that cannot go on; the message says what, where, and what to do."""
