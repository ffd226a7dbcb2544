"""No preset is DPO under another name: the gradient differs, and in the way that its formula says."""

from dataclasses import replace

import pytest
import torch

from pipeline.losses import Loss, PairBatch, load_preset, preset_names
from tests.support.loss_batches import random_pairs, value_and_gradient

# The discriminator is what is new about D2PO; its policy is trained by plain DPO.
SAME_LOSS = {"dpo", "d2po_discriminator"}
OTHERS = [name for name in preset_names() if name not in SAME_LOSS]

# The gradient by the log-probabilities of one response's tokens is not the same for all of them.
BY_TOKEN = {"d2po_decay", "bmc", "sampo", "ld_dpo", "tis_dpo", "sparsepo", "mapo", "apa_token"}
# It stays the same when the reference is another one.
REFERENCE_FREE = {"simpo", "slic", "orpo", "cpo", "alphapo", "simper", "rrhf", "sft", "margin_po"}
# It shrinks with the length of the response: the score is a mean, or a term of the loss is.
BY_LENGTH = {
    "simpo",
    "dpo_norm",
    "mpo",
    "orpo",
    "alphapo",
    "alpha_dpo",
    "simper",
    "rainbowpo",
    "rrhf",
    "sft",
    "cpo",
    "dpo_sft",
    "apa_token",
    # It bends a sum of likelihoods, which is not 0 without a reference.
    "margin_po",
}


def gradient(loss: Loss, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """By chosen and by rejected tokens, 0 outside the responses."""
    assert batch.rejected is not None
    leaves = (batch.chosen.policy, batch.rejected.policy)
    found = torch.autograd.grad(loss(batch).per_pair.sum(), leaves, allow_unused=True)
    chosen, rejected = (torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True))
    return chosen.where(batch.chosen.mask, 0), rejected.where(batch.rejected.mask, 0)


def flat(loss: Loss, batch: PairBatch) -> torch.Tensor:
    """By everything that a gradient reaches: calibration responses and critics too."""
    slopes = value_and_gradient(loss(batch).per_pair, batch)[1]
    return torch.cat([slope.nan_to_num().flatten() for slope in slopes.values()])


@pytest.mark.parametrize("name", OTHERS)
def test_the_gradient_is_not_a_multiple_of_dpos(name: str) -> None:
    batch = random_pairs(3, references=2, spread=1.5)
    loss = load_preset(name)
    dpo = load_preset("dpo", beta=min(loss.composition.beta, 1.0))
    ours, theirs = flat(loss, batch), flat(dpo, batch)
    # XPO's bonus has a weight of 1e-5.
    assert ours.norm() > 0 and (ours / ours.norm() - theirs / theirs.norm()).abs().max() > 1e-7


@pytest.mark.parametrize("name", preset_names())
def test_tokens_count_differently_where_the_formula_weighs_them(name: str) -> None:
    batch = random_pairs(3, references=2)
    differs = False
    for side, slopes in zip((batch.chosen, batch.rejected), gradient(load_preset(name), batch), strict=True):
        assert side is not None
        for row in range(len(slopes)):
            tokens = slopes[row][side.mask[row]]
            differs |= bool((tokens - tokens[0]).abs().max() > 1e-9 * tokens.abs().max())
    assert differs == (name in BY_TOKEN)


@pytest.mark.parametrize("name", preset_names())
def test_another_reference_changes_the_gradient_where_there_is_one(name: str) -> None:
    batch = random_pairs(3, references=2)
    assert batch.rejected is not None and batch.rejected.reference is not None
    before = flat(load_preset(name), batch)
    # Of the rejected side alone, and far enough for the kink of a hinge: what both sides share cancels.
    batch.rejected.reference.mul_(-9.0)
    after = flat(load_preset(name), batch)
    assert torch.equal(before, after) == (name in REFERENCE_FREE)


@pytest.mark.parametrize("name", preset_names())
def test_length_divides_the_gradient_where_the_score_is_a_mean(name: str) -> None:
    """A lone pair whose scores are 0 whatever its length: only a division by the length can tell."""
    per_token = []
    for length in (1, 4):
        batch = alike(length)
        per_token.append(gradient(load_preset(name, **single(name)), batch)[0].sum(1) / length)
    assert (bool((per_token[0] - per_token[1]).abs().max() > 1e-6)) == (name in BY_LENGTH)


def alike(length: int) -> PairBatch:
    """A pair of two equal responses, of which everything is known and nothing depends on the length."""
    batch = random_pairs(0, [length], [length], references=2, at_reference=True)
    assert batch.rejected is not None
    for side in (batch.chosen, batch.rejected):
        assert side.reference is not None and side.weights is not None and side.edited is not None
        assert side.prior is not None and side.collision is not None and side.kl_weights is not None
        side.policy.data.fill_(-1.0)
        side.reference.fill_(-1.0)
        side.collision.fill_(0.5)
        side.edited.fill_(False)
        assert side.advantage is not None
        side.advantage.fill_(0.3)
        for learned, value in ((side.weights, 1.0), (side.kl_weights, 1.0), (side.prior, 0.0)):
            learned.data.fill_(value)
    numbers = {
        "reward_chosen": 1.0,
        "reward_rejected": -0.5,
        "win_probability": 0.8,
        "win_probability_rejected": 0.2,
        "dispersion": 1.0,
        "value": 0.2,
    }
    return replace(batch, **{k: torch.tensor([v], dtype=torch.float64) for k, v in numbers.items()})


def single(name: str) -> dict[str, object]:
    """Decay and the like apart, which also tell lengths apart."""
    return {"gamma": 1.0} if name == "d2po_decay" else {}
