"""What a flow makes of its run folder before any stage runs."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.iterative import iterative
from flows.loop.entry import Firing, complete_rounds, is_first_try, prepare
from flows.offline import offline
from flows.prefect_api.deployed.parameters import dated
from flows.prefect_api.deployed.schedules import read_schedule
from pipeline.config.files import load_config
from pipeline.errors import UserError
from pipeline.storage.manifest import StageKey
from pipeline.storage.run_folder import RunFolder
from tests.support.places import ROOT
from tests.support.tiny_run import make_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def firing(job: Path, run: Path, more: int = 1, *settings: str) -> Firing:
    return Firing("iterative", str(run), (str(job / "iterative.yaml"),), settings, more)


def complete(run: Path, round_: int, *stages: str) -> None:
    """Leave of a round what tells that it is complete, or that these stages of it are."""
    folder = RunFolder(run)
    for name in stages or ("evaluation", "gate"):
        stage = folder.stage(round_, name)
        stage.folder.parent.mkdir(parents=True, exist_ok=True)
        stage.begin(StageKey({}, {}, 0)).commit(0, {})
    data = folder.stage(0, "data")
    if not data.folder.exists():
        data.begin(StageKey({}, {}, 0)).commit(0, {})


def rounds(run: Path) -> int:
    return load_config([run / "config.yaml"]).rounds


def completed(run: Path) -> int:
    return complete_rounds(RunFolder(run), load_config([run / "config.yaml"]))


def test_each_firing_adds_rounds_to_those_that_are_complete(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert prepare(firing(job, run)) == run and rounds(run) == 1  # the config says 2
    complete(run, 1)
    prepare(firing(job, run, 3))
    assert rounds(run) == 4
    complete(run, 2)
    # A firing that was killed in round 3 of 4: what was begun is finished, and nothing beyond it.
    prepare(firing(job, run))
    assert rounds(run) == 4 and completed(run) == 2


@pytest.mark.parametrize(("settings", "complete_with", "reached"), [((), 0, 1), (("gate=null",), 1, 2)])
def test_a_round_that_was_killed_before_its_gate_is_the_next_firings(
    job: Path, tmp_path: Path, settings: tuple[str, ...], complete_with: int, reached: int
) -> None:
    run = tmp_path / "run"
    prepare(firing(job, run, 1, *settings))
    complete(run, 1, "evaluation")
    assert completed(run) == complete_with
    prepare(firing(job, run, 1, *settings))
    assert rounds(run) == reached


def test_a_later_try_of_the_same_flow_run_adds_nothing(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(firing(job, run, 2))
    complete(run, 1)
    complete(run, 2)
    prepare(firing(job, run, 2), first=False)
    assert rounds(run) == 2
    prepare(firing(job, run, 2), first=True)
    assert rounds(run) == 4


@pytest.mark.parametrize(
    ("run_count", "pauses", "first"), [(1, set(), True), (2, set(), False), (1, {"round-1"}, False)]
)
def test_a_flow_run_that_goes_on_after_a_pause_is_not_at_its_first_try(
    run_count: int, pauses: set[str], first: bool
) -> None:
    flow_run = FlowRun(flow_id=uuid4(), run_count=run_count, empirical_policy=FlowRunPolicy(pause_keys=pauses))
    assert is_first_try(flow_run) is first


def test_stages_are_redone_at_the_first_try_alone(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(firing(job, run, 2))
    complete(run, 1)
    redo = replace(firing(job, run, 0), redo_from="1:evaluation")
    prepare(redo, first=False)
    assert completed(run) == 1
    prepare(redo)
    assert completed(run) == 0 and len(list(run.glob("set_aside/*/round_001/evaluation"))) == 1


def test_without_rounds_to_add_the_config_or_the_folder_decides(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(firing(job, run, 0))
    assert rounds(run) == 2
    prepare(firing(job, run, 0, "rounds=5"))
    assert rounds(run) == 5
    prepare(firing(job, run, 0))
    assert rounds(run) == 5


def test_settings_that_change_results_need_another_folder(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(firing(job, run))
    with pytest.raises(UserError, match=r"training.learning_rate: 0.001 -> 0.002"):
        prepare(firing(job, run, 1, "training.learning_rate=2e-3"))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"config": ()}, "not a run folder"),
        ({"mode": "offline"}, "runs offline configs"),
        ({"rounds_more": 1000, "settings": ("rounds=1",)}, None),
        ({"rounds_more": 1001}, "at most 1000"),
        ({"until": "7:pairs"}, "until: 7:pairs"),
        ({"redo_from": "7:pairs"}, "redo_from: 7:pairs"),
        ({"settings": ("discriminator.silver=static",)}, "bought in the first"),
    ],
)
def test_parameters_that_cannot_be_are_named(
    job: Path, tmp_path: Path, changed: dict[str, object], expected: str | None
) -> None:
    given = {**firing(job, tmp_path / "run").__dict__, **changed}
    if expected is None:
        prepare(Firing(**given))
        return
    with pytest.raises(UserError, match=expected):
        prepare(Firing(**given))
    assert not (tmp_path / "run").exists()


def test_a_run_folder_may_carry_the_time_of_the_firing(monkeypatch: pytest.MonkeyPatch) -> None:
    due = datetime(2026, 3, 1, 23, 30, tzinfo=UTC).astimezone()
    assert dated("runs/n-%Y-%m-%d-%H%M", due) == f"runs/n-{due:%Y-%m-%d-%H%M}"
    assert dated("runs/100", due) == "runs/100"


@pytest.mark.parametrize("flow", [iterative, offline])
def test_the_form_has_titles_descriptions_and_ranges(flow: object) -> None:
    schema = parameter_schema(flow.fn).model_dump()  # type: ignore[attr-defined]
    fields = schema["properties"]
    assert schema["required"] == ["run_dir"]
    assert all(field["title"] != name and field["description"] for name, field in fields.items())
    assert "reference" in fields["until"]["anyOf"][0]["pattern"]
    if "rounds_more" in fields:
        assert (fields["rounds_more"]["minimum"], fields["rounds_more"]["maximum"]) == (0, 1000)
    assert yaml.safe_dump(schema)


def test_the_deployments_for_other_pools_name_flows_and_parameters_that_exist() -> None:
    told = yaml.safe_load((ROOT / "configs" / "prefect" / "pools.yaml").read_text())
    assert {deployment["name"] for deployment in told["deployments"]} == {"process", "docker", "kubernetes"}
    for deployment in told["deployments"]:
        flow = load_flow_from_entrypoint(deployment["entrypoint"])
        checked = flow.validate_parameters(deployment["parameters"])
        assert all((ROOT / file).is_file() for file in checked["config"])
        assert read_schedule(deployment["schedules"][0]["cron"], None, deployment["schedules"][0]["timezone"])
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
