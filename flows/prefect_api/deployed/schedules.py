"""Prefect schedules from the command line's options."""

import asyncio
import difflib
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import available_timezones

from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.server.schemas import schedules as server
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.types.counts import number_of

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
INTERVAL = re.compile(r"(\d{1,6})([smhdw])")
Schedule = CronSchedule | IntervalSchedule


def read_schedule(cron: str | None, interval: str | None, timezone: str | None) -> Schedule | None:
    """Return the schedule that the options describe; None without options.

    Raises ``UserError`` that names the option and its form.
    """
    if cron is not None and interval is not None:
        raise UserError("--cron and --interval: give only one of them")
    if timezone is not None:
        _check_timezone(timezone)
    if cron is not None:
        return _cron(cron, timezone)
    if interval is not None:
        return IntervalSchedule(interval=read_interval(interval), timezone=timezone)
    if timezone is not None:
        raise UserError(f"--timezone: {timezone}: needs --cron or --interval")
    return None


def read_interval(text: str) -> timedelta:
    """Read ``30m``, ``6h`` or ``1d``. Raises ``UserError``."""
    match = INTERVAL.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise UserError(f"--interval: {text}: not a number above 0 with s, m, h, d or w, such as 30m, 6h or 1d")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def firings(
    schedule: Schedule, count: int, since: datetime | None = None, until: datetime | None = None
) -> list[datetime]:
    """Return the schedule's next ``count`` times, or those after ``since`` and up to ``until``."""
    kind = server.CronSchedule if isinstance(schedule, CronSchedule) else server.IntervalSchedule
    times = kind.model_validate(schedule.model_dump()).get_dates(n=count, start=since or datetime.now(UTC), end=until)
    return list(asyncio.run(times))


def _cron(text: str, timezone: str | None) -> CronSchedule:
    form = "minute, hour, day of month, month, day of week, such as '0 2 * * *' (every day at 2:00)"
    try:
        schedule = CronSchedule(cron=text, timezone=timezone)
    except ValidationError:
        raise UserError(f"--cron: {text!r}: not the five fields {form}") from None
    if len(text.split()) != 5 and not text.startswith("@"):
        raise UserError(f"--cron: {text!r}: {number_of(len(text.split()), 'field')}; a schedule has five: {form}")
    try:
        firings(schedule, 1)
    except ValueError:
        raise UserError(f"--cron: {text!r}: never comes; the fields are {form}") from None
    return schedule


def _check_timezone(name: str) -> None:
    known = available_timezones()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"--timezone: {name}: not an IANA name such as Europe/Berlin or UTC{hint}")
