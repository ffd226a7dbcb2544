"""The commands in the README's blocks, run as they stand there: on a tiny model, tiny data and two tiny runs.

Whole runs are left to other tests and to ``make quickstart``; here those commands say what they would run.
``prefloop up`` and ``deploy`` are in tests/flows/commands/deployments/test_deploy.py, which has a server.
"""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.__main__ import main
from flows.report.trackers.follow import Trackers
from flows.stages.run import run_stage
from pipeline.sampling.ports import free_port
from tests.support.places import ROOT
from tests.support.readme import commands
from tests.support.tiny_run import InventedResponses, bad, begin, good, make_job, open_context, train

WITH_A_SERVER = ("prefloop up", "prefloop deploy")
# Those with a URL are given in tests/flows/loop/object_store, where a store answers.
# Those of several machines or of a cluster in tests/flows/workers/machines.
ELSEWHERE = ("s3://", "--machine-rank", "cluster.kind=ray")
HERE = [
    line
    for line in commands("prefloop")
    if not line.startswith(WITH_A_SERVER) and not any(part in line for part in ELSEWHERE)
]
PLACES = {"MODEL": "model", "REWARD_MODEL": "model", "PAIRS.jsonl": "mine.jsonl", "PROMPTS.jsonl": "mine.jsonl"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given: a checkout's configs, a user's files, and the runs that the README speaks of."""
    folder = make_job(tmp_path_factory.mktemp("readme"))
    (folder / "configs").symlink_to(ROOT / "configs")
    mine = [{"prompt": f"the dog {n}", "chosen": good(n), "rejected": bad(n)} for n in range(532)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
    corpus = [{"prompt": "name[Aromi], food[Thai]", "response": "Aromi serves Thai food."}]
    (folder / "e2e_nlg.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    run = open_context(folder, folder / "runs" / "quickstart", "iterative", "rounds=1")
    run.run.root.mkdir(parents=True)
    shutil.copy(folder / "iterative.yaml", run.run.config_file)
    begin(run)
    workers: Any = InventedResponses(folder / "model")
    for round_ in (0, 1):
        if round_:
            train(run, round_)
        run_stage(run, round_, "evaluation_samples", workers)
        run_stage(run, round_, "evaluation")
    followed = run.config.model_copy(update={"trackers": ("tensorboard",)})
    with Trackers(run.run, followed) as trackers:
        trackers.follow()
    shutil.copytree(run.run.root, folder / "runs" / "other")
    return folder


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, line: str) -> int:
    words = [word.partition("=") for word in shlex.split(line)[1:]]
    given = [f"{name}={PLACES.get(value, value)}" if equals else name for name, equals, value in words]
    # The runs of the README are those of its configs, and these are tiny ones of their own.
    if given[0] == "run":
        given += ["--dry-run", "--run-dir", "runs/new"]
    if given[0] in ("sweep", "push"):
        given += ["--dry-run"]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["prefloop", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("line", HERE)
def test_a_command_of_the_readme_does_what_it_says(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, folder, line) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    match line.split()[1]:
        case "check":
            assert "config and data are valid" in said
        case "run":
            assert ("stages would run" in said and "round_001/policy" in said) or "--until" in line
        case "sweep":
            assert (
                "learning-rate-1e-7_beta-0.05: " in said
                and "6 runs in " in said
                and "rounds that are there: 0 of 1" in said
            )
        case "reward-model":
            assert (folder / "runs" / "reward-model" / "model.safetensors").is_file()
        case "report":
            assert "<figcaption>" in (folder / said.strip()).read_text()
        case "pairs":
            assert "round 1" in said


def test_tensorboard_shows_a_run(folder: Path) -> None:
    (line,) = commands("tensorboard")
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", *shlex.split(line)[1:], "--port", str(port)]
    with (folder / "tensorboard.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        page = answered(address, process)
        assert "TensorBoard" in page
        # It answers before it has read the run.
        for _ in range(120):
            tags = httpx.get(f"{address}/data/plugin/scalars/tags", timeout=60).json()
            if tags:
                break
            time.sleep(0.5)
        assert any("round/reward" in names for names in tags.values()), tags
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def answered(address: str, process: "subprocess.Popen[bytes]") -> str:
    for _ in range(240):
        assert process.poll() is None
        try:
            return httpx.get(address, timeout=60).raise_for_status().text
        except httpx.ConnectError:
            time.sleep(0.5)
    raise AssertionError(f"{address} does not answer")
