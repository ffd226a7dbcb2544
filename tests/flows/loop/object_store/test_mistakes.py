"""Mistakes before a run with a URL has begun: exit code 2, a few lines, and nothing left behind."""

import os
from pathlib import Path

import pytest

from flows.loop.object_store.address import WORK_VARIABLE
from flows.loop.object_store.places import run_place
from flows.loop.preparation import forget_unused, prepare_run
from pipeline.config.files import load_config
from pipeline.sampling.ports import free_port
from tests.support.s3_server import BUCKET, S3Server
from tests.support.small_config import write_small_config
from tests.support.tiny_loop import prefloop

URL = f"s3://{BUCKET}/of/mistakes"


def refused(home: dict[str, str], folder: Path, *arguments: object) -> str:
    """What a command says that must leave nothing but its config."""
    done = prefloop(home, *arguments, folder=folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) < 6
    assert sorted(path.name for path in folder.iterdir()) == ["prompts.jsonl", "run.yaml"]
    return done.stderr


@pytest.mark.parametrize("command", ["run", "plan", "show"])
def test_a_store_that_does_not_answer_is_refused_before_anything_is_begun(
    command: str, home: dict[str, str], tmp_path: Path
) -> None:
    config = write_small_config(tmp_path, tmp_path / "model")
    there = S3Server(free_port(), tmp_path).environment
    given = [URL] if command == "show" else [config, "--run-dir", URL]
    said = refused({**home, **there}, tmp_path, command, *given)
    assert f"{'RUN' if command == 'show' else '--run-dir'}: {URL}: the store cannot be used" in said
    assert "AWS_ENDPOINT_URL" in said


def test_a_mistake_in_the_config_leaves_no_work_folder(home: dict[str, str], tmp_path: Path, s3: S3Server) -> None:
    config = write_small_config(tmp_path, tmp_path / "model")
    here = {**home, **s3.environment, WORK_VARIABLE: ""}
    assert "nonsense" in refused(here, tmp_path, "run", config, "nonsense=1", "--run-dir", URL)
    assert "model" in refused(here, tmp_path, "run", config, "--run-dir", URL)


def test_a_work_folder_that_is_begun_stays(tmp_path: Path, s3: S3Server) -> None:
    work = Path(os.environ[WORK_VARIABLE])
    (work / "s3" / "other").mkdir(parents=True)
    unused, begun = (run_place(f"{URL}/{name}") for name in ("unused", "begun"))
    prepare_run(load_config([write_small_config(tmp_path, tmp_path / "model")]), begun)
    for root in (unused, begun):
        forget_unused(root)
    assert not unused.exists() and (begun / "config.yaml").is_file() and (work / "s3" / "other").is_dir()
