"""Off-peak windows: is it open, and when does it open next. Pure; time is passed in.

    opens_at(window, now)      # `now` while it is open, else the next opening, in UTC

Local wall-clock times decide, so a window keeps its hours when the clocks change; an opening that
falls into the hour which a change skips is that hour's end.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from factory.config import OffPeak

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def openings(window: OffPeak, now: datetime) -> list[tuple[datetime, datetime]]:
    """Openings and closings, in UTC, from yesterday's to eight days ahead."""
    zone = ZoneInfo(window.time_zone)
    today = now.astimezone(zone).date()
    found = []
    for offset in range(-1, 9):
        day = today + timedelta(days=offset)
        if _DAYS[day.weekday()] not in window.days:
            continue
        last = day if window.end > window.start else day + timedelta(days=1)
        start = datetime.combine(day, window.start, zone).astimezone(UTC)
        end = datetime.combine(last, window.end, zone).astimezone(UTC)
        if end > start:
            found.append((start, end))
    return found


def opens_at(window: OffPeak, now: datetime) -> datetime:
    """`now` while the window is open, else the moment in UTC at which it opens next."""
    for start, end in openings(window, now):
        if now < end:
            return max(start, now)
    raise AssertionError("a window opens at least once a week")
