"""Diffusion policies in the training loop that trains text, with the same losses."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipeline.config.images.scoring import ImageScore, SafeLoser, WeighedLoser
from pipeline.errors import UserError
from pipeline.images.denoising_scores import DenoisingScores, image_ids, prompt_of_draws
from pipeline.images.diffusion_engine import DiffusionEngine, DiffusionSettings, ImageRequest
from pipeline.images.image_folder import load_image_policy
from pipeline.images.image_policy import ImagePolicy
from pipeline.losses import Loss, load_preset
from pipeline.training.auxiliary.loser_guard import guard_of
from pipeline.training.batches.collate import collate
from pipeline.training.batches.examples import Example
from pipeline.training.train import Files, StepReport, Trainee, TrainResult, train
from pipeline.training.watch.self_test import SelfTestError
from tests.support.image_training import PAIRS, image_pairs, optimisation, scores_of, with_stored
from tests.support.tiny_diffusion import KINDS, PROMPTS, class_conditional, unconditional

ONE = ImageScore()


@pytest.fixture
def policy(tmp_path: Path) -> ImagePolicy:
    return load_image_policy(class_conditional(tmp_path / "policy"))


def run(
    scores: DenoisingScores,
    examples: Sequence[Example],
    loss: Loss | None = None,
    reference: object | None = None,
    live: bool = False,
    files: Files | None = None,
    **settings: object,
) -> tuple[TrainResult, list[StepReport]]:
    steps: list[StepReport] = []
    trainee = Trainee(scores, reference, starts_at_reference=True, live=live)
    loss = loss or load_preset("dpo", beta=0.1)
    told = train(trainee, examples, loss, optimisation(**settings), seed=0, on_step=steps.append, files=files)
    return told, steps


def weights(scores: DenoisingScores) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in scores.model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_has_margin_0_and_loss_ln_2_and_training_lowers_the_loss(kind: str, tmp_path: Path) -> None:
    policy = load_image_policy(KINDS[kind](tmp_path / kind))
    scores = scores_of(policy, PROMPTS[kind], ONE, epochs=6, rows=2 * PAIRS)
    before = weights(scores)
    examples = with_stored(scores, image_pairs(ONE, epochs=6))
    _, steps = run(scores, examples, batch_size=PAIRS, micro_batch_size=PAIRS, epochs=6, learning_rate=3e-4)
    assert steps[0].margin == 0
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-7)
    assert steps[-1].loss < 0.99 * math.log(2)
    assert not torch.equal(weights(scores), before)


def test_stored_errors_are_those_of_a_live_reference(policy: ImagePolicy) -> None:
    """Also in the second epoch, whose draws are others, and with several draws."""
    score = ImageScore(draws=2)
    found = []
    for live in (False, True):
        own = policy.with_network(copy.deepcopy(policy.network))
        scores = scores_of(own, [0, 3], score, epochs=2, rows=16)
        examples = image_pairs(score, epochs=2)
        examples = examples if live else with_stored(scores, examples)
        _, steps = run(scores, examples, reference=policy.network if live else None, live=live, epochs=2)
        found.append(([step.loss for step in steps], weights(scores)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert len({round(loss, 6) for loss in found[0][0]}) == 4


def test_the_policy_is_no_reference_of_itself(policy: ImagePolicy) -> None:
    scores = scores_of(policy, [0, 3], ONE)
    with pytest.raises(UserError, match=r"reference_errors: live: needs the reference model, besides the policy"):
        run(scores, image_pairs(ONE), reference=policy.network, live=True)


def test_stored_errors_of_another_model_are_found(policy: ImagePolicy, tmp_path: Path) -> None:
    other = load_image_policy(class_conditional(tmp_path / "other", seed=1))
    examples = with_stored(scores_of(other, [0, 3], ONE), image_pairs(ONE))
    with pytest.raises(SelfTestError):
        run(scores_of(policy, [0, 3], ONE), examples)


def test_a_killed_run_goes_on_to_the_same_bits(policy: ImagePolicy, tmp_path: Path) -> None:
    examples = with_stored(scores_of(policy, [0, 3], ONE, epochs=2, rows=8), image_pairs(ONE, epochs=2))
    found = []
    for stop in (None, 3):
        own = policy.with_network(copy.deepcopy(policy.network))
        files = Files(checkpoints=tmp_path / f"checkpoints_{stop}")
        settings = {"epochs": 2, "checkpoint_every": 1}

        def stopped(report: StepReport, stop: int | None = stop) -> None:
            if report.step == stop:
                raise KeyboardInterrupt

        trainee, loss = Trainee(scores_of(own, [0, 3], ONE, epochs=2, rows=8)), load_preset("dpo", beta=0.1)
        given = examples, loss, optimisation(**settings)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                train(trainee, *given, seed=0, files=files, on_step=stopped)
            fresh = policy.with_network(copy.deepcopy(policy.network))
            trainee = Trainee(scores_of(fresh, [0, 3], ONE, epochs=2, rows=8))
        train(trainee, *given, seed=0, files=files)
        found.append(weights(trainee.model))
    assert torch.equal(found[0], found[1])


def test_several_passes_change_the_gradient_by_rounding_alone(policy: ImagePolicy) -> None:
    found = []
    for size in (4, 1):
        own = policy.with_network(copy.deepcopy(policy.network))
        scores = scores_of(own, [0, 3], ONE)
        _, steps = run(scores, with_stored(scores, image_pairs(ONE)), micro_batch_size=size, max_steps=2)
        found.append(steps[0].grad_norm)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_labels_raise_what_they_ask_for_and_swapped_ones_lower_it(tmp_path: Path) -> None:
    """From a start model that has learned bluish and other images, by the same loop."""
    start = load_image_policy(unconditional(tmp_path / "policy"))
    texts = [Example.text(f"{row}", prompt_of_draws(0, f"{row}", 0), image_ids(row, 40)) for row in range(2 * PAIRS)]
    scores = scores_of(start, [None], ONE, epochs=40, rows=2 * PAIRS)
    told = {"batch_size": 2 * PAIRS, "micro_batch_size": 2 * PAIRS, "epochs": 40}
    train(Trainee(scores), texts, load_preset("sft"), optimisation(learning_rate=5e-3, **told), seed=0)

    def blueness(policy: ImagePolicy) -> float:
        engine = DiffusionEngine(policy, DiffusionSettings(steps=5, batch=32))
        images = torch.stack([one.latents for one in engine.sample([ImageRequest(None, n) for n in range(32)])])
        return float((images[:, 2] - images[:, :2].mean(1)).mean())

    found = []
    for swapped in (False, True):
        own = start.with_network(copy.deepcopy(start.network))
        scores = scores_of(own, [None], ONE, epochs=10, rows=2 * PAIRS)
        examples = with_stored(scores, image_pairs(ONE, epochs=10, swapped=swapped))
        run(scores, examples, batch_size=PAIRS, micro_batch_size=PAIRS, epochs=10, learning_rate=3e-4)
        found.append(blueness(own) - blueness(start))
    assert found[0] > 0.1
    assert found[1] < -0.1


@pytest.mark.parametrize("preset", ["dpo", "ipo", "rso_hinge", "cal_dpo", "dpop", "focalpo", "exo", "simpo", "cdpo"])
def test_losses_are_used_as_they_are(preset: str, policy: ImagePolicy) -> None:
    scores = scores_of(policy, [0, 3], ONE, rows=8)
    loss = load_preset(preset)
    before = weights(scores)
    _, steps = run(scores, with_stored(scores, image_pairs(ONE)), loss=loss, max_steps=1)
    assert math.isfinite(steps[0].loss) and not torch.equal(weights(scores), before)


def test_an_example_of_one_epoch_cannot_be_trained_for_two(policy: ImagePolicy) -> None:
    scores = scores_of(policy, [0, 3], ONE, epochs=1)
    with pytest.raises(ValueError, match="fewer draws than 1 in each of 2 epochs"):
        run(scores, with_stored(scores, image_pairs(ONE)), epochs=2, batch_size=8)


def first_gradient(policy: ImagePolicy, score: ImageScore) -> torch.Tensor:
    """Of the first step, as the run takes it."""
    own = policy.with_network(copy.deepcopy(policy.network))
    scores = scores_of(own, [0, 3], score)
    batch = collate(with_stored(scores, image_pairs(score)), seed=0)
    facts = scores(batch.ids, batch.mask)
    loss = load_preset("dpo", beta=0.1)(batch.loss_batch(facts)).per_pair.sum()
    guard = guard_of(scores, Accelerator(cpu=True))
    if guard is None:
        loss.backward()
    else:
        guard.backward(loss, facts.policy, batch.block(1))
        guard.settle()
    return torch.cat([p.grad.flatten() for p in own.network.parameters() if p.grad is not None])


def test_a_loser_of_no_weight_leaves_the_winners_gradient_and_half_is_in_between(policy: ImagePolicy) -> None:
    whole, half, none = (
        first_gradient(policy, ImageScore(loser=None if weight == 1 else WeighedLoser(weight=weight)))
        for weight in (1, 0.5, 0)
    )
    assert torch.allclose(half, (whole + none) / 2, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))
    assert float((whole - none).norm() / none.norm()) > 0.1


def test_a_safe_loser_leaves_the_winner_its_share_of_progress(policy: ImagePolicy) -> None:
    """To first order, the winner's error falls by at least mu of what it would fall by alone."""
    winner = first_gradient(policy, ImageScore(loser=WeighedLoser(weight=0)))
    whole = first_gradient(policy, ImageScore())
    loser = whole - winner
    assert float(winner @ loser) < 0, "the two oppose each other"
    for mu in (0.5, 0.9):
        scale = min(1.0, (1 - mu) * float(winner @ winner) / -float(winner @ loser))
        assert scale < 1
        found = first_gradient(policy, ImageScore(loser=SafeLoser(mu=mu)))
        expected = winner + scale * loser
        assert float((found - expected).norm() / expected.norm()) < 1e-3
        assert float(found @ winner) == pytest.approx(mu * float(winner @ winner), rel=1e-2)


def test_a_run_with_a_safe_loser_trains_and_several_passes_are_one_step(policy: ImagePolicy) -> None:
    found = []
    score = ImageScore(loser=SafeLoser(mu=0.9))
    for size in (4, 1):
        own = policy.with_network(copy.deepcopy(policy.network))
        scores = scores_of(own, [0, 3], score)
        _, steps = run(scores, with_stored(scores, image_pairs(score)), micro_batch_size=size, max_steps=1)
        found.append(steps[0].grad_norm)
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    plain = policy.with_network(copy.deepcopy(policy.network))
    scores = scores_of(plain, [0, 3], ONE)
    _, steps = run(scores, with_stored(scores, image_pairs(ONE)), max_steps=1)
    assert steps[0].grad_norm != pytest.approx(found[0], rel=1e-2)
