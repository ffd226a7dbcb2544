"""URLs of run folders: mistakes end with exit code 2, before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.loop.object_store import address
from flows.loop.object_store.address import StoreAddress, is_url, parse_address
from pipeline.errors import UserError
from tests.support.small_config import write_small_config
from tests.support.tiny_loop import prefloop


def test_a_url_names_bucket_prefix_and_work_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = parse_address("--run-dir", "s3://team.runs/a/b-1/")
    # ``Path`` merges slashes.
    assert found == StoreAddress("s3", "team.runs", "a/b-1") == parse_address("--run-dir", "s3:/team.runs/a/b-1")
    assert str(found) == "s3://team.runs/a/b-1"
    monkeypatch.delenv(address.WORK_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert found.work_folder == tmp_path / "runs" / "s3" / "team.runs" / "a" / "b-1"
    monkeypatch.setenv(address.WORK_VARIABLE, str(tmp_path / "disk"))
    assert found.work_folder == tmp_path / "disk" / "s3" / "team.runs" / "a" / "b-1"
    assert not is_url("runs/a") and not is_url("/tmp/s3:/x") and is_url(Path("s3://b/x"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s4://bucket/run", "unknown scheme 's4'"),
        ("hdfs://host/run", "hdfs has no conditional writes through fsspec"),
        ("memory://run", "memory has no conditional writes through fsspec"),
        ("file:///tmp/run", "give a local folder as its path"),
        ("s3://bucket", "the prefix is one or more names"),
        ("s3://bucket/a/../b", "the prefix is one or more names"),
        ("s3://bucket/a?secret=hush-hush", "the prefix is one or more names"),
        ("s3://B/a", "'B' is not the name of a bucket"),
        ("s3://me:hush-hush@bucket/run", "a user or password in a URL"),
    ],
)
def test_a_wrong_url_is_refused_with_what_is_allowed(url: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_address("--run-dir", url)
    assert str(error.value).startswith("--run-dir: ") and said in str(error.value)
    assert "allowed: a local folder, or s3://BUCKET/PREFIX" in str(error.value) and "hush" not in str(error.value)


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'prefloop\[s3\]'"):
        parse_address("--run-dir", "s3://bucket/run")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "CONFIG", "--run-dir", "s4://bucket/run"),
        ("show", "s4://bucket/run"),
        ("reward-model", "CONFIG", "--run-dir", "s3://bucket/run"),
        ("export", "runs/none", "s3://bucket/model"),
    ],
)
def test_commands_refuse_before_anything_starts(
    arguments: tuple[str, ...], tmp_path: Path, home: dict[str, str]
) -> None:
    config = write_small_config(tmp_path, tmp_path / "model")
    given = [str(config) if item == "CONFIG" else item for item in arguments]
    done = prefloop(home, *given, folder=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "bucket" in done.stderr and len(done.stderr.splitlines()) < 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "run.yaml"]


def test_a_local_run_loads_no_library_of_a_store() -> None:
    code = """import sys
import flows.loop.opening, flows.commands.cli.runs
print({"s3fs", "botocore", "flows.loop.object_store.client"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
