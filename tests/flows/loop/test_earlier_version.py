"""Run folders of an earlier version (see the fixture's README): this one goes on with them as that one would have."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.storage.digests import file_sha256
from pipeline.storage.rows import read_preference_rows
from pipeline.storage.run_folder import RunFolder
from tests.support.places import ROOT
from tests.support.tiny_loop import prefloop

pytestmark = pytest.mark.whole

EARLIER = ROOT / "tests" / "fixtures" / "earlier_version"
MODES = ("offline", "iterative")
# Stages that are complete in the fixture, and all that the finished run has.
STAGES = {"offline": (9, 16), "iterative": (15, 20)}
# What depends on the machine's speed.
NOT_COMPARED = {"seconds", "tokens_per_second", "peak_memory"}
# As a worker of Prefect does: the flow by its entrypoint, then its parameters.
FIRE = """
import json, sys
from pathlib import Path
from prefect.flows import load_flow_from_entrypoint
from flows.prefect_api.environment import prepare_environment
from flows.prefect_api.server import prefect_api
prepare_environment()
with prefect_api(Path("server.log")):
    for entrypoint, parameters in json.loads(sys.argv[1]):
        print(load_flow_from_entrypoint(entrypoint)(**parameters))
"""


def copied(folder: Path) -> Path:
    """The job as the earlier version left it, in a folder of its own."""
    job = folder / "job"
    shutil.copytree(EARLIER, job, ignore=shutil.ignore_patterns("finished", "README.md"))
    (job / "run_folders").rename(job / "runs")
    return job


def contents(run: Path, pattern: str = "round_*/**/*") -> dict[str, str]:
    """SHA-256 by file."""
    return {str(file.relative_to(run)): file_sha256(file) for file in run.glob(pattern) if file.is_file()}


def was(mode: str) -> RunFolder:
    """Round 2 as the earlier version made it."""
    return RunFolder(EARLIER / "finished" / mode)


def metrics(run: RunFolder, stage: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((run.stage(2, stage).folder / "manifest.json").read_text())["metrics"]
    return told


def trained_on(run: RunFolder) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    pairs = read_preference_rows(run.stage(2, "pairs").folder)
    return [(pair.prompt.id, pair.chosen.token_ids, pair.rejected.token_ids) for pair in pairs]


def weights(file: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(file).items())])


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return copied(tmp_path)


@pytest.fixture(scope="session", params=MODES)
def resumed(
    request: pytest.FixtureRequest, home: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The mode, and its job after ``prefloop run``."""
    mode: str = request.param
    job = copied(tmp_path_factory.mktemp(mode))
    done = prefloop(home, "run", f"{mode}.yaml", folder=job)
    assert done.returncode == 0, done.stderr
    complete, all_stages = STAGES[mode]
    assert done.stderr.count("already complete") == complete
    assert sum(" rows in " in line for line in done.stderr.splitlines()) == all_stages - complete, done.stderr
    return mode, job


@pytest.mark.parametrize("mode", MODES)
def test_a_dry_run_knows_every_stage_that_is_complete(home: dict[str, str], job: Path, mode: str) -> None:
    run, complete, all_stages = job / "runs" / mode, *STAGES[mode]
    before = contents(run, "**/*")
    shown = prefloop(home, "run", f"{mode}.yaml", "--dry-run", folder=job)
    assert f"{all_stages - complete} of {all_stages} stages would run" in shown.stdout, shown.stdout + shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines() if line.startswith("round_")]
    states = {title: " ".join(state) for title, _, *state in rows}
    made = {str(manifest.parent.relative_to(run)) for manifest in run.glob("round_*/*/manifest.json")}
    assert {title for title, state in states.items() if state == "done"} == made and len(made) == complete
    assert {state for title, state in states.items() if title not in made} == {"to do"}
    assert contents(run, "**/*") == before


def test_what_was_complete_is_untouched(resumed: tuple[str, Path]) -> None:
    mode, job = resumed
    before = contents(EARLIER / "run_folders" / mode)
    assert before.items() <= contents(job / "runs" / mode).items() and len(before) > 40


def test_the_run_ends_as_the_earlier_version_ended_it(resumed: tuple[str, Path]) -> None:
    mode, job = resumed
    run, expected = RunFolder(job / "runs" / mode), was(mode)
    assert trained_on(run) == trained_on(expected)
    for name, value in metrics(expected, "policy").items():
        if name not in NOT_COMPARED:
            found = metrics(run, "policy")[name]
            assert found == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value), name
    for name in ("reference_logprob", "held_out_accuracy", "held_out_margin"):
        found, value = (metrics(one, "evaluation").get(name) for one in (run, expected))
        assert found == (None if value is None else pytest.approx(value, abs=1e-3)), name
    first, last = (run.stage(round_, "policy").folder / "model.safetensors" for round_ in (1, 2))
    was_last = weights(expected.stage(2, "policy").folder / "model.safetensors")
    # The optimiser's state is carried over from round 1: without it the update is another.
    assert (weights(last) - was_last).norm() < 0.01 * (was_last - weights(first)).norm()


def test_it_is_verified_reported_and_exported(home: dict[str, str], resumed: tuple[str, Path], tmp_path: Path) -> None:
    mode, job = resumed
    run = Path("runs") / mode
    verified = prefloop(home, "verify", run, "--json", folder=job)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    stages = json.loads(verified.stdout)["stages"]
    assert len(stages) == STAGES[mode][1] and {stage["state"] for stage in stages} == {"intact"}

    written = prefloop(home, "report", run, "--output", tmp_path / "page.html", folder=job)
    assert written.returncode == 0, written.stderr
    page = (tmp_path / "page.html").read_text()
    assert page.count("4 held-out prompts are too few to judge by") == 2, (
        "the gates of both rounds, one of each version"
    )

    exported = prefloop(home, "export", run, tmp_path / "model", "--round", 1, folder=job)
    assert exported.returncode == 0, exported.stderr
    earlier = EARLIER / "run_folders" / mode / "round_001" / "policy"
    names = ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja")
    assert all((tmp_path / "model" / name).read_bytes() == (earlier / name).read_bytes() for name in names)


def test_a_finished_reward_model_is_told_of_and_not_trained_again(home: dict[str, str], job: Path) -> None:
    before = contents(job / "runs", "**/*")
    done = prefloop(home, "reward-model", "reward_model.yaml", folder=job)
    assert done.returncode == 0, done.stderr
    told = json.loads((job / "runs" / "rewards" / "metrics.json").read_text())["held_out"]
    assert f"held-out pairs {told['pairs']}" in done.stdout and f"accuracy {told['accuracy']:.1%}"[:-1] in done.stdout
    assert contents(job / "runs", "**/*") == before


def test_labels_and_reference_log_probs_come_from_its_caches(home: dict[str, str], job: Path) -> None:
    redone = prefloop(home, "run", "iterative.yaml", "--from", "1:labels", "--until", "1:reference", folder=job)
    assert redone.returncode == 0, redone.stderr
    run, before = RunFolder(job / "runs" / "iterative"), RunFolder(EARLIER / "run_folders" / "iterative")
    labels, reference = (run.stage(1, name).require().metrics for name in ("labels", "reference"))
    assert (labels["questions"], labels["cache_hit_rate"]) == (24, 1.0)
    assert (reference["passes"], reference["cache_refused"]) == ({"reference_0": "cache"}, {})
    pairs, earlier = ([*read_preference_rows(one.stage(1, "pairs").folder)] for one in (run, before))
    assert pairs == earlier and len(pairs) == 5


def test_deployments_of_the_earlier_version_go_on(home: dict[str, str], job: Path) -> None:
    """The nightly one adds a round to the first: that is the second, which was begun."""
    told = json.loads((job / "deployments.json").read_text().replace("{job}", str(job)))
    until = {"flows.iterative.iterative": "2:reference", "flows.offline.offline": "2:pairs"}
    assert [one["entrypoint"] for one in told] == [*until]
    fired = [(one["entrypoint"], {**one["parameters"], "until": until[one["entrypoint"]]}) for one in told]
    done = subprocess.run(
        [sys.executable, "-c", FIRE, json.dumps(fired)], cwd=job, env=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for mode, last in (("iterative", "reference"), ("offline", "pairs")):
        run = RunFolder(job / "runs" / mode)
        assert run.stage(2, last).manifest() is not None and not run.stage(2, "policy").folder.exists()
        assert trained_on(run) == trained_on(was(mode))
        assert contents(EARLIER / "run_folders" / mode).items() <= contents(run.root).items()
