"""Lines of progress: the time that is left follows from the work alone, not from what went before it."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from flows.report import progress as shown


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    return wait


def lines(work: Callable[[shown.Report], None]) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    with shown.progress("round 1 · samples", "prompts", console) as report:
        work(report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_time_left_leaves_out_an_engine_s_start_and_earlier_work(clock: Callable[[float], None]) -> None:
    def work(report: shown.Report) -> None:
        clock(60)  # the engine starts
        report(101, 200, "9 tokens")
        clock(20)
        report(111, 200, "")
        clock(20)
        report(141, 200, "80 tokens")

    assert lines(work) == [
        "  round 1 · samples: 101/200 prompts, 9 tokens",
        "  round 1 · samples: 111/200 prompts, 0.5/s, 178 s left",
        "  round 1 · samples: 141/200 prompts, 1.0/s, 59 s left, 80 tokens",
    ]


def test_a_second_part_of_the_work_has_a_pace_of_its_own_and_a_total_may_be_unknown(
    clock: Callable[[float], None],
) -> None:
    def work(report: shown.Report) -> None:
        report(1, 0, "read")
        clock(20)
        report(2001, 0, "read")
        clock(20)
        report(1, 2001, "checked")
        clock(20)
        report(1001, 2001, "checked")

    assert lines(work) == [
        "  round 1 · samples: 2001 prompts, 100.0/s, read",
        "  round 1 · samples: 1/2001 prompts, checked",
        "  round 1 · samples: 1001/2001 prompts, 50.0/s, 20 s left, checked",
    ]


def test_a_terminal_shows_how_many_were_read_before_their_number_is_known() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with shown.progress("data", "rows", console) as report:
        report(51, 0, "read")
    assert isinstance(console.file, io.StringIO)
    assert "51/?" in console.file.getvalue()


def test_words_on_the_whole_run_follow_the_stage_s_own(clock: Callable[[float], None]) -> None:
    console = Console(file=io.StringIO(), width=200)
    with shown.progress("round 2 · samples", "prompts", console, lambda left: f"whole run: {left}") as report:
        clock(20)
        report(100, 200, "")
        clock(20)
        report(120, 200, "9 tokens")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "  round 2 · samples: 100/200 prompts, whole run: None",
        "  round 2 · samples: 120/200 prompts, 1.0/s, 80 s left, 9 tokens, whole run: 80.0",
    ]
    terminal = Console(file=io.StringIO(), width=200, force_terminal=True)
    with shown.progress("round 2 · samples", "prompts", terminal, lambda left: f"whole run: {left}"):
        pass
    assert isinstance(terminal.file, io.StringIO)
    assert "whole run: None" in terminal.file.getvalue()
