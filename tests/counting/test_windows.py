"""Windows follow each other without a gap, whatever clocks do."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pythonricing.counting.model import BadRules, ZoneUnknown
from pythonricing.counting.windows import CALENDAR, check, window

FIXED = ["1s", "90s", "15m", "1h", "1d", "7d", "366d"]
#: From 2020 to 2037, in microseconds.
moments = st.integers(1_577_836_800_000_000, 2_145_916_800_000_000)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1_000_000


@given(moments, st.sampled_from(CALENDAR), st.sampled_from(sorted(available_timezones())))
def test_a_moment_is_in_one_window_of_the_calendar_and_the_next_one_begins_where_it_ends(
    now: int, every: str, zone: str
) -> None:
    found = window(every, zone, now)
    assert found.begins <= now < found.ends
    assert window(every, zone, found.begins) == window(every, zone, found.ends - 1) == found
    assert window(every, zone, found.ends).begins == found.ends


@given(moments, st.sampled_from(FIXED))
def test_fixed_windows_are_aligned_to_the_unix_epoch(now: int, every: str) -> None:
    found = window(every, "", now)
    assert found.begins <= now < found.ends
    assert found.begins % (found.ends - found.begins) == 0


@pytest.mark.parametrize(
    ("every", "zone", "now", "begins", "ends"),
    [
        # Clocks are put forward: a day of 23 hours; and back: one of 25.
        ("day", "Europe/Berlin", "2026-03-29T12:00+02:00", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00"),
        ("day", "Europe/Berlin", "2026-10-25T12:00+01:00", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00"),
        # Midnight is left out: the day begins at one.
        ("day", "America/Santiago", "2026-09-06T12:00-03:00", "2026-09-06T01:00-03:00", "2026-09-07T00:00-03:00"),
        # Midnight comes twice: the day begins with the first one.
        ("day", "America/Havana", "2026-11-01T12:00-05:00", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00"),
        ("week", "UTC", "2026-11-25T12:00+00:00", "2026-11-23T00:00+00:00", "2026-11-30T00:00+00:00"),
        ("month", "UTC", "2028-02-29T12:00+00:00", "2028-02-01T00:00+00:00", "2028-03-01T00:00+00:00"),
        ("month", "", "2026-12-31T23:59+00:00", "2026-12-01T00:00+00:00", "2027-01-01T00:00+00:00"),
    ],
)
def test_days_weeks_and_months_are_those_of_the_zone(every: str, zone: str, now: str, begins: str, ends: str) -> None:
    assert window(every, zone, at(now)) == (at(begins), at(ends))


@pytest.mark.parametrize("every", ["", *FIXED])
def test_a_counter_can_renew_after_seconds_to_days(every: str) -> None:
    check(every, "")


@pytest.mark.parametrize("zone", ["", "UTC", "Europe/Berlin", "Etc/GMT+12"])
def test_a_counter_can_renew_with_the_calendar_of_a_zone(zone: str) -> None:
    check("day", zone)


@pytest.mark.parametrize(
    ("every", "zone"),
    [
        *[(every, "") for every in ("0s", "-1s", "1", "s", "1y", "1.5h", " 1h", "01h", "367d", "1000000000s", "Day")],
        *[("day", zone) for zone in ("Europe", "Nowhere/At_all", "../etc/passwd", "/etc/localtime", "a b", "x" * 99)],
        *[("day", zone) for zone in ("localtime", "posixrules", "Factory", "posix/Europe/Berlin", "right/UTC")],
        ("1h", "Europe/Berlin"),
        ("", "Europe/Berlin"),
    ],
)
def test_what_is_no_renewal_is_refused(every: str, zone: str) -> None:
    with pytest.raises(BadRules):
        check(every, zone)


def test_the_calendar_is_utc_s_unless_a_zone_is_named() -> None:
    now = int(datetime(2026, 11, 25, 23, 30, tzinfo=UTC).timestamp()) * 1_000_000
    assert window("day", "", now) == window("day", "UTC", now)


def test_a_zone_that_only_another_worker_knows_is_no_bug_of_this_one() -> None:
    with pytest.raises(ZoneUnknown, match="no time zone 'Europe/Newer'"):
        window("day", "Europe/Newer", 0)
