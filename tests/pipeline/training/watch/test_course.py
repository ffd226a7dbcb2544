"""Evaluations in the middle of training, the weights that are kept, and alarms that end or pause it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import Lora, Optimisation
from pipeline.config.training import Alarms
from pipeline.errors import Paused
from pipeline.models.weights.lora import add_adapter
from pipeline.training.reference import reference_logps
from pipeline.training.train import StepReport, TrainResult
from pipeline.training.watch.course import Watching
from tests.support.loss_examples import examples_for, loss_named
from tests.support.tiny_training import dpo, pairs_with_reference, random_pairs, tiny_llama, trained

# Ten steps at a rate that goes past the best.
SETTINGS = Optimisation(batch_size=4, micro_batch_size=2, learning_rate=3e-3, epochs=2.0, schedule="constant")
HELD_OUT = random_pairs(9, seed=7)
QUIET = Alarms(stop=())


class KilledError(Exception):
    pass


def model(lora: bool) -> Any:
    return add_adapter(tiny_llama(), Lora(rank=2, dropout=0.2), seed=3) if lora else tiny_llama(dropout=0.1)


def fit(policy: Any, watching: Watching | None, folder: Path | None = None, **options: Any) -> TrainResult:
    settings = SETTINGS.model_copy(update={"checkpoint_every": options.pop("checkpoint_every", 0)})
    options |= {} if folder is None else {"checkpoints": folder}
    examples = pairs_with_reference(tiny_llama(), 18)
    return trained(policy, examples, dpo(), settings, seed=5, watching=watching, **options)


def same(policy: Any, other: Any) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in policy.state_dict().items())


def best_of_two(**options: Any) -> Watching:
    return Watching(QUIET, HELD_OUT, every=2, keep="best", **options)


@pytest.mark.parametrize("lora", [False, True])
def test_evaluations_change_no_weight_and_measure_what_the_policy_says(lora: bool) -> None:
    plain, watched = model(lora), model(lora)
    before = reference_logps(model(lora), HELD_OUT)
    assert fit(plain, None).evaluations == ()
    result = fit(watched, Watching(QUIET, HELD_OUT, every=4), end_ids=frozenset(range(20)))
    assert same(watched, plain) and result.kept_step == 10
    assert [report.step for report in result.evaluations] == [0, 4, 8, 10]
    assert set(result.evaluations[0].margins) == {0.0} and result.evaluations[0].accuracy == 0.5
    after = reference_logps(watched, HELD_OUT)
    sums = [[sum(logps) for logps in pair] for pair in after]
    start = [[sum(logps) for logps in pair] for pair in before]
    margins = [0.1 * ((c - c0) - (r - r0)) for (c, r), (c0, r0) in zip(sums, start, strict=True)]
    assert result.evaluations[-1].margins == pytest.approx(margins, abs=1e-4)
    endings = [pair[0][-1] for pair, e in zip(after, HELD_OUT, strict=True) if e.responses[0].ids[-1] < 20]
    assert 0 < len(endings) < len(HELD_OUT)
    assert result.evaluations[-1].ending == pytest.approx(sum(endings) / len(endings), abs=1e-4)


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    policy = model(False)
    result = fit(policy, best_of_two(), tmp_path)
    losses = {report.step: report.log_loss for report in result.evaluations}
    assert result.kept_step == min(losses, key=lambda step: losses[step]) not in (0, 10), losses
    logps = reference_logps(policy, HELD_OUT)
    kept = next(report for report in result.evaluations if report.step == result.kept_step)
    chosen = [sum(pair[0]) / len(pair[0]) for pair in logps]
    assert kept.chosen_logp_per_token == pytest.approx(sum(chosen) / len(chosen), abs=1e-5)
    assert [place.name for place in tmp_path.iterdir()] == [f"kept_{result.kept_step:06d}"]


@pytest.mark.parametrize(
    ("killed_at", "every"),
    [pytest.param(3, 3, marks=pytest.mark.whole), (7, 3), pytest.param(9, 3, marks=pytest.mark.whole), (7, 0)],
)
def test_a_killed_run_keeps_the_same_weights(killed_at: int, every: int, tmp_path: Path) -> None:
    whole, resumed = model(False), model(False)
    expected = fit(whole, best_of_two(), tmp_path / "whole", checkpoint_every=every)

    def kill(report: StepReport) -> None:
        if report.step == killed_at:
            raise KilledError

    with pytest.raises(KilledError):
        fit(model(False), best_of_two(), tmp_path / "killed", checkpoint_every=every, on_step=kill)
    result = fit(resumed, best_of_two(), tmp_path / "killed", checkpoint_every=every)
    assert result.evaluations == expected.evaluations and result.kept_step == expected.kept_step
    assert same(resumed, whole)


def test_a_run_ends_early_and_again_after_a_kill(tmp_path: Path) -> None:
    result = fit(model(False), best_of_two(patience=2), tmp_path, checkpoint_every=1)
    steps = [report.step for report in result.evaluations]
    assert result.ended_because == "2 evaluations without a smaller log-loss on held-out pairs"
    assert steps[-1] == result.kept_step + 4 < 10 and len(result.history) == steps[-1]
    again = fit(model(False), best_of_two(patience=2), tmp_path, checkpoint_every=1)
    assert (again.kept_step, len(again.history)) == (result.kept_step, len(result.history))


def test_an_alarm_that_stops_goes_back_to_the_last_good_checkpoint(tmp_path: Path) -> None:
    raised: list[str] = []
    stops = Alarms(margin=1e-6, stop=("margin",))
    watching = Watching(stops, on_alarm=lambda alarm: raised.append(f"{alarm.rule} {alarm.step}"))
    policy = model(False)
    result = fit(policy, watching, tmp_path, checkpoint_every=5)
    assert result.ended_because == "alarm margin" and raised == ["margin 6"] and len(result.history) == 6
    assert result.kept_step == 5
    checkpoint = load_file(tmp_path / "step_000005" / "weights.safetensors")
    assert all(torch.equal(tensor, policy.state_dict()[name]) for name, tensor in checkpoint.items())
    without = fit(model(False), watching)
    assert without.kept_step == 0 and without.ended_because == "alarm margin"


def test_an_alarm_that_pauses_leaves_a_checkpoint_and_the_same_call_goes_on(tmp_path: Path) -> None:
    whole, resumed = model(False), model(False)
    fit(whole, None)
    pauses = Watching(Alarms(margin=1e-6, stop=(), pause=("margin",)))
    with pytest.raises(Paused, match=r"alarm margin, step 6 of 10: .*\nThe same command goes on"):
        fit(model(False), pauses, tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["step_000006"]
    result = fit(resumed, pauses, tmp_path)
    assert len(result.history) == 10 and [alarm.rule for alarm in result.alarms] == ["margin"]
    assert same(resumed, whole)


@pytest.mark.parametrize(("every", "most"), [(0, 1), (3, 2)])
def test_better_weights_take_the_place_of_those_kept_before(every: int, most: int, tmp_path: Path) -> None:
    """Only those of the best evaluation stay, and those that a run which resumes at the checkpoint would need."""
    kept: list[list[str]] = []
    slow = SETTINGS.model_copy(update={"learning_rate": 1e-4, "checkpoint_every": every})
    watching = Watching(QUIET, random_pairs(18), every=1, keep="best")
    examples = pairs_with_reference(tiny_llama(), 18)

    def look(report: StepReport) -> None:
        kept.append(sorted(place.name for place in tmp_path.glob("kept_*")))

    result = trained(tiny_llama(), examples, dpo(), slow, seed=5, watching=watching, checkpoints=tmp_path, on_step=look)
    losses = [report.log_loss for report in result.evaluations]
    assert losses == sorted(losses, reverse=True), "each is better than the last"
    assert len(set(map(tuple, kept))) > 5 and max(map(len, kept)) == most


def test_a_stop_at_the_last_step_counts_as_one(tmp_path: Path) -> None:
    watching = Watching(Alarms(margin=1e-6, stop=("margin",)))
    for _ in range(2):
        settings = SETTINGS.model_copy(update={"checkpoint_every": 3, "max_steps": 6})
        examples = pairs_with_reference(tiny_llama(), 18)
        result = trained(
            model(False), examples, dpo(), settings, seed=5, watching=watching, checkpoints=tmp_path / "stops"
        )
        assert (len(result.history), result.ended_because, result.kept_step) == (6, "alarm margin", 3)
    pauses = Watching(Alarms(margin=1e-6, stop=(), pause=("margin",)))
    with pytest.raises(Paused, match="alarm margin, step 6 of 6"):
        trained(model(False), examples, dpo(), settings, seed=5, watching=pauses, checkpoints=tmp_path / "pauses")
    result = trained(model(False), examples, dpo(), settings, seed=5, watching=pauses, checkpoints=tmp_path / "pauses")
    assert (result.kept_step, result.ended_because) == (6, None)


def test_a_fall_of_the_held_out_margin_that_stops_goes_back_to_its_best(tmp_path: Path) -> None:
    pairs = random_pairs(12, seed=7)
    watching = Watching(Alarms(held_out=0.05, stop=("held_out",)), pairs, every=1)
    policy = model(False)
    result = fit(policy, watching, tmp_path)
    margins = {report.step: report.margin for report in result.evaluations}
    best = max(margins, key=lambda step: margins[step])
    assert result.ended_because == "alarm held_out" and result.kept_step == best not in (0, len(result.history))
    logps = reference_logps(policy, pairs)
    kept = next(report for report in result.evaluations if report.step == best)
    chosen = [sum(pair[0]) / len(pair[0]) for pair in logps]
    assert kept.chosen_logp_per_token == pytest.approx(sum(chosen) / len(chosen), abs=1e-5)


def with_heads(watching: Watching, folder: Path, checkpoints: Path | None = None, **carried: Path) -> TrainResult:
    """A run of SparsePO that writes its heads and its optimiser's state to ``folder``."""
    loss, policy = loss_named("sparsepo"), tiny_llama()
    folder.mkdir()
    carried |= {"heads_to": folder / "heads", "optimiser_to": folder / "state.safetensors"}
    carried |= {} if checkpoints is None else {"checkpoints": checkpoints}
    examples = examples_for(loss, 18, policy, tiny_llama(seed=1))
    return trained(policy, examples, loss, SETTINGS, seed=5, watching=watching, reference=tiny_llama(seed=1), **carried)


def test_heads_and_the_optimisers_state_are_those_of_the_kept_step(tmp_path: Path) -> None:
    watching = Watching(QUIET, random_pairs(9, seed=10), every=2, keep="best")
    result = with_heads(watching, tmp_path / "round", tmp_path / "checkpoints")
    assert result.kept_step not in (0, 10), [report.log_loss for report in result.evaluations]
    state = load_file(tmp_path / "round" / "state.safetensors")
    assert state["heads.mask.weight.step"].item() == result.kept_step
    weights = load_file(tmp_path / "checkpoints" / f"kept_{result.kept_step:06d}" / "weights.safetensors")
    heads = load_file(tmp_path / "round" / "heads" / "heads.safetensors")
    assert heads and all(torch.equal(tensor, weights[f"heads.{name}"]) for name, tensor in heads.items())


def test_a_run_of_which_nothing_is_kept_passes_on_what_it_started_from(tmp_path: Path) -> None:
    with_heads(Watching(QUIET), tmp_path / "first")
    carried = {"heads_from": tmp_path / "first" / "heads", "optimiser_from": tmp_path / "first" / "state.safetensors"}
    result = with_heads(Watching(Alarms(margin=1e-6, stop=("margin",))), tmp_path / "second", **carried)
    assert result.kept_step == 0
    for name in ("heads/heads.safetensors", "state.safetensors"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_a_run_that_is_killed_knows_the_alarms_and_evaluations_before(tmp_path: Path) -> None:
    alarms = Alarms(margin=1e-6, stop=())

    def kill(report: StepReport) -> None:
        if report.step == 8:
            raise KilledError

    with pytest.raises(KilledError):
        fit(model(False), Watching(alarms, HELD_OUT, every=2), tmp_path, checkpoint_every=7, on_step=kill)
    told: list[tuple[list[str], list[int]]] = []
    raised: list[str] = []
    watching = Watching(
        alarms,
        HELD_OUT,
        every=2,
        on_alarm=lambda alarm: raised.append(alarm.rule),
        on_resume=lambda known, reports: told.append(([a.rule for a in known], [report.step for report in reports])),
    )
    result = fit(model(False), watching, tmp_path, checkpoint_every=7)
    assert told == [(["margin"], [0, 2, 4, 6])] and raised == []
    assert [(alarm.rule, alarm.step) for alarm in result.alarms] == [("margin", 6)]
