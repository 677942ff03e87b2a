"""`idle`: when a cluster, a session or a leftover that nobody uses is stopped."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from factory.config.section import Section


class Idle(Section):
    """When things stop by themselves. By default nothing does; `factory check idle` tells."""

    cluster_after_s: float | None = Field(default=None, gt=0)
    """Seconds without a request, a job or a session; null leaves an idle cluster alone."""
    session_after_s: float | None = Field(default=None, gt=0)
    """Seconds without work after which a driver that joined (a notebook) is ended, and from which
    it keeps no cluster up any more; null leaves sessions alone."""
    leftover_after_s: float | None = Field(default=None, gt=0)
    """Seconds without work after which detached actors and placement groups of ended jobs are
    removed; null leaves them alone."""
    announce_s: float = Field(default=600, ge=0)
    """Seconds between the announcement and the stop; whoever uses it in them keeps it."""
    ends_at: AwareDatetime | None = None
    """End date of an experimental cluster: it stops then even when it is used."""
