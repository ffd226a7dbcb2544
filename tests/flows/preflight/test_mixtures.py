"""Mixtures in check, in the data stage and its key, in the run folder's config, and in reward models."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.commands.reward_model import _key, read_data
from flows.preflight.check import check_config, check_run
from flows.preflight.understand import understood
from flows.run_folder.inputs import Place
from flows.run_folder.key_parts import source_files
from flows.stages.context import Context
from flows.stages.data import text_preferences
from flows.stages.run import run_stage
from pipeline.config import MixtureData, RewardModelConfig, RunConfig
from pipeline.config.files import dump_config, load_config
from pipeline.errors import UserError
from pipeline.storage.rows import read_rows
from pipeline.storage.run_folder import RunFolder
from tests.support.tiny_model import save_tiny_model


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    file = folder / f"{name}.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"the {name} {n}", "chosen": f"the cat {n}", "rejected": "a mat"} for n in range(count)]


def other_rows(name: str, count: int) -> list[dict[str, Any]]:
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    return [{names[column]: text for column, text in row.items()} for row in rows(name, count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def job(tmp_path: Path, model: Path) -> Path:
    """Thirty pairs of a, a third of the mixture, and a hundred of b, whose columns have other names."""
    a, b = write(tmp_path, "a", rows("dog", 30)), write(tmp_path, "b", other_rows("cat", 100))
    (tmp_path / "run.yaml").write_text(
        f"name: mixed\nmode: offline\npolicy: {{path: {model}}}\nheld_out: {{prompts: 6}}\nloss: {{preset: dpo}}\n"
        f"pairs: [{{path: {a}, weight: 1}}, {{path: {b}, weight: 2, columns: {{prompt: question}}}}]\n"
    )
    return tmp_path


def load(job: Path, *settings: str) -> RunConfig:
    return understood(load_config([job / "run.yaml"], settings))[0]


def members(config: RunConfig) -> MixtureData:
    assert isinstance(config.pairs, MixtureData)
    return config.pairs


def test_check_says_what_each_member_gives_and_how_it_is_read(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_config([job / "run.yaml"], [], job / "faults.jsonl")
    lines = capsys.readouterr().out.splitlines()
    assert "pairs.of.1: prompt ← question · chosen ← better · rejected ← worse" in lines
    assert f"  pairs.of.0: uses 30 of 30 rows of {job / 'a.jsonl'}" in lines
    assert f"  pairs.of.1: uses 60 of 100 rows of {job / 'b.jsonl'}" in lines
    assert "  pairs: trains on 84 of 90 rows; not on 6 held out" in lines
    shown = [line for line in lines if "as the model sees it" in line]
    assert [line.partition(": ")[0] for line in shown] == ["pairs.of.0", "pairs.of.1"]


def test_faults_are_counted_by_member(job: Path) -> None:
    write(job, "b", ["no json", *other_rows("cat", 100)])
    with pytest.raises(UserError, match=r"pairs\.of\.1: malformed: 1 of 61 rows"):
        check_run(load(job), job / "faults.jsonl")
    write(job, "b", [{"question": "q", "chosen": "x"}] * 3)
    with pytest.raises(UserError, match=r"pairs\.of\.1\.columns\.rejected=NAME"):
        check_run(load_config([job / "run.yaml"], []), job / "faults.jsonl")
    write(job, "b", [{"question": f"q {n}", "responses": ["x", "y"], "rewards": [1, 0]} for n in range(20)])
    with pytest.raises(UserError, match="a data set holds one form"):
        check_run(load(job), job / "faults.jsonl")


def test_rows_that_limits_drop_are_left_out_of_what_the_weights_chose(job: Path) -> None:
    same = [{**row, "better": "a mat"} if n % 2 else row for n, row in enumerate(other_rows("cat", 100))]
    write(job, "b", ["no json", *same])
    contents, log = check_run(load(job, "limits={malformed: drop, identical: drop}"), job / "faults.jsonl")
    lost = log.tallies["pairs.of.1"].faults["identical"]
    assert 15 < lost < 45 and contents.pairs + contents.held_out_pairs == 90 - lost


def test_the_data_stage_writes_the_rows_and_their_counts(job: Path, tmp_path: Path) -> None:
    context = Context(RunFolder(tmp_path / "run"), load(job))
    run_stage(context, 0, "data")
    metrics = context.run.stage(0, "data").require().metrics
    assert metrics["mixtures"] == {
        "pairs.of.0": {"used": 30, "readable": 30},
        "pairs.of.1": {"used": 60, "readable": 100},
    }
    held = [*read_rows(context.run.stage(0, "data").folder / "held_out_pairs")]
    found = [row.prompt.messages[0].content for row in text_preferences(context)]
    assert (len(found), len(set(found)), len(held), metrics["pairs"]) == (84, 84, 6, 84)
    again = Context(RunFolder(tmp_path / "again"), load(job))
    run_stage(again, 0, "data")
    assert [row.prompt.messages[0].content for row in text_preferences(again)] == found


def test_the_key_has_the_files_of_all_members(job: Path, tmp_path: Path) -> None:
    def files(config: RunConfig) -> Any:
        return source_files(Place(RunFolder(tmp_path / "run"), config, 0))["files"]

    before = files(load(job))
    single = files(load(job, f"pairs={{path: {job / 'a.jsonl'}}}"))
    assert isinstance(single["pairs"], str) and before["pairs"][0] == single["pairs"]
    write(job, "b", other_rows("cat", 101))
    after = files(load(job))
    assert after["pairs"][0] == before["pairs"][0] and after["pairs"][1] != before["pairs"][1]
    of = [{"path": "a"}, {"path": "b", "weight": 1}]
    identities = [MixtureData.model_validate({"of": of, "seed": seed}).identity() for seed in (0, 0, 1)]
    assert identities[0] == identities[1] != identities[2]


def test_a_run_goes_on_with_what_was_found_for_each_member(job: Path, tmp_path: Path) -> None:
    root, found = tmp_path / "run", load(job)
    root.mkdir()
    assert [(one.columns.chosen, one.weight) for one in members(found).of] == [("chosen", 1), ("better", 2)]
    (root / "config.yaml").write_text(dump_config(found))
    write(job, "b", rows("cat", 100))
    assert understood(load_config([job / "run.yaml"], []), root) == (found, [])


def test_prompts_are_mixed_too_and_refused_once_they_change(job: Path, tmp_path: Path) -> None:
    prompts = [{"prompt": f"say {n}", "answer": "x"} for n in range(20)]
    one, two = write(job, "one", prompts), write(job, "two", rows("cat", 20))
    settings = ["mode=iterative", "scorer={kind: length}", f"prompts=[{{path: {one}}}, {{path: {two}}}]"]
    settings += [f"pairs={{path: {job / 'a.jsonl'}}}"]
    _, log = check_run(load(job, *settings))
    assert log.account[:2] == [
        "prompts: trains on 34 of 40 rows; not on 6 held out",
        f"prompts.of.0: uses 20 of 20 rows of {one}",
    ]
    context = Context(RunFolder(tmp_path / "run"), load(job, *settings))
    run_stage(context, 0, "data")
    counts = context.run.stage(0, "data").require().metrics
    assert (counts["prompts"], counts["held_out"]) == (34, 6) and "prompts.of.1" in dict(counts["mixtures"])  # type: ignore[arg-type]
    write(job, "one", [*prompts, {"prompt": "new", "answer": "y"}])
    with pytest.raises(UserError, match=r"made with other settings; nothing was changed:\n.*files\.prompts"):
        run_stage(Context(context.run, load(job, *settings)), 0, "data")


def test_a_reward_model_takes_a_mixture(job: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = [{"path": str(job / "a.jsonl")}, {"path": str(job / "c.jsonl"), "weight": 0.5}]
    write(job, "c", rows("bird", 40))
    config = RewardModelConfig.model_validate(
        {"name": "r", "model": {"path": str(model)}, "pairs": of, "held_out": {"prompts": 5}}
    )
    data = read_data(config)
    assert (len(data.train), len(data.held_out)) == (40, 5)
    assert [(one.name, one.used, one.readable) for one in data.members] == [
        ("pairs.of.0", 30, 30),
        ("pairs.of.1", 15, 40),
    ]
    assert f"pairs.of.1: uses 15 of 40 rows of {job / 'c.jsonl'}" in capsys.readouterr().err
    before = _key(config)
    write(job, "c", rows("bird", 41))
    assert _key(config).digest != before.digest
