"""What the node provider sees of spot zones, into the ledger's record.

    record = Record("sqlite:////opt/factory/.factory/factory.db")
    record.saw({"factory/pool": "spot", "ray.io/availability-zone": "a", …}, False, "stock-out", t)

The provider runs in Ray's autoscaler: a ledger that does not answer is told in the log, and never
keeps a node from starting.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from factory.config import MARKET_LABEL, POOL_LABEL, ZONE_LABEL
from factory.ledger.errors import LedgerError
from factory.ledger.store import Ledger, open_ledger
from factory.ledger.zones import Observation, observe

_log = logging.getLogger(__name__)


class Record:
    """The record at a database URL; without one nothing is kept."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._ledger: Ledger | None = None

    def takes(self, labels: Mapping[str, str]) -> bool:
        """Whether anything is kept of a node with these labels: a spot node of a pool."""
        known = self._url is not None and POOL_LABEL in labels
        return known and labels.get(MARKET_LABEL) == "spot"

    def saw(
        self,
        labels: Mapping[str, str],
        up: bool,
        source: str,
        at: float,
        nusd_per_hour: int | None = None,
    ) -> bool:
        """Keep whether a spot node with these labels could be had; True when that is news.

        A node type without a zone counts to the zone that has its pool's name.
        """
        if self._url is None or not self.takes(labels):
            return False
        pool = labels[POOL_LABEL]
        look = Observation(
            at=datetime.fromtimestamp(at, UTC),
            pool=pool,
            zone=labels.get(ZONE_LABEL, pool),
            up=up,
            source=source,
            nusd_per_hour=nusd_per_hour,
        )
        try:
            if self._ledger is None:
                self._ledger = open_ledger(self._url)
            return observe(self._ledger, [look]) > 0
        except LedgerError as error:
            _log.warning("what zone %s has is not recorded: %s", look.zone, error)
            return False
