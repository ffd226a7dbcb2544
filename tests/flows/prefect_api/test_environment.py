"""The environment that the command line sets up for itself and its children."""

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.prefect_api.environment import (
    DEFAULTS,
    UMASK,
    _Keyless,
    keep_keys_out_of_logs,
    make_files_private,
    prepare_environment,
)
from pipeline.errors import UserError
from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Call, Ledger
from tests.support.places import ROOT


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DEFAULTS:
        # Set first, so that what is made of it is undone after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("bare")
def test_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    prepare_environment()
    assert {name: os.environ[name] for name in DEFAULTS} == DEFAULTS | {"DO_NOT_TRACK": "0"}


@pytest.mark.usefixtures("bare")
def test_a_proxy_for_outside_traffic_sees_no_request_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    prepare_environment()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == ""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "example.com,localhost")
    for _ in range(2):
        prepare_environment()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "example.com,localhost,127.0.0.1"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("small", "large", "exempt"),
    [
        ("", "judge.internal", "judge.internal,127.0.0.1,localhost"),
        ("a.b, localhost", "c.d", "a.b,localhost,127.0.0.1"),
        ("*", "c.d", "*"),
    ],
)
def test_what_the_user_exempts_from_a_proxy_stays_exempt(
    monkeypatch: pytest.MonkeyPatch, small: str, large: str, exempt: str
) -> None:
    for name, value in (("HTTP_PROXY", "http://proxy.example:3128"), ("no_proxy", small), ("NO_PROXY", large)):
        monkeypatch.setenv(name, value)
    prepare_environment()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == exempt


@pytest.fixture
def usual_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(UMASK, raising=False)
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


def write_all(folder: Path) -> None:
    """Files whose modes are given where they are made, beside those that follow the umask in any case."""
    (folder / "folder").mkdir()
    (folder / "text").write_text("x")
    LabelCache(folder / "labels.sqlite").write("key", 1.0)
    Ledger(folder / "spending.jsonl").add(Call(stage="labels", labeller="judge", outcome="answered"))


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize(
    ("given", "file", "folder"),
    [("", 0o600, 0o700), ("027", 0o640, 0o750), ("0002", 0o664, 0o775), ("022", 0o644, 0o755)],
)
def test_what_is_written_is_the_user_s_alone_unless_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, file: int, folder: int
) -> None:
    monkeypatch.setenv(UMASK, given)
    make_files_private()
    write_all(tmp_path)
    found = modes(tmp_path)
    assert {"labels.sqlite", "spending.jsonl"} < found.keys()
    assert found.pop("folder") == folder and set(found.values()) == {file}


@pytest.mark.usefixtures("usual_umask")
def test_a_stricter_umask_stays() -> None:
    os.umask(0o277)
    make_files_private()
    assert os.umask(0) == 0o277


@pytest.mark.parametrize("wrong", ["0o77", "77", "8", "rwx", "0778", "-077", " 077"])
def test_what_is_no_umask_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv(UMASK, wrong)
    with pytest.raises(UserError, match=rf"PREFLOOP_UMASK: '{wrong}' is no umask; three octal digits"):
        make_files_private()


def test_the_command_line_writes_private_files_and_says_what_is_wrong(tmp_path: Path) -> None:
    rows = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 30 + '{"prompt": "a"}\n'
    (tmp_path / "pairs.jsonl").write_text(rows)
    command = [sys.executable, "-m", "flows", "check", "configs/offline.yaml", f"pairs.path={tmp_path}/pairs.jsonl"]
    command += ["policy.path=nowhere", "--faults", str(tmp_path / "faults")]
    env = {**os.environ, UMASK: "7"}
    said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr.partition(";")[0]) == (2, "prefloop: PREFLOOP_UMASK: '7' is no umask")


def test_a_key_in_a_line_or_a_traceback_of_prefect_s_logs_is_hidden(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "correct-horse-battery")
    keep_keys_out_of_logs()
    keep_keys_out_of_logs()
    logger = logging.getLogger("prefect.flow_runs")
    filters = [filter_ for handler in logger.handlers for filter_ in handler.filters if isinstance(filter_, _Keyless)]
    assert len(filters) == len(logger.handlers) > 0
    try:
        raise ValueError("correct-horse-battery is wrong")
    except ValueError:
        info = sys.exc_info()
    record = logger.makeRecord("x", logging.ERROR, "x.py", 1, "the key is %s", ("correct-horse-battery",), info)
    assert filters[0].filter(record)
    shown = logging.Formatter().format(record)
    assert "the key is [hidden]" in shown and "ValueError: [hidden] is wrong" in shown
    assert "correct-horse" not in shown
