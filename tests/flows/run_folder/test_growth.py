"""Prompts that are added to a run's file between rounds: what takes them up, and what of earlier rounds stays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.commands.dry_run import planned_stages
from flows.loop.entry import Firing, prepare
from flows.report.model_card import card
from flows.run_folder.growth import ADDED, brings_prompts, has_grown
from flows.stages.context import Context
from flows.stages.data import held_out_prompts, prompts_by_round
from flows.stages.run import run_stage
from flows.stages.sampling.samples import round_prompts
from pipeline.config.files import load_config
from pipeline.data.run_data import RunData, open_data
from pipeline.errors import RunError, UserError
from pipeline.storage.digests import file_sha256
from pipeline.storage.run_folder import RunFolder, StageWriter
from tests.support.tiny_run import PAIRS, begin, make_job, open_context, train

NEW = [{"prompt": f"the new {n}", "answer": "barn"} for n in range(12)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def written(file: Path, rows: list[dict[str, Any]], mode: str = "w") -> Path:
    with file.open(mode) as opened:
        opened.writelines(json.dumps(row) + "\n" for row in rows)
    return file


def opened(job: Path, folder: Path) -> Context:
    prompts = f"prompts.path={folder / 'prompts*.jsonl'}"
    return open_context(job, folder / "run", "iterative", prompts, "pairs=null")


def play(context: Context, round_: int) -> list[str]:
    """A round as the flow makes it; its prompts."""
    if brings_prompts(context.run, context.config, round_):
        run_stage(context, round_, ADDED)
    train(context, round_)
    return [prompt.messages[-1].content for prompt in round_prompts(context, round_)]


def test_added_prompts_of_a_held_out_source_and_dropped_ones_are_left_out(job: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"the cat {n}", "answer": "barn", "site": f"site {n // 4}"} for n in range(24)]
    file = written(tmp_path / "prompts.jsonl", rows)
    settings = ["prompts.columns.source=site", "held_out={prompts: 4, by: source}", "limits={doubled_eos: drop}"]
    context = open_context(job, tmp_path / "run", "iterative", f"prompts.path={file}", "pairs=null", *settings)
    run_stage(context, 0, "data")
    (held,) = {int(prompt.messages[-1].content.split()[-1]) // 4 for prompt in held_out_prompts(context)}
    written(file, [{"prompt": f"new {n}", "answer": "barn", "site": f"site {n}"} for n in range(6)], "a")
    written(file, [{"prompt": "new </s>", "answer": "barn", "site": "site 9"}], "a")
    run_stage(context, 1, ADDED)
    added = {prompt.messages[-1].content for prompt in prompts_by_round(context, 1)[1]}
    assert added == {f"new {n}" for n in range(6) if n != held}
    assert context.run.stage(1, ADDED).require().metrics["dropped"] == {"prompts": {"doubled_eos": 1}}


def weights(context: Context, round_: int) -> str:
    return file_sha256(context.run.stage(round_, "policy").folder / "model.safetensors")


@pytest.mark.whole
def test_added_prompts_are_those_of_later_rounds_and_change_nothing_of_earlier_ones(job: Path, tmp_path: Path) -> None:
    left_alone, grown = tmp_path / "alone", tmp_path / "grown"
    played: dict[Path, list[list[str]]] = {}
    for folder in (left_alone, grown):
        folder.mkdir()
        file = written(folder / "prompts.jsonl", PAIRS)
        context = opened(job, folder)
        begin(context)
        played[folder] = [play(context, 1)]
        if folder == grown:
            held_out = held_out_prompts(context)
            # Beside new prompts one that was there, and a held-out one in other letters.
            twin = {"prompt": held_out[0].messages[-1].content.upper()}
            written(file, [*NEW[:5], PAIRS[0], twin], "a")
            written(folder / "prompts-2.jsonl", NEW[5:])
            again = opened(job, folder)
            assert has_grown(again.run, again.config)
            planned = {one.title: one.key for one in planned_stages(again.config, again.run.root)}
        played[folder] += [play(opened(job, folder), 2), play(opened(job, folder), 3), play(opened(job, folder), 4)]
    assert played[grown][:2] == played[left_alone][:2] and played[grown][2] != played[left_alone][2]
    fresh = {row["prompt"] for row in NEW}
    # 16 may be trained on: two rounds of 8, after which those that came later are next.
    assert set(played[grown][2]) < fresh and fresh < {*played[grown][2], *played[grown][3]}
    alone = opened(job, left_alone)
    assert [weights(again, n) for n in (1, 2)] == [weights(alone, n) for n in (1, 2)]
    assert weights(again, 3) != weights(alone, 3) and held_out_prompts(again) == held_out
    added = [stage for stage in again.run.stages() if stage.name == ADDED]
    assert [(stage.round, stage.require().rows) for stage in added] == [(2, 12)]
    assert again.run.stage(2, "samples").require().key == planned["round_002/samples"]
    assert "| prompts that rounds could train on | 28 |" in card(again.run, again.config, 3)
    # All is there still, under the keys that the files have with what was added.
    for stage in again.run.stages():
        assert not run_stage(again, stage.round, stage.name)


def test_a_kill_while_prompts_are_taken_up_loses_and_repeats_none(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "prompts.jsonl", PAIRS)
    context = opened(job, tmp_path)
    begin(context)
    written(file, NEW[:5], "a")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageWriter, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage(context, 1, ADDED)
    stage = context.run.stage(1, ADDED)
    assert (stage.partial / "prompts" / "rows.parquet").is_file() and not stage.folder.exists()
    written(file, NEW[5:], "a")
    assert brings_prompts(context.run, context.config, 1)
    run_stage(context, 1, ADDED)
    assert stage.require().rows == len(NEW) and not stage.partial.exists()
    assert not has_grown(context.run, context.config)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*PAIRS[:6], {**PAIRS[6], "prompt": "the mat 6"}, *PAIRS[7:], *NEW], r"prompts.jsonl, row 7: changed"),
        ([*PAIRS[:6], {**PAIRS[6], "answer": "mat"}, *PAIRS[7:]], r"prompts.jsonl, row 7: changed"),
        ([*PAIRS[:3], *NEW, *PAIRS[3:]], r"prompts.jsonl, row 4: changed or inserted"),
        ([*PAIRS[:3], *PAIRS[4:], *NEW], r"prompts.jsonl, row 20: changed, or rows were removed"),
        (PAIRS[:-1], "changed, or rows were removed"),
    ],
)
def test_what_was_read_must_stay(job: Path, tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    file = written(tmp_path / "prompts.jsonl", PAIRS)
    firing = Firing("iterative", str(tmp_path / "run"), (str(job / "iterative.yaml"),), (f"prompts.path={file}",), 1)
    context = Context(RunFolder(prepare(firing)), load_config([tmp_path / "run" / "config.yaml"]))
    run_stage(context, 0, "data")
    prepare(firing)
    written(file, NEW, "a")
    prepare(firing)
    written(file, rows)
    meant = replace(firing, settings=(*firing.settings, "prompts.rewards_are=scores"))
    for same in (firing, meant):
        with pytest.raises(UserError, match=said):
            prepare(same)


def test_a_row_that_cannot_be_read_is_refused_before_anything_runs(job: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "prompts.jsonl", PAIRS)
    firing = Firing("iterative", str(tmp_path / "run"), (str(job / "iterative.yaml"),), (f"prompts.path={file}",), 1)
    context = Context(RunFolder(prepare(firing)), load_config([tmp_path / "run" / "config.yaml"]))
    run_stage(context, 0, "data")
    with file.open("a") as opened:
        opened.write('{"prompt": "half a r')
    with pytest.raises(UserError, match="malformed"):
        prepare(firing)


@pytest.mark.parametrize("stage", [(0, "data"), (1, ADDED)])
def test_rows_that_come_after_the_key_keep_nothing_and_the_next_try_takes_them(
    stage: tuple[int, str], job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "prompts.jsonl", PAIRS)
    context = opened(job, tmp_path)
    if stage[1] == ADDED:
        begin(context)
        written(file, NEW[:2], "a")
    with monkeypatch.context() as patch:
        patch.setattr("flows.stages.run.require_room", lambda *_: written(file, NEW[2:4], "a") and None)
        with pytest.raises(RunError, match=rf"round {stage[0]}, {stage[1]}: prompts: .* is being written"):
            run_stage(context, *stage)
    assert not context.run.stage(*stage).folder.exists()
    assert run_stage(context, *stage) and not run_stage(context, *stage)
    prompts = {prompt.messages[-1].content for prompt in prompts_by_round(context, stage[0])[stage[0]]}
    held = {prompt.messages[-1].content for prompt in held_out_prompts(context)}
    assert {row["prompt"] for row in NEW[2:4]} <= prompts | held


def test_pairs_that_change_after_the_key_keep_nothing(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "pairs.jsonl", PAIRS)
    context = open_context(job, tmp_path / "run", "offline", f"pairs.path={file}")
    with monkeypatch.context() as patch:
        patch.setattr("flows.stages.run.require_room", lambda *_: written(file, PAIRS[:1], "a") and None)
        with pytest.raises(RunError, match=r"round 0, data: pairs: .*pairs\.jsonl: the data is being written"):
            run_stage(context, 0, "data")
    assert run_stage(context, 0, "data") and not run_stage(context, 0, "data")


@pytest.mark.parametrize("cut", [1, 9])
def test_half_a_row_at_the_end_is_read_when_it_is_complete(cut: int, job: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "prompts.jsonl", PAIRS)
    whole = json.dumps({"prompt": "the new é", "answer": "barn"}, ensure_ascii=False).encode()
    with file.open("ab") as opened_file:
        opened_file.write(whole[:-cut])
    context = opened(job, tmp_path)
    begin(context)
    assert not run_stage(context, 0, "data") and not brings_prompts(context.run, context.config, 1)
    with file.open("ab") as opened_file:
        opened_file.write(whole[-cut:] + b"\n")
    assert not run_stage(context, 0, "data") and brings_prompts(context.run, context.config, 1)
    run_stage(context, 1, ADDED)
    assert [prompt.messages[-1].content for prompt in prompts_by_round(context, 1)[1]] == ["the new é"]
    with file.open("ab") as opened_file:
        opened_file.write(b"{")
    assert not run_stage(context, 1, ADDED) and not brings_prompts(context.run, context.config, 2)


def test_half_a_row_of_a_table_keeps_nothing(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,answer\n" + "".join(f"the cat {n},barn\n" for n in range(20)) + "the dog,ba")
    context = open_context(job, tmp_path / "run", "iterative", f"prompts.path={file}", "pairs=null")

    def completed(*given: Any) -> RunData:
        with file.open("a") as opened_file:
            opened_file.write("rn\n")
        return open_data(*given)

    with monkeypatch.context() as patch:
        patch.setattr("flows.stages.data.open_data", completed)
        with pytest.raises(RunError, match="is being written"):
            run_stage(context, 0, "data")
    assert run_stage(context, 0, "data") and not run_stage(context, 0, "data")
