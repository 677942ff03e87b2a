"""What a spot node costs now, as far as its cloud says: AWS's price history, asked at a launch.

    told(child, {"InstanceType": "g5.2xlarge"}, zone="us-east-2a", at=now)   # nano-dollars, or None

`child` is Ray's node provider for that cloud. GCP has no such question among its compute calls.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any

from factory.config import MAX_USD_PER_HOUR, NANO

_log = logging.getLogger(__name__)


def told(
    child: object, node_config: Mapping[str, Any], zone: str | None, at: datetime
) -> int | None:
    """Nano-dollars for a node and hour; None for a cloud that does not say, or does not answer."""
    client = getattr(getattr(getattr(child, "ec2", None), "meta", None), "client", None)
    instance_type = node_config.get("InstanceType")
    if client is None or not instance_type:
        return None
    query: dict[str, Any] = {
        "InstanceTypes": [str(instance_type)],
        "ProductDescriptions": ["Linux/UNIX"],
        "StartTime": at,  # the price in force then, and what came after
        "MaxResults": 100,
    }
    if zone is not None:
        query["AvailabilityZone"] = zone
    try:
        answer = client.describe_spot_price_history(**query)
        return dearest(answer["SpotPriceHistory"])
    except Exception as error:  # whatever a cloud's library raises; a launch must not fail for it
        _log.warning("AWS does not tell the spot price of %s: %s", instance_type, error)
        return None


def dearest(history: Iterable[Mapping[str, Any]]) -> int | None:
    """The highest of the zones' newest prices: the zone that is taken is not known before."""
    newest: dict[str, tuple[datetime, int]] = {}
    for row in history:
        try:
            usd = Decimal(str(row["SpotPrice"]))
        except InvalidOperation:
            continue
        if not 0 < usd <= MAX_USD_PER_HOUR:
            continue
        zone, at = str(row["AvailabilityZone"]), row["Timestamp"]
        if zone not in newest or at > newest[zone][0]:
            newest[zone] = (at, int((usd * NANO).to_integral_value(rounding=ROUND_CEILING)))
    return max((price for _, price in newest.values()), default=None)
