"""Base job templates of work pools: every field of a job is in the form, and Slurm gets what was filled in.

They were also read by the job configurations of prefect-docker 0.7.4 and prefect-kubernetes 0.8.0, which do not belong
to an installation of prefloop.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_HOME, temporary_settings
from prefect.workers.process import ProcessJobConfiguration

from flows.prefect_api.server import prefect_api
from tests.support.places import ROOT

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
