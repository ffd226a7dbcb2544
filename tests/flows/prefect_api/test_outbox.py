"""What is sent to Prefect's server beside a run: in order, without waiting for it, and never at the run's cost."""

import logging
import re
import threading
import time

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.prefect_api import outbox
from flows.prefect_api.outbox import Outbox


@pytest.fixture(autouse=True)
def nobody_listens() -> object:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


def test_calls_are_made_in_order_and_all_of_them_before_the_block_is_left() -> None:
    made: list[int] = []
    go_on = threading.Event()

    def slow(number: int) -> None:
        assert go_on.wait(60)
        made.append(number)

    with Outbox() as box:
        for number in range(5):
            box.put(lambda _, number=number: slow(number))  # type: ignore[misc]
        assert made == [], "nobody waited for them"
        go_on.set()
    assert made == [0, 1, 2, 3, 4]


def test_a_ticking_call_is_made_while_its_block_runs_and_once_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "EVERY_SECONDS", 0.01)
    ticked, seen = threading.Event(), []
    with Outbox() as box, box.ticking(lambda _: (seen.append(1), ticked.set())[0]):
        assert ticked.wait(60)
        # None comes by itself from now on.
        monkeypatch.setattr(outbox, "EVERY_SECONDS", 60.0)
        during = len(seen)
    assert len(seen) > during


def test_a_server_that_is_gone_costs_a_warning_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox.logger, "propagate", True)
    made = threading.Event()

    def ask(client: SyncPrefectClient) -> None:
        client.request("GET", "/health")

    def broken(client: SyncPrefectClient) -> None:
        raise KeyError("a figure that is not there")

    with caplog.at_level(logging.WARNING), Outbox() as box:
        for call in (ask, ask, ask, broken, lambda _: made.set()):
            box.put(call)
        assert made.wait(60)
    warnings = [record.getMessage() for record in caplog.records if record.name == outbox.logger.name]
    assert len(warnings) == 2 and "the run goes on" in warnings[0] and "could not be made" in warnings[1]


def test_a_server_that_does_not_answer_keeps_nobody_waiting_and_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox.logger, "propagate", True)
    monkeypatch.setattr(outbox, "_CLOSE_SECONDS", 0.2)
    held = threading.Event()

    def hang(client: SyncPrefectClient) -> None:
        held.wait(60)
        raise httpx.ReadTimeout("silent")

    started = time.monotonic()
    with caplog.at_level(logging.WARNING), Outbox() as box:
        for _ in range(3 * outbox.MAX_WAITING):
            box.put(hang)
    assert time.monotonic() - started < 30
    held.set()
    (warning,) = [one.getMessage() for one in caplog.records if "Prefect's UI lacks" in one.getMessage()]
    assert re.search(r"lacks 10[01] last updates of this run", warning)


def test_a_server_that_is_busy_at_the_end_of_a_run_gets_what_it_can_take(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox.logger, "propagate", True)
    made: list[str] = []

    def busy(client: SyncPrefectClient) -> None:
        while not vars(box)["_over"]:
            time.sleep(0.01)
        raise httpx.ReadTimeout("too busy")

    def gone(client: SyncPrefectClient) -> None:
        raise httpx.ConnectError("refused")

    with caplog.at_level(logging.WARNING):
        box = Outbox().__enter__()
        for call in (busy, lambda _: made.append("page"), gone, lambda _: made.append("never")):
            box.put(call)
        box.__exit__()
    assert made == ["page"]
    warnings = [one.getMessage() for one in caplog.records if "Prefect's UI lacks" in one.getMessage()]
    assert len(warnings) == 1 and "lacks 3 last updates" in warnings[0]
