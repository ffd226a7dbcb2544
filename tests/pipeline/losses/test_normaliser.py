"""A prior whose normaliser is unknown: one number c(x) added to both log ζ changes no loss that is accepted."""

from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.config import Composition
from pipeline.losses import Loss, Side, load_preset, preset_names, scores
from pipeline.losses.prior import log_priors
from tests.support.loss_batches import random_groups, random_pairs

PRIORS = (
    {"kind": "length", "alpha": 0.1},
    {"kind": "mixture", "weights": [0.3, 0.7]},
    {"kind": "mixture", "mean": "geometric", "weights": [0.6, 0.6]},
    {"kind": "harmonic"},
    {"kind": "harmonic", "weights": [1.0, 2.0], "clip": None},
    {"kind": "extrapolated", "alpha": 0.3},
    {"kind": "learned"},
    {"kind": "given"},
)
# What each part may be besides what the preset says, and what a user may therefore put together.
CHANGES: tuple[dict[str, object], ...] = (
    {},
    {"aggregate": "mean"},
    {"aggregate": "power", "length_power": 0.5},
    {"weights": {"kind": "decay"}},
    {"weights": {"kind": "subset"}},
    {"weights": {"kind": "tail"}},
    {"weights": {"kind": "given"}},
    {"shape": {"kind": "alpha", "alpha": 0.25}},
    {"shape": {"kind": "divergence", "divergence": "js"}},
    {"shape": {"kind": "penalty_chosen"}},
    {"shape": {"kind": "relu_rejected"}},
    {"exponent": 2.0},
    {"dispersion": {"kind": "entropy", "scale": 1.0}},
)


def accepted() -> Iterator[tuple[str, Composition]]:
    """Every preset with every such prior, unchanged or with one of the changes in turn, where the schema takes it."""
    for number, name in enumerate(preset_names()):
        plain = load_preset(name).composition.model_dump()
        if not (plain["head"] or plain["link"]["kind"] != "none" or plain["terms"]):
            continue
        for turn, prior in enumerate(PRIORS):
            change = CHANGES[0] if (number + turn) % 3 == 0 else CHANGES[(number + turn) % len(CHANGES)]
            try:
                yield f"{name} {prior} {change}", Composition.model_validate({**plain, "prior": prior, **change})
            except ValidationError:
                continue


def shifted(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """Have every response's log ζ grow by ``by`` times the row's number plus one: the same for all of one prompt."""

    def moved(sides: tuple[Side, ...], prior: object) -> tuple[Tensor, ...]:
        found = log_priors(sides, prior)  # type: ignore[arg-type]
        rows = torch.arange(1, len(found[0]) + 1, dtype=torch.float64)
        return tuple(
            log_prior + (by * rows / side.mask.sum(-1).clamp(min=1)).unsqueeze(-1)
            for log_prior, side in zip(found, sides, strict=True)
        )

    monkeypatch.setattr(scores, "log_priors", moved)


def values(composition: Composition) -> Tensor:
    loss = Loss("any", composition)
    batch = random_groups(3, references=2) if composition.head is not None else random_pairs(3, references=2)
    return loss(batch).per_pair.detach()


def test_the_normaliser_cancels_in_every_accepted_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict(accepted())
    before = {name: values(composition) for name, composition in found.items()}
    shifted(monkeypatch, 0.7)
    for name, composition in found.items():
        torch.testing.assert_close(
            values(composition), before[name], rtol=1e-9, atol=1e-9, msg=lambda told, name=name: f"{name}: {told}"
        )
    kinds = {composition.prior.kind for composition in found.values()}
    assert kinds == {str(prior["kind"]) for prior in PRIORS} and len(found) > 120


@pytest.mark.parametrize("change", CHANGES[1:11], ids=str)
def test_what_it_does_not_cancel_in_is_refused(change: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_preset("apo_accelerated").composition
    with pytest.raises(ValidationError, match="extrapolated is not normalised, and its unknown constant cancels only"):
        Composition.model_validate({**plain.model_dump(), **change})
    # Without the refusal the number would be another.
    part = Composition.model_validate({"link": "logistic", **change})
    unchecked = plain.model_copy(update={name: part.__dict__[name] for name in change})
    before = values(unchecked)
    shifted(monkeypatch, 0.7)
    assert (values(unchecked) - before).abs().max() > 1e-3


def test_the_message_names_the_field_and_what_is_allowed() -> None:
    with pytest.raises(ValidationError) as told:
        Composition.model_validate({"link": "logistic", "prior": "harmonic", "aggregate": "mean"})
    assert "aggregate: mean: the prior harmonic is not normalised" in str(told.value)
    assert "use sum, or the prior reference or none" in str(told.value)
    for accepted_prior in ("none", "reference", {"kind": "reference", "weight": 0.25}):
        Composition.model_validate({"link": "logistic", "prior": accepted_prior, "aggregate": "mean"})
