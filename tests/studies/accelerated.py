"""Accelerated preference optimization (arXiv:2410.06293): a reference extrapolated from the last two policies.

1. With exact rounds (the minimum of the production loss over all pairs, true labels) round t adds (1 − α^t)/(1 − α)
   times the tilt of one round of DPO, so the tilt a round tends to 1/(1 − α).
2. So a larger α is ahead from round 2 on.
3. Rounds on few sampled pairs: momentum multiplies noise as well; from which α on does it cost more than it gives?

    python -m tests.studies.accelerated --record
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.losses import Loss, load_preset
from tests.benchmarks.recorded_runs import table
from tests.studies.study_report import Claim, Panel, Report, curve, main, mean_error, spread
from tests.studies.table_policy import (
    World,
    bandit_pair,
    bandit_table,
    compared,
    descend,
    every_pair,
    many_worlds,
    minimise,
    of_bandit,
    pair_batch,
    random_world,
    trained_table,
)

ALPHAS = (0.0, 0.3, 0.5, 0.7)
NOISY = (*ALPHAS, 0.9)
ROUNDS, SAMPLED_ROUNDS = 12, 8
BETA = 8.0  # a round tilts by r/β, so that twelve do not end at the best answer
SAMPLED_BETA, COMPARISONS = 2.0, (8, 32, 128)
TRAINED_COMPARISONS, TRAINED_ROUNDS = 32, 3
Runs = dict[float, list[list[float]]]


def exact_round(world: World, last: Tensor, before: Tensor, alpha: float) -> Tensor:
    """The minimum of the loss over all pairs, given the last two policies."""
    loss = load_preset("apo_accelerated", beta=BETA, alpha=alpha)
    x, first, second = every_pair(*world.rewards.shape)
    labels = world.preference()[x, first, second]
    return minimise(
        last, lambda p: loss(pair_batch(p, [last, before], x, first, second, soft_label=labels)).per_pair.sum()
    )


def accumulated(world: World, policy: Tensor) -> float:
    """How often the tilt of one round of DPO, r/β, is in the policy."""
    ratio, tilt = policy - world.reference, world.rewards / BETA
    ratio, tilt = (values - values.mean(1, keepdim=True) for values in (ratio, tilt))
    return float((ratio * tilt).sum() / tilt.square().sum())


def exact_rounds(seed: int, alpha: float, rounds: int = ROUNDS) -> tuple[list[float], list[float]]:
    """Accumulated tilt, and expected reward, after each round."""
    world = random_world(seed, prompts=1, answers=5)
    before = last = world.reference
    tilts, rewards = [], []
    for _ in range(rounds):
        before, last = last, exact_round(world, last, before, alpha)
        tilts.append(accumulated(world, last))
        rewards.append(float(world.reward(last).mean()))
    return tilts, rewards


def one_round(loss: Loss, references: list[Tensor], x: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """The last policy after 60 steps on all comparisons, each prompt's as if alone."""
    (policy,) = descend(
        references[0], lambda policy: loss(pair_batch(policy, references, x, chosen, rejected)).per_pair.sum(), [60]
    )
    return policy


def sampled_rounds(seeds: int, alpha: float, count: int, rounds: int = SAMPLED_ROUNDS) -> list[list[float]]:
    """[seed][round] expected reward after each round of ``count`` comparisons of the policy's own answers."""
    world, draw = many_worlds(range(seeds), prompts=1, answers=5), torch.Generator().manual_seed(500)
    loss = load_preset("apo_accelerated", beta=SAMPLED_BETA, alpha=alpha)
    before = last = world.reference
    found = []
    for _ in range(rounds):
        told = compared(world, last, count, draw)
        policy = one_round(loss, [last, before], *told)
        before, last = last, policy
        found.append(world.reward(last).tolist())
    return [list(of_seed) for of_seed in zip(*found, strict=True)]


def trained_rounds(seed: int, alpha: float, rounds: int = TRAINED_ROUNDS) -> list[float]:
    """The same for one seed by the production trainer."""
    world, draw = random_world(seed, prompts=1, answers=5), torch.Generator().manual_seed(900 + seed)
    loss = load_preset("apo_accelerated", beta=SAMPLED_BETA, alpha=alpha)
    before = last = bandit_table(world.reference)
    found = []
    for number in range(rounds):
        _, chosen, rejected = compared(world, of_bandit(last, 1), TRAINED_COMPARISONS, draw)
        told = zip(chosen.tolist(), rejected.tolist(), strict=True)
        pairs = [bandit_pair(f"{number}-{n}", 1, 0, one, other) for n, (one, other) in enumerate(told)]
        model = bandit_table(of_bandit(last, 1))
        settings = {"epochs": 20, "batch_size": len(pairs), "learning_rate": 0.05}
        trained_table(model, pairs, loss, [last, before], seed=seed, **settings)
        before, last = last, model
        found.append(float(world.reward(of_bandit(last, 1)).mean()))
    return found


def study(seeds: Sequence[int], times: int = 12) -> Report:
    """``times`` as many seeds for sampled rounds, which are noisy."""
    both = {alpha: [exact_rounds(seed, alpha) for seed in seeds] for alpha in ALPHAS}
    tilts: Runs = {alpha: [tilt for tilt, _ in runs] for alpha, runs in both.items()}
    rewards: Runs = {alpha: [reward for _, reward in runs] for alpha, runs in both.items()}
    many = times * len(seeds)
    noisy = {count: {alpha: sampled_rounds(many, alpha, count) for alpha in NOISY} for count in COMPARISONS}
    trained: Runs = {alpha: [trained_rounds(seed, alpha) for seed in seeds] for alpha in (0.0, 0.7)}
    a_round = {alpha: [[t / (n + 1) for n, t in enumerate(run)] for run in runs] for alpha, runs in tilts.items()}
    tables = {f"Accumulated tilt a round after {ROUNDS} exact rounds, in units of r/β:": _tilt_table(tilts)}
    for count, runs in noisy.items():
        tables[f"Expected reward, rounds of {count} comparisons of own answers, {many} seeds:"] = _noisy_table(runs)
    tables[f"The same, {TRAINED_COMPARISONS} comparisons, production trainer:"] = _noisy_table(trained)
    panels = [_panel("exact rounds", "tilt a round, in r/β", a_round)]
    panels += [_panel(f"{count} comparisons a round", "expected reward", noisy[count]) for count in COMPARISONS[:2]]
    sentences = [noise_sentence(count, runs) for count, runs in noisy.items()]
    return Report([*tilt_claims(tilts), order_claim(rewards)], tables, panels, sentences)


def promised(alpha: float, rounds: int = ROUNDS) -> float:
    """Mean over rounds of (1 − α^t)/(1 − α)."""
    return sum((1 - alpha**t) / (1 - alpha) for t in range(1, rounds + 1)) / rounds


def tilt_claims(tilts: Mapping[float, Sequence[Sequence[float]]]) -> list[Claim]:
    claims = []
    for alpha, runs in tilts.items():
        if alpha:
            a_round = [run[-1] / len(run) for run in runs]
            wanted = promised(alpha, len(runs[0]))
            held = max(abs(one / wanted - 1) for one in a_round) < 0.02
            claims.append(Claim(f"α = {alpha}: tilt a round", f"{wanted:.2f} within 2 %", spread(a_round), held))
    return claims


def order_claim(rewards: Mapping[float, Sequence[Sequence[float]]]) -> Claim:
    """In every seed, at every round from the second, a larger α has more reward."""
    smallest = min(
        more[k] - less[k]
        for low, high in pairwise(ALPHAS)
        for less, more in zip(rewards[low], rewards[high], strict=True)
        for k in range(1, len(less))
    )
    said = f"smallest lead {smallest:.1e}"
    return Claim("more reward for larger α from round 2 on", "every seed and round", said, smallest > 0)


def noise_sentence(count: int, noisy: Mapping[float, Sequence[Sequence[float]]]) -> str:
    """Whether a larger α still gains at the last sampled round, seed by seed."""
    said = []
    for low, high in pairwise(NOISY):
        gains = [more[-1] - less[-1] for less, more in zip(noisy[low], noisy[high], strict=True)]
        mean, error = mean_error(gains)
        kind = "gains" if mean > 2 * error else "loses" if mean < -2 * error else "changes nothing surely:"
        said.append(f"from α = {low} to {high} it {kind} {spread(gains, '+.3f')}")
    return f"Reward after {SAMPLED_ROUNDS} rounds of {count} comparisons: " + "; ".join(said) + "."


def _tilt_table(tilts: Mapping[float, Sequence[Sequence[float]]]) -> str:
    rows = [
        [f"{a}", f"{promised(a):.3f}", spread([run[-1] / len(run) for run in runs], ".4f"), f"{1 / (1 - a):.3f}"]
        for a, runs in tilts.items()
    ]
    return table(["α", "promised", "measured", "limit 1/(1 − α)"], rows)


def _noisy_table(noisy: Mapping[float, Sequence[Sequence[float]]]) -> str:
    rounds = range(len(next(iter(noisy.values()))[0]))
    rows = [[f"{alpha}", *(spread([run[k] for run in runs]) for k in rounds)] for alpha, runs in noisy.items()]
    return table(["α", *(f"round {k + 1}" for k in rounds)], rows)


def _panel(title: str, up: str, runs: Mapping[float, Sequence[Sequence[float]]]) -> Panel:
    rounds = range(1, 1 + len(next(iter(runs.values()))[0]))
    return Panel(title, "round", up, {f"α = {alpha}": curve(list(rounds), of) for alpha, of in runs.items()})


if __name__ == "__main__":
    main(study, "accelerated", "accelerated preference optimization", seeds=5)
