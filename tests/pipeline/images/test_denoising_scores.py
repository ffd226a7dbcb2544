"""Scores of draws: their unit, their mean over draws, and what they are drawn from."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import softplus

from pipeline.config.images.scoring import ImageScore
from pipeline.errors import UserError
from pipeline.images.denoising_scores import DenoisingScores, ImageTable, image_ids, prompt_of_draws
from pipeline.images.draws import draw_rows
from pipeline.images.image_folder import load_image_policy
from pipeline.images.image_policy import ImagePolicy
from pipeline.losses import PairBatch, Side, load_preset
from pipeline.training.batches.collate import collate
from pipeline.training.batches.examples import Example
from pipeline.training.batches.image_epochs import of_epoch
from tests.support.image_training import image_pairs, image_table, scores_of
from tests.support.tiny_diffusion import KINDS, PROMPTS, class_conditional, text_conditioned

NATS, MEAN_ERROR = ImageScore(), ImageScore(score_scale="mean_error")


@pytest.fixture
def policy(tmp_path: Path) -> ImagePolicy:
    return load_image_policy(class_conditional(tmp_path / "policy"))


def of_examples(scores: DenoisingScores, examples: list[Example]) -> torch.Tensor:
    """[R, K] scores: all chosen images, then all rejected ones."""
    batch = collate(examples)
    with torch.no_grad():
        return scores(batch.ids, batch.mask).policy[:, 2:]


def error(policy: ImagePolicy, table: ImageTable, key: tuple[int, int], image: int, condition: int) -> float:
    """The mean squared error of the noise by its definition, for a policy that predicts noise."""
    drawn = draw_rows([key], policy.shape, 1000, NATS)
    level = int(drawn.level[0])
    kept = policy.scheduler.alphas_cumprod[level]
    noisy = kept.sqrt() * table.latents[image] + (1 - kept).sqrt() * drawn.noise[0]
    with torch.no_grad():
        told = policy.network(noisy[None], torch.tensor([level]), torch.tensor([condition])).sample[0]
    return float((told - drawn.noise[0]).square().mean())


def test_a_score_is_minus_information_times_dimensions_times_the_error(policy: ImagePolicy) -> None:
    table = image_table(policy, [0, 3])
    examples = image_pairs(NATS, count=2)
    found = of_examples(DenoisingScores(policy, table, NATS), examples)
    halved = of_examples(DenoisingScores(policy, table, MEAN_ERROR), examples)
    for row, (example, side) in enumerate([(e, k) for k in range(2) for e in examples]):
        image = example.responses[side].ids[0]
        expected = error(policy, table, (example.prompt_ids[0], 0), image, (0, 3)[example.prompt_ids[1]])
        assert float(found[row, 0]) == pytest.approx(-policy.schedule.information * 192 * expected, rel=1e-4)
        assert float(halved[row, 0]) == pytest.approx(-expected / 2, rel=1e-4)


def test_a_published_beta_is_typed_in_as_it_is(policy: ImagePolicy) -> None:
    """The authors' loss, softplus of beta/2 times the differences of errors, and the same in nats."""
    table, examples, beta_code = image_table(policy, [0, 3]), image_pairs(NATS, count=2), 5000.0
    raw = torch.tensor(
        [
            [
                error(policy, table, (e.prompt_ids[0], 0), e.responses[side].ids[0], (0, 3)[e.prompt_ids[1]])
                for e in examples
            ]
            for side in range(2)
        ]
    )
    # Reference errors that differ on the winner's side alone.
    reference = raw + torch.tensor([[1e-4, -2e-4], [0.0, 0.0]])
    gaps = raw - reference
    expected = softplus(beta_code / 2 * (gaps[0] - gaps[1]))
    beta_nats = beta_code / (2 * 192 * policy.schedule.information)
    mask = torch.ones(2, 1, dtype=torch.bool)
    for score, beta, scale in ((MEAN_ERROR, beta_code, 0.5), (NATS, beta_nats, policy.schedule.information * 192)):
        found = of_examples(DenoisingScores(policy, table, score), examples)
        sides = [
            Side(policy=found[part], mask=mask, reference=-scale * reference[side][:, None])
            for side, part in enumerate((slice(2), slice(2, 4)))
        ]
        loss = load_preset("dpo", beta=beta)(PairBatch(chosen=sides[0], rejected=sides[1])).per_pair
        assert loss.tolist() == pytest.approx(expected.tolist(), abs=5e-3)
    assert abs(float(expected[0] - expected[1])) > 0.2


def test_several_draws_are_averaged(policy: ImagePolicy) -> None:
    several = ImageScore(draws=4)
    table, (example,) = image_table(policy, [0, 3]), image_pairs(several, count=1)
    found = of_examples(DenoisingScores(policy, table, several), [example])
    seed, condition = example.prompt_ids[0], (0, 3)[example.prompt_ids[1]]
    for side, row in enumerate(found):
        image = example.responses[side].ids[0] // 4
        errors = [error(policy, table, (seed, k), image, condition) for k in range(4)]
        mean = sum(errors) / 4
        assert float(row.sum()) == pytest.approx(-policy.schedule.information * 192 * mean, rel=1e-4)
        assert len(set(errors)) == 4


def test_both_sides_have_the_same_draws_and_others_for_each_pair_epoch_seed_and_number() -> None:
    score = ImageScore(draws=2)
    keys = [
        (prompt_of_draws(seed, pair, 0)[0], number) for seed in (0, 1) for pair in ("a", "b") for number in range(2 * 2)
    ]
    drawn = draw_rows([*keys, *keys], (3, 8, 8), 1000, score)
    assert drawn.of_row.tolist() == [*range(16), *range(16)]
    assert len({tuple(noise.flatten().tolist()) for noise in drawn.noise}) == 16
    assert len(set(drawn.level.tolist())) > 12
    alone = draw_rows(keys[5:6], (3, 8, 8), 1000, score)
    assert torch.equal(alone.noise[0], drawn.noise[5]) and alone.level[0] == drawn.level[5]
    example = Example.pair("a", prompt_of_draws(0, "a", 0), image_ids(0, 4), image_ids(1, 4))
    assert [c.ids for c in of_epoch(example, 1, 2).continuations] == [(2, 3), (6, 7)]


def test_levels_are_drawn_evenly_or_from_the_middle() -> None:
    keys = [(n, 0) for n in range(2000)]
    even = draw_rows(keys, (1,), 1000, ImageScore()).level.double()
    middle = draw_rows(keys, (1,), 1000, ImageScore(timesteps="logit_normal")).level.double()
    assert float(even.mean()) == pytest.approx(500, abs=25) and float(even.std()) == pytest.approx(289, abs=15)
    # Of the logistic function of a standard normal variable.
    assert float(middle.mean()) == pytest.approx(500, abs=20) and float(middle.std()) == pytest.approx(208, abs=12)
    assert int(even.min()) >= 0 and int(even.max()) <= 999


@pytest.mark.parametrize("timesteps", ["uniform", "logit_normal"])
def test_levels_are_drawn_from_a_part_of_the_schedule(timesteps: str) -> None:
    keys = [(n, 0) for n in range(2000)]
    part = draw_rows(keys, (1,), 1000, ImageScore.model_validate({"timesteps": timesteps, "levels": (0.6, 0.9)})).level
    assert 600 <= int(part.min()) < 615 and 885 < int(part.max()) <= 899
    assert float(part.double().mean()) == pytest.approx(750, abs=6)
    one = draw_rows(keys[:9], (1,), 1000, ImageScore.model_validate({"timesteps": timesteps, "levels": (0.5, 0.5001)}))
    assert set(one.level.tolist()) == {500}


def test_the_whole_schedule_changes_neither_draws_nor_keys() -> None:
    assert "levels" not in ImageScore().identity() and "levels" in ImageScore(levels=(0.0, 0.5)).identity()
    for low, high in ((0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.5)):
        with pytest.raises(ValueError, match="levels"):
            ImageScore(levels=(low, high))


def test_the_weights_of_the_bound_multiply_each_level(policy: ImagePolicy) -> None:
    table, examples = image_table(policy, [0, 3]), image_pairs(NATS, count=3)
    flat = of_examples(DenoisingScores(policy, table, NATS), examples)
    weighted = of_examples(DenoisingScores(policy, table, ImageScore(weighting="bound")), examples)
    levels = draw_rows([(e.prompt_ids[0], 0) for e in examples], policy.shape, 1000, NATS).level
    expected = policy.schedule.bound_weights()[levels].float()
    assert torch.allclose((weighted / flat)[:, 0], expected.repeat(2), rtol=1e-4)


def test_emptied_prompts_are_those_of_the_empty_text(tmp_path: Path) -> None:
    policy = load_image_policy(text_conditioned(tmp_path / "policy"))
    often = ImageScore(empty_prompts=0.5)
    table = image_table(policy, ["a red dot", "blue"])
    assert table.null is not None
    examples = image_pairs(often, count=8)
    found = of_examples(DenoisingScores(policy, table, often), examples)
    told = of_examples(DenoisingScores(policy, table, NATS), examples)
    nothing = ImageTable(table.latents, tuple(n.expand(2, *n.shape[1:]) for n in table.null))
    untold = of_examples(DenoisingScores(policy, nothing, NATS), examples)
    emptied = draw_rows([(e.prompt_ids[0], 0) for e in examples], policy.shape, 1000, often).emptied.repeat(2)
    assert 0 < int(emptied.sum()) < 16
    assert torch.allclose(found[:, 0], torch.where(emptied, untold[:, 0], told[:, 0]), rtol=1e-5)
    assert not torch.allclose(untold, told, rtol=1e-3)
    with pytest.raises(UserError, match="empty_prompts"):
        DenoisingScores(policy, ImageTable(table.latents, table.conditions), often)


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_fixed_shape_a_score_depends_on_its_own_row_alone(kind: str, tmp_path: Path) -> None:
    policy = load_image_policy(KINDS[kind](tmp_path / kind))
    examples = image_pairs(NATS, count=7)
    scores = scores_of(policy, PROMPTS[kind], NATS, rows=8)
    whole = of_examples(scores, examples)
    backwards = of_examples(scores, examples[::-1])
    assert torch.equal(backwards[:7].flip(0), whole[:7]) and torch.equal(backwards[7:].flip(0), whole[7:])
    alone = of_examples(scores, examples[3:4])
    assert torch.equal(alone[:, 0], whole[[3, 10], 0])
    free = of_examples(scores_of(policy, PROMPTS[kind], NATS), examples)
    assert torch.allclose(free, whole, rtol=1e-4)
    # In small batches, some convolutions are cut by threads in another way.
    large, threads = scores_of(policy, PROMPTS[kind], NATS, rows=16), torch.get_num_threads()
    whole = of_examples(large, examples)
    try:
        torch.set_num_threads(2)
        assert torch.equal(of_examples(large, examples), whole)
    finally:
        torch.set_num_threads(threads)


def test_more_images_than_ids_are_refused() -> None:
    with pytest.raises(UserError, match=r"at most 2,147,483,647 in all"):
        image_ids(3_000_000, 1024)
