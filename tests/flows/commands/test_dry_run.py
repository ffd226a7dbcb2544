"""A dry run says what would run, under the keys that the stages then have, and writes nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.__main__ import app
from flows.commands.dry_run import planned_stages
from pipeline.config.files import load_config
from pipeline.errors import UserError
from tests.support.tiny_run import begin, make_job, open_context, train


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("dry"))


@pytest.mark.parametrize("mode", ["offline", "iterative"])
def test_keys_are_those_that_the_stages_get(job: Path, tmp_path: Path, mode: str) -> None:
    root = tmp_path / "run"
    config = load_config([job / f"{mode}.yaml"], ["loss.preset=vpo_online" if mode == "iterative" else "rounds=2"])
    before = planned_stages(config, root)
    assert not root.exists() and {one.state for one in before} == {"to do"}
    context = open_context(job, root, mode, "loss.preset=vpo_online" if mode == "iterative" else "rounds=2")
    begin(context)
    train(context, 1)
    keys = {one.title: one.key for one in before}
    made = [run_stage for run_stage in before if context.run.root.joinpath(run_stage.title).exists()]
    assert len(made) >= 5
    for one in made:
        round_, name = one.title.split("/")
        assert context.run.stage(int(round_.removeprefix("round_")), name).require().key == keys[one.title]
    after = planned_stages(config, root)
    assert {one.title for one in after if one.state == "done"} == {one.title for one in made}
    assert [one.key for one in after] == [one.key for one in before]


def test_other_settings_are_named_with_all_that_depends_on_them(job: Path, tmp_path: Path) -> None:
    context = open_context(job, tmp_path / "run", "offline")
    begin(context)
    train(context, 1)
    command = ["run", str(job / "offline.yaml"), "training.learning_rate=5e-4", "--run-dir", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, [*command, "--dry-run", "--until", "1:policy"], catch_exceptions=False).output
    rows = [line.split() for line in shown.partition("/policy was made with")[0].splitlines()]
    states = {row[0]: " ".join(row[2:]) for row in rows if len(row) > 2}
    assert states["round_001/pairs"] == "done" and states["round_001/policy"].startswith("other settings")
    assert "made with other settings: training.learning_rate: 0.001 -> 0.0005" in shown
    assert "round_002" not in shown and "stages would run" in shown
    assert not (tmp_path / "run" / "logs").exists()


def test_it_goes_with_no_from(job: Path) -> None:
    with pytest.raises(UserError, match="does not go with --from"):
        CliRunner().invoke(
            app, ["run", str(job / "offline.yaml"), "--dry-run", "--from", "1:pairs"], catch_exceptions=False
        )
