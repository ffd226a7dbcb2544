"""Evaluations in the middle of training, the weights that are kept, and alarms that end or pause it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import Lora, Optimisation
from pipeline.config.training import Alarms
from pipeline.errors import Paused
from pipeline.models.lora import add_adapter
from pipeline.training.reference import reference_logps
from pipeline.training.train import StepReport, TrainResult
from pipeline.training.watch.course import Watching
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
    result = fit(watched, Watching(QUIET, HELD_OUT, every=4))
    assert same(watched, plain) and result.kept_step == 10
    assert [report.step for report in result.evaluations] == [0, 4, 8, 10]
    assert set(result.evaluations[0].margins) == {0.0} and result.evaluations[0].accuracy == 0.5
    after = reference_logps(watched, HELD_OUT)
    sums = [[sum(logps) for logps in pair] for pair in after]
    start = [[sum(logps) for logps in pair] for pair in before]
    margins = [0.1 * ((c - c0) - (r - r0)) for (c, r), (c0, r0) in zip(sums, start, strict=True)]
    assert result.evaluations[-1].margins == pytest.approx(margins, abs=1e-4)
    endings = [pair[0][-1] for pair in after]
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
    assert [file.name for file in tmp_path.iterdir()] == [f"kept_{result.kept_step:06d}.safetensors"]


@pytest.mark.parametrize(("killed_at", "every"), [(3, 3), (7, 3), (9, 3), (7, 0)])
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
    result = fit(policy, watching, tmp_path, checkpoint_every=3)
    assert result.ended_because == "alarm margin" and raised == ["margin 4"] and len(result.history) == 4
    assert result.kept_step == 3
    checkpoint = load_file(tmp_path / "step_000003" / "weights.safetensors")
    assert all(torch.equal(tensor, policy.state_dict()[name]) for name, tensor in checkpoint.items())
    without = fit(model(False), watching)
    assert without.kept_step == 0 and without.ended_because == "alarm margin"


def test_an_alarm_that_pauses_leaves_a_checkpoint_and_the_same_call_goes_on(tmp_path: Path) -> None:
    whole, resumed = model(False), model(False)
    fit(whole, None)
    pauses = Watching(Alarms(margin=1e-6, stop=(), pause=("margin",)))
    with pytest.raises(Paused, match=r"alarm margin, step 4 of 10: .*\nThe same command goes on"):
        fit(model(False), pauses, tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["step_000004"]
    result = fit(resumed, pauses, tmp_path)
    assert len(result.history) == 10 and [alarm.rule for alarm in result.alarms] == ["margin"]
    assert same(resumed, whole)
