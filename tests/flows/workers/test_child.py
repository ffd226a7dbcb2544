"""A child answers calls, dies with its parent, and its failures reach the user in its own words."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.workers import child as child_module
from flows.workers.child import Child
from flows.workers.messages import Done, Reply, Request, RunStage, Service
from flows.workers.silence import Silence
from pipeline.errors import Paused, RunError, UserError
from pipeline.safe_text import KEY_VARIABLES, name_keys
from tests.support.obedient_child import (
    SERVICE,
    Count,
    Counted,
    Die,
    Echo,
    Echoed,
    Fail,
    Hang,
    Init,
    Lie,
    Tell,
    Told,
)
from tests.support.places import ROOT

ENV = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def start(folder: Path, timeout: float = 60, **init: Any) -> Child[Counted]:
    return Child(SERVICE, Init(**init), folder / "logs" / "child.log", timeout, ENV)


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child[Counted]]:
    with start(tmp_path_factory.mktemp("child"), greeting="hello") as made:
        yield made
    assert not made.alive


def gone(pid: int) -> bool:
    """Ended, if perhaps not yet collected by whoever inherited it."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def assert_gone_within(pids: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {[pid for pid in pids if not gone(pid)]}"
        time.sleep(0.02)


def test_calls_get_arguments_and_results_across(child: Child[Counted]) -> None:
    args = {"numbers": [1, 2.5, -1e-300], "text": "naïve\nline \ud800", "nothing": None}
    assert child.call(Echo(args), Echoed, 60) == Echoed("hello", args, child.pid)


def test_megabytes_pass_both_ways(child: Child[Counted]) -> None:
    args = {"ids": list(range(1_000_000))}
    assert child.call(Echo(args), Echoed, 30).args == args


def test_keys_are_not_printed_and_those_that_it_does_not_need_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE", "qz7-Xw4NbV9rLk2Tt8")
    monkeypatch.setenv("OTHER_TOKEN", "another-secret-value")
    monkeypatch.setenv("SAMPLER", "of the sampler alone")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "prefloop:of-the-server")
    monkeypatch.setenv(KEY_VARIABLES, "")
    name_keys({"server": {"api_key_env": "JUDGE"}, "sampler": [{"api_key_env": "SAMPLER"}]})
    with Child(SERVICE, Init(), tmp_path / "log", 20, {**ENV, "SAMPLER": None}) as child:
        names = child.call(Tell(), Told, 60).names
        with pytest.raises(RunError, match=r"^the key \[hidden\] is refused$"):
            child.call(Fail("run", "the key qz7-Xw4NbV9rLk2Tt8 is refused"), Done, 60)
    assert {"JUDGE", "OTHER_TOKEN"} <= {*names} and {"SAMPLER", "PREFECT_API_AUTH_STRING"}.isdisjoint(names)
    printed = (tmp_path / "log").read_text()
    assert "'JUDGE': '[hidden]'" in printed and "as environ" in printed and "\nand " in printed
    ways = ("letters", "buffer", "descriptor", "subprocess", "native", "no line break")
    assert [f"{way}: [hidden]" in printed for way in ways] == [True] * len(ways)
    for secret in ("qz7-Xw4NbV9rLk2Tt8", "another-secret-value", "of the sampler alone"):
        assert secret not in printed


def test_output_goes_to_the_log_and_not_to_the_results(
    child: Child[Counted], capfd: pytest.CaptureFixture[str]
) -> None:
    child.call(Echo(), Echoed, 60)
    # The parent writes the log, in a thread.
    while "echo was called" not in child.log.read_text():
        time.sleep(0.01)
    assert capfd.readouterr().out == ""


def test_progress_arrives_in_order(child: Child[Counted]) -> None:
    seen: list[Counted] = []
    assert child.call(Count(3), Done, 60, seen.append) == Done()
    assert seen == [Counted(1), Counted(2), Counted(3)]


def test_progress_starts_the_deadline_anew(child: Child[Counted], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []

    class Told(Silence):
        def restart(self) -> None:
            asked.append(self._limit)
            super().restart()

    monkeypatch.setattr(child_module, "Silence", Told)
    child.call(Count(4), Done, 60)
    assert asked == [60] * 5, "four messages and the result"


def test_a_stream_goes_on_while_it_is_not_read_and_its_reader_s_time_is_not_the_child_s(child: Child[Counted]) -> None:
    messages = child.stream(Count(4, 1.5), Done, 5.0)
    seen = [next(messages).done]
    time.sleep(6.0)  # longer than the child may be silent
    read = time.monotonic()
    seen += [message.done for message in messages]
    assert seen == [1, 2, 3, 4]
    assert time.monotonic() - read < 4.5, "the last three were not counted in the meantime"


def test_a_stream_that_is_given_up_ends_the_child(tmp_path: Path) -> None:
    with start(tmp_path) as given_up:
        messages = given_up.stream(Count(1000, 0.01), Done, 60)
        assert next(messages) == Counted(1)
        messages.close()
        assert not given_up.alive


def test_callers_in_threads_take_turns(child: Child[Counted]) -> None:
    answers: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: answers.update({i: child.call(Echo(i), Echoed, 10).args})) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: i for i in range(8)}


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [("user", UserError, "bad row"), ("run", RunError, "bad luck"), ("pause", Paused, "ask Ann")],
)
def test_the_child_s_own_words_are_raised(child: Child[Counted], kind: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=rf"^{text}$"):
        child.call(Fail(kind, text), Done, 60)
    assert child.call(Echo(), Echoed, 60).greeting == "hello"


def test_an_unforeseen_error_names_its_type_and_leaves_its_traceback_in_the_log(tmp_path: Path) -> None:
    unforeseen = pytest.raises(RunError, match=r"^fail: ZeroDivisionError: two by nothing$")
    with start(tmp_path, greeting="hello") as child, unforeseen:
        child.call(Fail("other", "two by nothing"), Done, 60)
    assert "Traceback" in child.log.read_text()


@pytest.mark.parametrize(
    ("malformed", "said"),
    [
        (Count("three"), r"^request: ValidationError: Expected `int`, got `str` - at `\$\.total`$"),  # type: ignore[arg-type]
        (RunStage(1, "policy"), r"^request: ValidationError: Invalid value 'stage' - at `\$\.type`$"),
    ],
)
def test_a_malformed_request_is_refused_by_the_name_of_its_field(
    child: Child[Counted], malformed: Request, said: str
) -> None:
    with pytest.raises(RunError, match=said):
        child.call(malformed, Done, 60)
    assert child.call(Echo(), Echoed, 60).greeting == "hello"


@pytest.mark.parametrize(
    ("reply", "said"),
    [(Told, r"Expected `array`, got `int` - at `\$\.names`"), (Done, r"Invalid value 'told' - at `\$\.type`")],
)
def test_a_malformed_answer_ends_the_child_and_names_its_field(tmp_path: Path, reply: type[Reply], said: str) -> None:
    with start(tmp_path) as made:
        with pytest.raises(RunError, match=f"^tests.support.obedient_child: malformed answer to lie: {said}$"):
            made.call(Lie(7), reply, 60)
        assert not made.alive


def test_a_mistake_in_init_is_the_user_s(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no such policy$"):
        start(tmp_path, mistake="no such policy")


def test_a_start_that_takes_too_long(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(RunError, match="init was silent for 1 second"):
        start(tmp_path, timeout=1, slow=True)
    assert time.monotonic() - begun < 30


def test_an_entry_that_cannot_start_shows_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"(?s)died during init \(exit code 1\).*No module named no_such_module"):
        Child(Service("no_such_module", Counted), Init(), tmp_path / "log", 20)


@pytest.mark.parametrize(("how", "cause"), [("exit", "exit code 7"), (signal.SIGSEGV, "signal SIGSEGV")])
def test_a_crash_shows_cause_and_last_log_lines(tmp_path: Path, how: str | int, cause: str) -> None:
    with start(tmp_path) as made:
        with pytest.raises(RunError, match=rf"(?s)died during die \({cause}\).*about to die"):
            made.call(Die(how), Done, 60)
        assert not made.alive
        with pytest.raises(RunError, match="died during echo"):
            made.call(Echo(), Echoed, 60)


def test_the_log_of_an_earlier_child_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "child.log").write_text("words of an earlier child\n")
    with start(tmp_path) as made, pytest.raises(RunError) as caught:
        made.call(Die("exit"), Done, 60)
    assert "about to die" in str(caught.value)
    assert "words of" not in str(caught.value)


def test_last_words_tell_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "about to die")
    with start(tmp_path) as child, pytest.raises(RunError, match=r"last lines of .*\n  \[hidden\]$"):
        child.call(Die("exit"), Done, 60)


@pytest.mark.parametrize(
    ("busy", "said"),
    [
        (False, "was silent for 3 seconds and was ended"),
        (True, "computed for 6 seconds without a report, a read or a write and was ended"),
    ],
)
def test_a_hung_call_hits_its_deadline_and_ends_the_child_and_its_children(
    tmp_path: Path, busy: bool, said: str
) -> None:
    seen: list[Counted] = []
    with start(tmp_path) as made:
        with pytest.raises(RunError, match=rf"(?s)child: hang {said}\n.*about to hang"):
            made.call(Hang(busy), Done, 3.0, seen.append)
        assert not made.alive
    assert_gone_within([*seen[0].pids], 20)


PARENT = """
import sys
from pathlib import Path
from flows.workers.child import Child
from flows.workers.messages import Done
from tests.support.obedient_child import SERVICE, Hang, Init
child = Child(SERVICE, Init(), Path(sys.argv[1]), 20)
child.call(Hang(), Done, 60, lambda told: print(*told.pids, flush=True))
"""


@pytest.mark.parametrize("fatal", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_child_ends_with_its_parent(tmp_path: Path, fatal: signal.Signals) -> None:
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(log)],
        env={**os.environ, **ENV},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        # As a terminal does: to the whole foreground group.
        os.killpg(parent.pid, fatal)
        assert_gone_within(pids, 40)
    assert "Traceback" not in log.read_text()


def test_close_lets_an_idle_child_end_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "_CLOSE_SECONDS", 50.0)
    made = start(tmp_path)
    made.close()
    assert made._process.returncode == 0, "it was killed"
    made.close()
