"""When a counter renews: at the end of each window of fixed length, or of each day, week or month of a time zone."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from pythonricing.counting.model import BadRules, ZoneUnknown

if TYPE_CHECKING:
    from datetime import tzinfo

#: Fixed windows are aligned to the Unix epoch.
FIXED = re.compile(r"([1-9][0-9]{0,8})([smhd])")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
CALENDAR = ("day", "week", "month")
ZONE = re.compile(r"[A-Za-z0-9_+/-]{1,64}")
#: Names in a database's files that are no zones, or mean another one on each machine.
NO_ZONES = re.compile(r"localtime|posixrules|Factory|(?:posix|right)/.*")
#: The longest fixed window.
MAX_SECONDS = 366 * 86_400


class Window(NamedTuple):
    """The time from `begins` until just before `ends`, in microseconds of the Unix epoch."""

    begins: int
    ends: int


def check(every: str, zone: str) -> None:
    """See that a counter can renew like this. Raises BadRules."""
    if every in CALENDAR:
        if zone:
            try:
                if ZONE.fullmatch(zone) is None or NO_ZONES.fullmatch(zone):
                    raise ValueError
                _zone(zone)
            except (ValueError, KeyError, OSError):
                raise BadRules(f"there is no time zone {zone!r}") from None
        return
    if zone:
        raise BadRules("a zone is for counters that renew every day, week or month")
    if every and (FIXED.fullmatch(every) is None or length(every) > MAX_SECONDS):
        raise BadRules(
            'every is "day", "week", "month", or seconds to days such as "90s", "15m", "1h", "1d", up to "366d"'
        )


def length(every: str) -> int:
    """The seconds of a fixed window; 0 for one of the calendar."""
    found = FIXED.fullmatch(every)
    return 0 if found is None else int(found[1]) * UNITS[found[2]]


def window(every: str, zone: str, now: int) -> Window:
    """The window that contains a moment, which is in microseconds, as the result is. Raises ZoneUnknown.

    Days begin at midnight, or where clocks are put forward then, with the first moment of their date; weeks on Monday.
    """
    seconds = length(every)
    if seconds:
        begins = now // (seconds * 1_000_000) * seconds
        return Window(begins * 1_000_000, (begins + seconds) * 1_000_000)
    try:
        where = _zone(zone)
    except (ValueError, KeyError, OSError):
        raise ZoneUnknown(zone) from None
    today = datetime.fromtimestamp(now // 1_000_000, where).date()
    match every:
        case "day":
            first, after = today, today + timedelta(days=1)
        case "week":
            first = today - timedelta(days=today.weekday())
            after = first + timedelta(days=7)
        case _:
            first = today.replace(day=1)
            after = (first + timedelta(days=31)).replace(day=1)
    return Window(_begin(first, where), _begin(after, where))


def _begin(day: date, zone: tzinfo) -> int:
    # Where midnight comes twice, the first one; where it is left out, what it would have been is when it is left out.
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * 1_000_000


@lru_cache(maxsize=64)
def _zone(zone: str) -> tzinfo:
    return ZoneInfo(zone) if zone else UTC
