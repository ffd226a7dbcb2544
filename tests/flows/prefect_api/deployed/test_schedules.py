from datetime import UTC, datetime, timedelta

import pytest

from flows.prefect_api.deployed.schedules import firings, read_interval, read_schedule
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cron": "every day"}, ["--cron", "'every day'", "'0 2 * * *'"]),
        ({"cron": "0 25 * * *"}, ["--cron", "'0 25 * * *'", "hour"]),
        ({"cron": "0 0 2 * * *"}, ["--cron", "6 fields", "five"]),
        ({"cron": "0 2 31 2 *"}, ["--cron", "never comes"]),
        ({"interval": "6"}, ["--interval", "6", "30m, 6h or 1d"]),
        ({"interval": "0h"}, ["--interval", "0h", "above 0"]),
        ({"interval": "6h", "timezone": "Europe/Berln"}, ["--timezone", "Europe/Berln", "did you mean Europe/Berlin?"]),
        ({"timezone": "UTC"}, ["--timezone", "needs --cron or --interval"]),
        ({"cron": "0 2 * * *", "interval": "6h"}, ["--cron and --interval", "give only one of them"]),
    ],
)
def test_a_schedule_that_is_none_names_the_allowed_form(options: dict[str, str], expected: list[str]) -> None:
    given: dict[str, str | None] = {"cron": None, "interval": None, "timezone": None, **options}
    with pytest.raises(UserError) as refused:
        read_schedule(given["cron"], given["interval"], given["timezone"])
    assert all(part in str(refused.value) for part in expected)


def test_intervals_are_a_number_with_a_unit() -> None:
    given = {"90s": 90, "30m": 1800, "6h": 21600, "1d": 86400, "2w": 1209600}
    assert {text: read_interval(text) / timedelta(seconds=1) for text in given} == given


def test_a_cron_schedule_fires_in_its_time_zone_across_daylight_saving() -> None:
    schedule = read_schedule("0 2 * * *", None, "Europe/Berlin")
    assert schedule is not None
    times = firings(schedule, 3, since=datetime(2026, 10, 24, 12, tzinfo=UTC))
    assert [time.astimezone(UTC).hour for time in times] == [0, 1, 1]


def test_without_options_there_is_no_schedule() -> None:
    assert read_schedule(None, None, None) is None
