"""`idle`: when a cluster that nobody uses is stopped."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from factory.config.section import Section


class Idle(Section):
    """When the cluster stops by itself. By default it never does; `factory check idle` tells."""

    cluster_after_s: float | None = Field(default=None, gt=0)
    """Seconds without a request, a job or a session; null leaves an idle cluster alone."""
    announce_s: float = Field(default=600, ge=0)
    """Seconds between the announcement and the stop; whoever uses the cluster in them keeps it."""
    ends_at: AwareDatetime | None = None
    """End date of an experimental cluster: it stops then even when it is used."""
