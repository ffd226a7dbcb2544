"""What earlier rounds and a data set add to a round, what is shown of it, and what is refused."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.commands.pairs import print_preview, show_pairs
from flows.preflight.check import check_run
from flows.report.pair_preview import preview
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config import RunConfig
from pipeline.config.files import dump_config
from pipeline.errors import UserError
from pipeline.storage.atomic import write_text
from pipeline.storage.rows import read_preference_file, read_preference_rows
from pipeline.types import Message, Pair, Preference, Prompt, Response
from tests.support.tiny_run import begin, make_job, open_context, supply, train


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def three_rounds(job: Path, root: Path, *settings: str) -> Context:
    """Two rounds, and what the third trains on."""
    context = open_context(job, root, "iterative", "rounds=3", *settings)
    begin(context)
    train(context, 1)
    train(context, 2)
    supply(context, 3)
    return context


def rows(context: Context, round_: int, name: str = "rows") -> list[Preference]:
    return [*read_preference_file(context.run.stage(round_, "pairs").folder / f"{name}.parquet")]


def metrics(context: Context, round_: int) -> dict[str, Any]:
    return dict(context.run.stage(round_, "pairs").require().metrics)


def test_a_share_of_each_round_was_made_by_earlier_ones(job: Path, tmp_path: Path) -> None:
    context = three_rounds(job, tmp_path / "run", "replay.share=0.5", "replay.decay=1.0", "replay.anchor=0.2")
    own, replayed, anchor = (rows(context, 3, name) for name in ("rows", "replayed", "anchor"))
    pools = [{row.id for row in rows(context, number)} for number in (1, 2)]
    assert len(replayed) == round(0.5 * len(own) / 0.3) or len(replayed) == sum(map(len, pools))
    assert {row.id for row in replayed} <= pools[0] | pools[1]
    assert all({row.id for row in replayed} & pool for pool in pools)
    assert len(anchor) == round(0.2 * len(own) / 0.3)
    assert all(getattr(row, "chosen").logprobs == () for row in anchor), "they come from the data set"  # noqa: B009
    assert metrics(context, 3)["own"] == len(own) and metrics(context, 1)["replayed"] == {}
    assert sum(metrics(context, 3)["replayed"].values()) == len(replayed)
    everything = [*read_preference_rows(context.run.stage(3, "pairs").folder)]
    assert len(everything) == len(own) + len(replayed) + len(anchor) == context.run.stage(3, "pairs").require().rows
    run_stage(context, 3, "policy")


def test_rounds_whose_responses_have_become_unlikely_are_not_replayed(job: Path, tmp_path: Path) -> None:
    # The sampler that stands in claims log-probabilities of -1; the untrained model's are about -4.
    far = three_rounds(job, tmp_path / "far", "replay.share=0.5", "replay.max_drift=0.5")
    assert 1.5 < metrics(far, 3)["drift"]["1"] < 8 and metrics(far, 3)["replayed"] == {}
    assert not (far.run.stage(3, "pairs").folder / "replayed.parquet").exists()
    near = three_rounds(job, tmp_path / "near", "replay.share=0.5", "replay.max_drift=20", "replay.max_age=1")
    assert list(metrics(near, 3)["drift"]) == ["1"] and list(metrics(near, 3)["replayed"]) == ["1"]


def test_what_an_earlier_round_trained_on_can_be_left_out(job: Path, tmp_path: Path) -> None:
    kept = three_rounds(job, tmp_path / "kept", "prompts_per_round=16", "seed=3")
    seen = {row.id for number in (1, 2) for row in rows(kept, number)}
    repeats = sum(row.id in seen for row in rows(kept, 3))
    dropping = open_context(job, tmp_path / "kept", "iterative", "rounds=3", "prompts_per_round=16", "seed=3")
    dropping = Context(dropping.run, dropping.config.model_copy(update={"pairing": _dropping(dropping.config)}))
    from flows.stages.pairs import own

    dropped = Counter[str]()
    made = [*own(dropping, 3, dropped)]
    assert dropped["repeated"] == repeats and not {row.id for row in made} & seen


def _dropping(config: RunConfig) -> Any:
    return config.pairing.model_copy(update={"drop_repeated": True})


@pytest.mark.parametrize(
    ("mode", "settings", "said"),
    [
        ("iterative", ["pairing.rule=marked"], "pairing.rule: marked makes single responses, but loss dpo"),
        ("iterative", ["loss.preset=rpo_list_bwd", "pairing.rule=all"], "pairing.rule: loss rpo_list_bwd takes all"),
        ("iterative", ["loss.preset=rpo_list_bwd", "replay.anchor=0.1"], "replay.anchor: rounds train on groups"),
        ("iterative", ["replay.share=0"], "replay"),
        ("offline", ["replay.share=0.5"], "offline mode trains on the data set's own pairs"),
        ("iterative", ["replay.anchor=0.5", "pairs=null"], "replay.anchor: 0.5, but the section pairs"),
    ],
)
def test_what_does_not_fit_is_refused(job: Path, tmp_path: Path, mode: str, settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_run(open_context(job, tmp_path / "run", mode, *settings).config)


def test_single_responses_are_made_for_a_loss_that_takes_them(job: Path, tmp_path: Path) -> None:
    context = open_context(job, tmp_path / "run", "iterative", "loss.preset=kto", "pairing.rule=marked")
    check_run(context.config)
    begin(context)
    train(context, 1)
    assert metrics(context, 1)["kind"] == "unpaired"
    assert context.run.stage(1, "policy").require().metrics["steps"]


def test_a_preview_is_made_from_labels_and_writes_nothing(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = open_context(job, tmp_path / "run", "iterative")
    with pytest.raises(UserError, match="not a run folder"):
        show_pairs(tmp_path, [], None, recompute=True)
    begin(context)
    write_text(context.run.config_file, dump_config(context.config))
    with pytest.raises(UserError, match="no round has labels yet"):
        show_pairs(context.run.root, [], None, recompute=True)
    supply(context, 1)
    files = sorted(tmp_path.rglob("*"))
    show_pairs(context.run.root, ["pairing.rule=all"], None, recompute=True)
    all_pairs = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == files
    show_pairs(context.run.root, [], None, recompute=False)
    written = capsys.readouterr().out
    assert f"kept {len(rows(context, 1))}" in " ".join(written.split()) and "round 1" in written
    assert "margin (score difference)" in written and "chosen: tokens" in written and "chosen (" in written
    assert all_pairs != written
    with pytest.raises(UserError, match="settings are for --preview"):
        show_pairs(context.run.root, ["pairing.rule=all"], None, recompute=False)
    with pytest.raises(UserError, match=r"seed=3: --preview takes only settings of pairing"):
        show_pairs(context.run.root, ["seed=3"], None, recompute=True)
    with pytest.raises(UserError, match="round_002/labels is not there yet"):
        show_pairs(context.run.root, [], 2, recompute=True)


def test_model_output_cannot_drive_the_terminal() -> None:
    evil = "a\x1b[2Jb\rc \x1b]8;;https://evil.example\x07link [red]d[/red]\n2. user: forged \u202e" + "x" * 2000
    first, second = (Response(text, (1, 2), (), "stop") for text in (evil, "other"))
    pair = Pair(Prompt((Message("user", evil),)), (1,), first, second)
    with io.StringIO() as output:
        print_preview(Console(file=output, force_terminal=True, width=100), preview([pair]))
        shown = output.getvalue()
    assert "\x1b" not in shown and "\r" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert "a\N{REPLACEMENT CHARACTER}[2Jb" in shown and "[red]d[/red]" in shown and "x …" in shown
    assert not any(line.startswith("2. ") for line in shown.splitlines())
