"""Base job templates of work pools: every field of a job is in the form, and Slurm gets what was filled in.

They were also read by the job configurations of prefect-docker 0.7.4 and prefect-kubernetes 0.8.0, which do not belong
to an installation of prefloop.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_HOME, temporary_settings
from prefect.workers.process import ProcessJobConfiguration

from flows.prefect_api.access import Api
from flows.prefect_api.server import prefect_api
from pipeline.storage.run_folder import RunFolder
from tests.support.places import ROOT
from tests.support.prefloop_up import started_up
from tests.support.tiny_model import save_tiny_model

POOLS = ROOT / "configs" / "prefect" / "work_pools"
TYPES = {"docker": "docker", "kubernetes": "kubernetes", "slurm": "process"}


def template(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((POOLS / f"{name}.json").read_text(encoding="utf-8"))
    return read


def test_all_templates_are_looked_at() -> None:
    assert {file.stem for file in POOLS.iterdir()} == TYPES.keys()


@pytest.mark.parametrize("name", TYPES)
def test_each_field_of_a_job_is_in_the_form_and_has_a_default(name: str) -> None:
    made = template(name)
    form = made["variables"]["properties"]
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(made["job_configuration"])))
    assert used == form.keys()
    assert [field for field, about in form.items() if "default" not in about or not about["description"]] == []
    # Keys belong into Secret blocks: a pool's template is shown to all who see the UI.
    assert not re.search(r"key|token|password", json.dumps([*form]), re.IGNORECASE)


def test_slurm_gets_a_job_of_the_size_that_was_filled_in() -> None:
    values = {"gpus": 4, "partition": "h200", "time": "02:00:00", "python": "/x/python", "working_dir": "/x"}
    nobody: Any = object()
    job = asyncio.run(ProcessJobConfiguration.from_template_and_values(template("slurm"), values, client=nobody))
    assert job.command is not None
    assert job.command.split() == [
        *("srun", "--job-name=prefloop", "--kill-on-bad-exit=1", "--partition=h200", "--gres=gpu:4"),
        *("--cpus-per-task=8", "--mem=64G", "--time=02:00:00", "/x/python", "-m", "prefect.engine"),
    ]
    assert job.working_dir == Path("/x")


@pytest.mark.whole
def test_the_server_takes_the_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    home = {PREFECT_HOME: tmp_path}
    with temporary_settings(home), prefect_api(tmp_path / "server.log"), get_client(sync_client=True) as client:
        for name, kind in TYPES.items():
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template(name)))
            held = client.read_work_pool(name)
            assert (held.type, held.base_job_template) == (kind, template(name))


@pytest.mark.whole
@pytest.mark.timeout(3000)  # a server, two workers and a run
def test_a_run_through_slurm_s_template_comes_to_its_end(tmp_path: Path) -> None:
    """``srun`` is a stand-in that does what it does on a node: it runs what follows its options."""
    model = save_tiny_model(tmp_path / "model")
    rows = [{"prompt": f"the cat sat on mat {number}"} for number in range(16)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(
        f"name: tiny\nmode: iterative\nrounds: 1\npolicy: {{path: {model}}}\nprompts: {{path: prompts.jsonl}}\n"
        "held_out: {prompts: 4}\nsampler: {kind: transformers}\nsampling: {n: 2, max_tokens: 8}\n"
        "scorer: {kind: length, target_words: 12}\ntraining: {learning_rate: 3.0e-3, batch_size: 8}\n"
    )
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/srun.log\nwhile [ "${{1#-}}" != "$1" ]; do shift; done\nexec "$@"\n'
    )
    srun.chmod(0o755)
    with started_up(tmp_path) as up:
        server = Api(str(up.api.base_url), up.secret).environment()
        given = {**up.environment, **server, "PATH": f"{srun.parent}{os.pathsep}{os.environ['PATH']}"}
        pool = ["prefect", "work-pool", "create", "my-slurm", "--type", "process", "--base-job-template"]
        command = [sys.executable, "-m", *pool, str(POOLS / "slurm.json")]
        made = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        done = up.prefloop("deploy", "tiny.yaml", "--name", "queued", "--pool", "my-slurm", "--run-dir", "queued")
        assert done.returncode == 0, done.stderr
        found = up.deployment("iterative/queued")
        variables = {**found["job_variables"], "python": sys.executable, "partition": "tiny", "gpus": 0}
        up.api.patch(f"/deployments/{found['id']}", json={"job_variables": variables}).raise_for_status()
        flow_run = up.start("iterative/queued")
        serve = [sys.executable, "-m", "flows", "serve", "--pool", "my-slurm"]
        with (tmp_path / "serve.log").open("wb") as log:
            worker = subprocess.Popen(serve, cwd=tmp_path, env=given, stdout=log, stderr=log)
        try:
            ended = up.wait_for(flow_run, "COMPLETED", "CANCELLED", "FAILED", "CRASHED")
        finally:
            worker.terminate()
            worker.wait(90)
    assert ended["state"]["type"] == "COMPLETED", (tmp_path / "serve.log").read_text()[-3000:]
    (asked,) = (tmp_path / "srun.log").read_text().splitlines()
    assert "--partition=tiny --gres=gpu:0" in asked and asked.endswith(f"{sys.executable} -m prefect.engine")
    assert RunFolder(tmp_path / "queued").stage(1, "gate").manifest() is not None
