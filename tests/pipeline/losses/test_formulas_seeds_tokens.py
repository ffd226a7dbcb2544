"""The seeds' priors, dispersions and token weights, written out token by token against their presets, in float64."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses import PairBatch, load_preset
from tests.support.loss_batches import Pair, Response, assert_same, pairs_of, random_pairs

Formula = Callable[..., Tensor]


def logistic(z: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(-z))


def mi_dpo(x: Pair, beta: float = 0.1, penalty: float = 0.01) -> Tensor:
    """log ζ = log π_ref + what the head adds; the head's mean square is penalised."""
    w, v = ((y.p - y.q - y.of("prior")).sum() for y in (x.w, x.v))
    sizes = sum((y.of("prior") ** 2).sum() / y.n for y in (x.w, x.v))
    return logistic(beta * (w - v)) + penalty * sizes


def mi_dpo_length(x: Pair, beta: float, prior: dict[str, Any]) -> Tensor:
    """ζ ∝ π_ref e^(−α|y|): R-DPO with its α equal to β α."""
    return logistic(beta * (x.d + prior["alpha"] * (x.w.n - x.v.n)))


def mi_dpo_given(x: Pair, beta: float, prior: str) -> Tensor:
    assert prior == "given"
    w, v = (y.p.sum() - y.of("prior").detach().sum() for y in (x.w, x.v))
    return logistic(beta * (w - v))


def mi_dpo_none(x: Pair, beta: float, prior: str) -> Tensor:
    assert prior == "none"
    return logistic(beta * (x.w.p.sum() - x.v.p.sum()))


def mi_dpo_mixture(x: Pair, beta: float, prior: dict[str, Any]) -> Tensor:
    """ζ = Σ_k v_k π_k over whole responses."""
    mixed = [sum(v * ref.sum().exp() for v, ref in zip(prior["weights"], y.refs, strict=True)) for y in (x.w, x.v)]
    w, v = (y.p.sum() - torch.log(zeta) for y, zeta in zip((x.w, x.v), mixed, strict=True))
    return logistic(beta * (w - v))


def mi_dpo_geometric(x: Pair, beta: float, prior: dict[str, Any]) -> Tensor:
    """log ζ = Σ_k v_k log π_k."""
    w, v = (y.p.sum() - sum(v * ref.sum() for v, ref in zip(prior["weights"], y.refs, strict=True)) for y in (x.w, x.v))
    return logistic(beta * (w - v))


def tdpo1(x: Pair, beta: float = 0.1) -> Tensor:
    return logistic(beta * (x.d - (x.v.of("kl").sum() - x.w.of("kl").sum())))


def tdpo2(x: Pair, beta: float = 0.1, kl: float = 0.5) -> Tensor:
    return logistic(beta * (x.d - kl * (x.v.of("kl").sum() - x.w.of("kl").sum().detach())))


def masked_tdpo(x: Pair, beta: float, ratio_mask: str, kl_mask: str) -> Tensor:
    u = [(y.of(ratio_mask) * (y.p - y.q)).sum() for y in (x.w, x.v)]
    d = [(y.of(kl_mask) * y.of("kl")).sum() for y in (x.w, x.v)]
    return logistic(beta * ((u[0] - u[1]) - (d[1] - d[0])))


def sparsepo(x: Pair, beta: float = 0.1, l1_ratio: float = 0.0, l1_kl: float = 0.0) -> Tensor:
    """One mask for both; its two penalties are halved."""
    sizes = sum(y.of("weights").abs().mean() for y in (x.w, x.v))
    return masked_tdpo(x, beta, "weights", "weights") + (l1_ratio / 2 + l1_kl / 2) * sizes


def sparsepo_independent(x: Pair, beta: float, masks: str, l1_ratio: float, l1_kl: float) -> Tensor:
    assert masks == "independent"
    u, d = (sum(y.of(name).abs().mean() for y in (x.w, x.v)) for name in ("weights", "kl_weights"))
    return masked_tdpo(x, beta, "weights", "kl_weights") + l1_ratio * u + l1_kl * d


def mapo(x: Pair, beta: float = 0.1) -> Tensor:
    return masked_tdpo(x, beta, "weights", "weights")


def mallows_theta(x: Pair, beta: float = 0.1) -> Tensor:
    return logistic(beta * x.of("dispersion") * x.d)


def rainbowpo(x: Pair, beta: float = 10.0, home: float = 0.1, weight: float = 0.25) -> Tensor:
    ours, theirs = x.w.p.mean() - x.v.p.mean(), x.w.q.mean() - x.v.q.mean()
    return logistic(beta * x.of("dispersion") * (ours - weight * theirs - (1 - weight) * home))


def d2po_decay(x: Pair, beta: float = 0.1, gamma: float = 0.98, first: int = 0) -> Tensor:
    w, v = (torch.stack([gamma ** (t + first) * (y.p[t] - y.q[t]) for t in range(y.n)]) for y in (x.w, x.v))
    return logistic(beta * (w.sum() - v.sum()))


def bmc(x: Pair, beta: float = 0.01, delta: float = 2.0) -> Tensor:
    def weighed(y: Response) -> Tensor:
        edited, total = y.of("edited"), torch.zeros((), dtype=torch.float64)
        for t in range(y.n):
            weight = 1.0 + (min(math.exp(-y.p[t].item()), delta) if edited[t] else 0.0)
            total = total + weight * (y.p[t] - y.q[t])
        return total

    return logistic(beta * (weighed(x.w) - weighed(x.v)))


def apo_accelerated(x: Pair, beta: float = 0.1, alpha: float = 0.3) -> Tensor:
    w, v = (y.p.sum() - ((1 + alpha) * y.refs[0].sum() - alpha * y.refs[1].sum()) for y in (x.w, x.v))
    return logistic(beta * (w - v))


CASES: list[tuple[str, Formula, dict[str, Any]]] = [
    ("mi_dpo", mi_dpo, {"beta": 0.6, "penalty": 0.4}),
    ("tdpo1", tdpo1, {"beta": 0.6}),
    ("tdpo2", tdpo2, {"beta": 0.6, "kl": 0.8}),
    ("mallows_theta", mallows_theta, {"beta": 0.6}),
    ("rainbowpo", rainbowpo, {"beta": 2.0, "home": 0.4, "prior.weight": 0.7}),
    ("d2po_decay", d2po_decay, {"beta": 0.6, "gamma": 0.5, "first": 1}),
    ("bmc", bmc, {"beta": 0.6, "delta": 4.0}),
    ("apo_accelerated", apo_accelerated, {"beta": 0.6, "alpha": 0.8}),
    ("mapo", mapo, {"beta": 0.6}),
    ("sparsepo", sparsepo, {"beta": 0.6, "l1_ratio": 0.3, "l1_kl": 0.2}),
]
# Other settings of the same presets, where the default has another formula.
VARIANTS: list[tuple[str, Formula, dict[str, Any]]] = [
    ("mi_dpo", mi_dpo_length, {"beta": 0.6, "prior": {"kind": "length", "alpha": 0.3}}),
    ("mi_dpo", mi_dpo_given, {"beta": 0.6, "prior": "given"}),
    ("mi_dpo", mi_dpo_none, {"beta": 0.6, "prior": "none"}),
    ("mi_dpo", mi_dpo_mixture, {"beta": 0.6, "prior": {"kind": "mixture", "weights": [0.3, 0.7]}}),
    (
        "mi_dpo",
        mi_dpo_geometric,
        {"beta": 0.6, "prior": {"kind": "mixture", "mean": "geometric", "weights": [0.3, 0.7]}},
    ),
    (
        "sparsepo",
        sparsepo_independent,
        {"beta": 0.6, "masks": "independent", "l1_ratio": 0.3, "l1_kl": 0.2},
    ),
]


def one_mask(batch: PairBatch) -> PairBatch:
    assert batch.rejected is not None
    return replace(
        batch, chosen=replace(batch.chosen, kl_weights=None), rejected=replace(batch.rejected, kl_weights=None)
    )


def check(preset: str, formula: Formula, settings: dict[str, Any], batch: PairBatch) -> None:
    arguments = {path.rpartition(".")[2]: value for path, value in settings.items()}
    expected = torch.stack([formula(pair, **arguments) for pair in pairs_of(batch)])
    assert_same(load_preset(preset, **settings)(batch).per_pair, expected, batch)


def batch_of(preset: str, settings: dict[str, Any], seed: int) -> PairBatch:
    loss = load_preset(preset, **settings)
    batch = random_pairs(seed, references=max(loss.needs.references, 1))
    return batch if "kl_weights" in loss.needs else one_mask(batch)


@pytest.mark.parametrize(("preset", "formula", "settings"), CASES, ids=[name for name, _, _ in CASES])
def test_value_and_gradient_are_the_formula(preset: str, formula: Formula, settings: dict[str, Any]) -> None:
    check(preset, formula, {}, batch_of(preset, {}, seed=1))
    check(preset, formula, settings, batch_of(preset, settings, seed=2))


@pytest.mark.parametrize(
    ("preset", "formula", "settings"), VARIANTS, ids=[formula.__name__ for _, formula, _ in VARIANTS]
)
def test_variants(preset: str, formula: Formula, settings: dict[str, Any]) -> None:
    check(preset, formula, settings, batch_of(preset, settings, seed=3))


@pytest.mark.parametrize("scale", [1.0, 3.4])
def test_dispersion_of_entropies_is_the_published_estimate(scale: float) -> None:
    """d = −φ* log of the mean, over both responses, of the reference's mean token entropy over log V."""
    beta, vocabulary = 0.6, 50
    batch = replace(random_pairs(7), dispersion=None)
    rows = []
    for x in pairs_of(batch):
        entropy = (x.w.of("ref_entropy").mean() + x.v.of("ref_entropy").mean()) / 2 / math.log(vocabulary)
        rows.append(logistic(beta * -scale * torch.log(entropy) * x.d))
    settings = {"dispersion": {"kind": "entropy", "scale": scale, "vocab_size": vocabulary}}
    assert_same(load_preset("mallows_theta", beta=beta, **settings)(batch).per_pair, torch.stack(rows), batch)


@pytest.mark.parametrize(
    "preset",
    ["mi_dpo", "tdpo1", "tdpo2", "mapo", "mallows_theta", "d2po_decay", "bmc", "sampo", "apo_accelerated", "mrpo"],
)
def test_value_where_policy_and_reference_agree(preset: str) -> None:
    batch = random_pairs(4, references=2, at_reference=True)
    if preset == "mi_dpo":
        assert batch.rejected is not None
        nothing = [torch.zeros_like(side.policy) for side in (batch.chosen, batch.rejected)]
        batch = replace(
            batch,
            chosen=replace(batch.chosen, prior=nothing[0]),
            rejected=replace(batch.rejected, prior=nothing[1]),
        )
    torch.testing.assert_close(load_preset(preset)(batch).per_pair, torch.full((6,), math.log(2), dtype=torch.float64))


def test_the_newest_of_two_checkpoints_is_the_first_reference() -> None:
    batch = random_pairs(8, references=2)
    newest = random_pairs(8, references=2)
    assert newest.rejected is not None and newest.chosen.reference is not None
    assert newest.rejected.reference is not None
    alone = replace(
        newest,
        chosen=replace(newest.chosen, reference=newest.chosen.reference[0]),
        rejected=replace(newest.rejected, reference=newest.rejected.reference[0]),
    )
    ours = load_preset("apo_accelerated", alpha=0.0)(batch).per_pair
    torch.testing.assert_close(ours, load_preset("dpo")(alone).per_pair)
