"""The errors of the cluster: a sentence for the person who asked."""

from __future__ import annotations


class ClusterError(Exception):
    """A cluster or job that cannot be used; the message says what, where, and what to do."""


class JobError(ClusterError):
    """A job that ended without success."""
