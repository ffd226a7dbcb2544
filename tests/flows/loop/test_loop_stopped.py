"""A run that is killed, interrupted or cancelled: nothing is left behind, nothing is lost."""

import json
import signal
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.faults.fire import Fire, Kill, prefloop_run
from tests.faults.results import results

pytestmark = pytest.mark.whole

# In the order in which a run comes by.
KILLS = [
    Kill("parent", "write", path="config.yaml"),
    Kill("trainer", "rename", path="round_000/data"),
    Kill("sampler", "swap", delay=0.3),
    Kill("server", "time", seconds=0.5),
    Kill("parent", "rename", path="round_001/samples.partial/shard_00001"),
    Kill("sampler", "sampled", after=9),
    Kill("parent", "renamed", path="round_001/samples.partial/shard_00004"),
    Kill("parent", "write", path="round_001/samples.partial/manifest.json"),
    Kill("trainer", "renamed", path="round_001/labels.partial/shard_00002.parquet"),
    Kill("trainer", "step", after=4),
    Kill("trainer", "rename", path="checkpoints/step_"),
    Kill("trainer", "remove", after=2),
    Kill("trainer", "write", path="round_001/policy.partial/model.safetensors"),
    Kill("sampler", "swap", delay=0.3),
    Kill("trainer", "renamed", path="round_002/pairs"),
    Kill("trainer", "time", seconds=1.0),
]


@pytest.mark.timeout(2700)
def test_a_run_killed_at_every_commit_point_ends_with_the_same_pairs_and_weights(
    home: dict[str, str], loop_config: Path, finished: Path, tmp_path: Path
) -> None:
    """Sampled in other batches, in shards cut otherwise, and trained from checkpoints, which changes nothing either."""
    settings = ["shard_size=7", "sampler.max_num_seqs=5", "training.checkpoint_every=2"]
    run = tmp_path / "killed"
    fire = Fire(run, prefloop_run([str(loop_config), *settings], run), home)
    for kill in KILLS:
        assert fire.shoot(kill, patience=400)
    fire.finish()
    fire.compare(results(finished))
    assert fire.lost.nothing, fire.lost
    assert [(kill.role, kill.point) for kill in fire.done] == [(kill.role, kill.point) for kill in KILLS]


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "cancelled in Prefect"])
def test_an_interrupted_run_says_so_and_ends_its_children(
    home: dict[str, str], loop_config: Path, tmp_path: Path, how: str
) -> None:
    run = tmp_path / "interrupted"
    command = prefloop_run([str(loop_config)], run)
    process = subprocess.Popen(command, env=home, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    waited = time.monotonic()
    while not (run / "round_000" / "policy").exists():
        assert process.poll() is None and time.monotonic() - waited < 400
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    if how == "cancelled in Prefect":
        cancel(run, family)
    else:
        process.send_signal(signal.Signals[how])
    _, message = process.communicate(timeout=150)
    assert process.returncode == 130
    assert "interrupted; the same command goes on" in message and "Traceback" not in message
    assert psutil.wait_procs(family, timeout=10)[1] == []


def cancel(run: Path, family: list[psutil.Process]) -> None:
    """As the button of Prefect's UI does."""
    flow_run = json.loads((run / "flow_run.json").read_text())["flow_run"]
    # The watchdog before it has the same words, and the same environment.
    server = next(process for process in family if "uvicorn" in process.cmdline())
    words, secret = server.cmdline(), server.environ()["PREFECT_SERVER_API_AUTH_STRING"]
    api = f"http://127.0.0.1:{words[words.index('--port') + 1]}/api"
    user, _, password = secret.partition(":")
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    asked = httpx.post(f"{api}/flow_runs/{flow_run}/set_state", json=state, timeout=30, auth=(user, password))
    asked.raise_for_status()
