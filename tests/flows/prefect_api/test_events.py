"""Events of runs, sent to a real server and read back from its feed."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client

from flows.prefect_api.events import (
    EVENTS,
    AlarmRaised,
    BudgetReached,
    DataArrived,
    GateDecided,
    RoundCompleted,
    RunCompleted,
    RunEvent,
    RunPaused,
    WorkerStale,
    budget_reached,
    related_resources,
    run_resource,
    send_event,
)
from flows.prefect_api.server import prefect_api
from flows.report.facts import label_facts
from pipeline.safe_text import name_keys
from tests.support.places import ROOT

SENT: tuple[RunEvent, ...] = (
    RoundCompleted(2, 3, 4.25, 0.5, 0.75, 0.125, 61.5, 0.02),
    GateDecided(2, "roll_back", ("kl 0.5 is above 0.25",), 1),
    RunPaused("round 2 waits for a person"),
    BudgetReached(2, "labels", 7, 1.5),
    AlarmRaised(2, "loss diverges"),
    WorkerStale("machine", 71, "0b2f"),
    DataArrived(("prompts.jsonl",)),
    RunCompleted(3, "/runs/tiny/report.html"),
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    """Client of a private server, as ``prefloop run`` starts it."""
    with prefect_api(tmp_path_factory.mktemp("prefect") / "server.log"), get_client(sync_client=True) as made:
        yield made


def feed(client: SyncPrefectClient, root: Path, count: int) -> list[dict[str, object]]:
    """Return the events of a run folder in the order in which they occurred, once there are ``count``."""
    resource = {"id": [run_resource(root)["prefect.resource.id"]]}
    deadline = time.monotonic() + 120
    while True:
        asked = {"filter": {"resource": resource, "order": "ASC"}, "limit": 50}
        found: list[dict[str, object]] = client.request("POST", "/events/filter", json=asked).json()["events"]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


@pytest.mark.whole
def test_each_event_arrives_with_its_payload_and_what_it_is_about(client: SyncPrefectClient, tmp_path: Path) -> None:
    @flow(name="some rounds", retries=0, persist_result=False)
    def rounds() -> list[dict[str, str]]:
        related = related_resources()
        for event in SENT:
            send_event(client, event, tmp_path, related)
        return related

    related = rounds()
    assert [one["prefect.resource.role"] for one in related] == ["flow-run", "flow"]
    got = feed(client, tmp_path, len(SENT))
    assert [event["event"] for event in got] == [type(event).event for event in SENT]
    assert {type(event) for event in SENT} == set(EVENTS)
    assert got[0]["payload"] == {
        "round": 2,
        "rounds": 3,
        "reward": 4.25,
        "reward_change": 0.5,
        "win_rate_vs_start": 0.75,
        "kl_to_start": 0.125,
        "seconds": 61.5,
        "cost": 0.02,
    }
    assert got[1]["payload"] == {
        "round": 2,
        "decision": "roll_back",
        "reasons": ["kl 0.5 is above 0.25"],
        "best_round": 1,
    }
    for event in got:
        assert event["resource"] == run_resource(tmp_path)
        assert event["related"] == related


@pytest.mark.whole
def test_no_event_holds_a_key(client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_JUDGE_KEY", "correct-horse-battery-staple")
    name_keys({"api_key_env": "SOME_JUDGE_KEY"})
    send_event(client, RunPaused("the server said correct-horse-battery-staple"), tmp_path, [])
    (event,) = feed(client, tmp_path, 1)
    assert event["payload"] == {"message": "the server said [hidden]"}


def test_a_budget_is_told_of_only_where_it_was_spent() -> None:
    enough = label_facts("labels", {"missing_by_cause": {"timeout": 3}, "cost": 1.0})
    spent = label_facts("gold", {"missing_by_cause": {"budget": 3, "timeout": 1}, "cost": 1.0})
    assert budget_reached(1, enough) is None
    assert budget_reached(1, spent) == BudgetReached(1, "gold", 3, 1.0)


def test_the_page_lists_every_event_and_each_field_of_it() -> None:
    rows = {
        line.split("`")[1]: line
        for line in (ROOT / "flows" / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `prefloop.")
    }
    assert rows.keys() == {event.event for event in EVENTS}
    for event in EVENTS:
        assert set(rows[event.event].split("`")[3::2]) == set(event.__struct_fields__)
