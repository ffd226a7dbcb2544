"""How machines find each other, what they refuse, and how each ends: without training processes."""

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.run_folder.lease import hold
from flows.workers.machines import follower, leader
from flows.workers.machines.board import Board
from flows.workers.machines.follower import FollowingMachine
from flows.workers.machines.leader import TOKEN_FILE, OtherMachines
from flows.workers.messages import JoinPasses
from pipeline.config import RunConfig
from pipeline.errors import RunError, UserError
from pipeline.training.distributed.launch import Launch
from tests.support.second_machine import free_port


def small_config(**changes: Any) -> RunConfig:
    plain = {"name": "t", "mode": "offline", "policy": {"path": "p"}, "pairs": {"path": "q"}}
    return RunConfig.model_validate({**plain, **changes})


def launch(port: int, rank: int, machines: int = 2, **changes: Any) -> Launch:
    plain = {"num_processes": machines, "use_cpu": True, "main_process_ip": "127.0.0.1", "main_process_port": port}
    return Launch.model_validate({**plain, "num_machines": machines, "machine_rank": rank, **changes})


class Meeting:
    """A run's folder, its machine of rank 0, and others, in threads."""

    def __init__(self, root: Path) -> None:
        self.root, self.port, self.said = root, free_port(), list[str]()
        self.config = small_config()
        self.pool = ThreadPoolExecutor(4)

    def lead(self, machines: int = 2, patience: float = 60) -> "Future[OtherMachines]":
        given = launch(self.port, 0, machines), self.root, self.config.model_dump(mode="json"), patience
        return self.pool.submit(OtherMachines, *given)

    def follow(
        self,
        rank: int = 1,
        machines: int = 2,
        config: RunConfig | None = None,
        root: Path | None = None,
        **changes: Any,
    ) -> "Future[None]":
        given = launch(self.port, rank, machines, **changes), root or self.root, lambda: config or self.config, 60
        return self.pool.submit(FollowingMachine(*given, self.said.append).follow)

    def await_said(self, words: str) -> None:
        while not any(words in line for line in self.said):
            time.sleep(0.02)


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    made = Meeting(tmp_path / "run")
    yield made
    made.pool.shutdown(wait=False)


def test_a_machine_joins_and_ends_with_the_run(meeting: Meeting) -> None:
    with hold(meeting.root):
        following = meeting.follow()
        leading = meeting.lead().result()
        assert leading.trouble() is None
        meeting.await_said("has joined")
        del leading
    assert following.result() is None
    assert meeting.said[-1] == "machine 1: the run has ended"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 7}, "seed: 7 on this machine, but 0 on machine 0; allowed: the same on all machines"),
        ({"training": {"learning_rate": 0.5}}, "training.learning_rate: 0.5 on this machine, but "),
    ],
)
def test_another_config_is_refused_on_both_machines(meeting: Meeting, changed: dict[str, Any], words: str) -> None:
    following = meeting.follow(config=small_config(**changed))
    leading = meeting.lead()
    with pytest.raises(UserError, match=words):
        following.result()
    with pytest.raises(UserError, match=f"machine 1: {words}"):
        leading.result()


def test_another_number_of_processes_or_version_is_refused(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    following, leading = meeting.follow(num_processes=4), meeting.lead()
    with pytest.raises(UserError, match="num_processes: 4 on this machine, but 2 on machine 0"):
        following.result()
    assert leading.exception() is not None
    meeting.port = free_port()
    monkeypatch.setattr(follower, "machine_versions", lambda: {**leader.machine_versions(), "torch": "2.0"})
    following, leading = meeting.follow(), meeting.lead()
    with pytest.raises(UserError, match=r"torch: 2\.0 on this machine, but \d"):
        following.result()
    assert leading.exception() is not None


def test_a_folder_that_is_not_shared_is_told_by_its_token(
    meeting: Meeting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "FOLDER_SECONDS", 1.0)
    other = tmp_path / "other"
    (other / "logs").mkdir(parents=True)
    # Left by an earlier run.
    (other / TOKEN_FILE).write_text(json.dumps({"token": "old"}))
    following, leading = meeting.follow(root=other), meeting.lead()
    words = f"--run-dir: {other} here is not the folder that machine 0 writes to: {TOKEN_FILE} is missing or another"
    with pytest.raises(UserError, match=words):
        following.result()
    with pytest.raises(UserError, match="machine 1: --run-dir"):
        leading.result()


def test_two_machines_of_one_rank(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    leading, first = meeting.lead(machines=3), meeting.follow(machines=3)
    meeting.await_said("has joined")
    monkeypatch.setattr(follower.socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(UserError, match=r"machine_rank: 1 is taken by .*, process \d+; allowed: 1 to 2, each once"):
        meeting.follow(machines=3).result()
    third = meeting.follow(rank=2, machines=3)
    with hold(meeting.root):
        machines = leading.result()
        assert machines.trouble() is None
        del machines, leading
    shutil.rmtree(meeting.root)
    assert (first.result(), third.result()) == (None, None)


def test_nobody_waits_for_ever(meeting: Meeting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RunError, match=r"no machine of rank 1 came to 127\.0\.0\.1, port \d+, within 1 s; start the same"
    ):
        meeting.lead(patience=1).result()
    alone = FollowingMachine(launch(free_port(), 1), meeting.root, lambda: meeting.config, 1, meeting.said.append)
    with pytest.raises(RunError, match=r"machine 0 did not begin within 1 s: nothing answers at 127\.0\.0\.1"):
        alone.follow()
    # A run whose machine is gone leaves its lease, which nobody renews.
    monkeypatch.setattr(follower, "PATIENCE_SECONDS", 1.0)
    meeting.port = free_port()
    (meeting.root / "lease.json").write_text("{}")
    following, leading = meeting.follow(), meeting.lead().result()
    meeting.await_said("has joined")
    del leading
    with pytest.raises(RunError, match="no heartbeat of machine 0 for 1 s: it is gone"):
        following.result()


def test_a_silent_machine_is_lost(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "SILENCE_SECONDS", 0.5)
    leading = meeting.lead()
    board = None
    while board is None:
        board = Board.reach("127.0.0.1", meeting.port)
    board.put("here/1", "a machine that says nothing more")
    machines = leading.result()
    number = machines.begin(JoinPasses())
    with pytest.raises(RunError, match="machine 1: silent for 0 s; it is gone, or the network failed"):
        machines.finish(number, 60)
    board.put("failed/1", "out of memory")
    # Answered after what was put before.
    assert board.get("failed/1") == "out of memory"
    assert str(machines.trouble()) == "machine 1: out of memory"


def test_an_address_of_another_machine_or_a_taken_port(meeting: Meeting) -> None:
    # Reserved for examples (RFC 5737): no machine has it.
    words = r"main_process_ip: 192\.0\.2\.1, main_process_port: 29500: .*; allowed: an address of this machine"
    with pytest.raises(UserError, match=words):
        Board.host("192.0.2.1", 29500)
    own = Board.host("127.0.0.1", meeting.port)
    with pytest.raises(UserError, match=rf"main_process_port: {meeting.port}: Address already in use"):
        Board.host("127.0.0.1", meeting.port)
    assert own.count("beat/1", 2) == 2
