"""Value-incentivised preference optimization (VPO, arXiv:2405.19320): pessimism for fixed data, optimism for the loop.

The gap of a policy is J* − J, with J = E r − β KL(π ‖ π_ref), whose best policy is the exact tilt.

1. Offline, pairs from a good policy: pulling towards chosen responses cuts the gap by a third or more; with pairs from
   a uniform policy, of which nothing good can be learned, by little.
2. Online, where the best answer is rare in the reference: pushing away from the reference's samples halves the regret
   (the sum of gaps over rounds) at α = 1; with the wrong sign it does not help. As in the paper pairs accumulate and
   the bonus counts once, so its weight a pair is α over their number. Where no answer is rare, it has little to gain.

    python -m tests.studies.value --record
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.losses import Loss, load_preset
from tests.benchmarks.recorded_runs import table
from tests.studies.study_report import Claim, Panel, Report, curve, main, mean_error, spread
from tests.studies.table_policy import World, compared, descend, many_worlds, pair_batch, side

BETA, ONLINE_BETA = 0.5, 0.3
PAIRS = 4
ALPHAS = (0.0, 0.1, 0.3, 1.0)
PESSIMISM = 1.0
ROUNDS, A_ROUND = 24, 2
LONG = 72  # rounds, for regret as it grows: what the paper bounds
PROMPTS, ANSWERS = 30, 8  # a seed
RARE, BEST = -4.0, 2.0  # logit and reward of the best answer
DATA = ("good", "uniform")
WORLDS = ("rare", "neutral")
Arm = tuple[float, int]
ARMS: tuple[Arm, ...] = ((0.0, 1), (0.3, 1), (1.0, 1), (1.0, -1))


def worth(world: World, policy: Tensor, beta: float) -> Tensor:
    """[X] J."""
    return world.reward(policy) - beta * world.kl(policy)


def gap(world: World, policy: Tensor, beta: float) -> Tensor:
    """[X] J* − J ≥ 0."""
    return worth(world, world.tilt(1 / beta), beta) - worth(world, policy, beta)


def by_seed(values: Tensor, seeds: int) -> list[float]:
    """Means over each seed's prompts."""
    found: list[float] = values.view(seeds, -1).mean(1).tolist()
    return found


def offline_gaps(seeds: Sequence[int], data: str, alpha: float) -> list[float]:
    """Gap of each seed after training on a few pairs a prompt from the ``data`` policy."""
    world = many_worlds(seeds, PROMPTS, ANSWERS)
    source = world.tilt(2.0) if data == "good" else torch.zeros_like(world.reference).log_softmax(1)
    x, chosen, rejected = compared(world, source, PAIRS, torch.Generator().manual_seed(1))
    loss = load_preset("vpo_offline", beta=BETA, alpha=alpha) if alpha else load_preset("dpo", beta=BETA)
    (policy,) = descend(
        world.reference,
        lambda p: loss(pair_batch(p, [world.reference], x, chosen, rejected)).per_pair.sum() / PAIRS,
        [150],
    )
    return by_seed(gap(world, policy, BETA), len(seeds))


def online_world(seeds: Sequence[int], kind: str) -> World:
    """``rare``: one answer is far better than the others, and the reference hardly ever gives it."""
    world = many_worlds(seeds, PROMPTS, ANSWERS)
    if kind == "neutral":
        return world
    reference, rewards = world.reference.clone(), 0.3 * world.rewards
    reference[:, 0], rewards[:, 0] = RARE, BEST
    return World(reference.log_softmax(1), rewards)


def online_loss(alpha: float, sign: int, pairs: int) -> Loss:
    if not alpha:
        return load_preset("dpo", beta=ONLINE_BETA)
    return load_preset("vpo_online", beta=ONLINE_BETA, alpha=alpha / pairs, sign=sign)


def online_gaps(seeds: Sequence[int], kind: str, alpha: float, sign: int, rounds: int = ROUNDS) -> list[list[float]]:
    """[seed][round] gap of the policy after each round of a few comparisons of its own answers."""
    world, draw = online_world(seeds, kind), torch.Generator().manual_seed(3)
    policy, known, found = world.reference, [], []
    for _ in range(rounds):
        told = compared(world, policy, A_ROUND, draw)
        of_reference = torch.multinomial(world.reference.exp(), A_ROUND, replacement=True, generator=draw).view(-1)
        known.append((*told, of_reference))
        loss = online_loss(alpha, sign, A_ROUND * len(known))
        policy = refitted(world, policy, loss, [torch.cat(part) for part in zip(*known, strict=True)])
        found.append(by_seed(gap(world, policy, ONLINE_BETA), len(seeds)))
    return [list(of_seed) for of_seed in zip(*found, strict=True)]


def refitted(world: World, policy: Tensor, loss: Loss, known: Sequence[Tensor]) -> Tensor:
    """The policy after 30 steps on all comparisons so far, and the reference's samples beside them."""
    x, chosen, rejected, drawn = known

    def objective(current: Tensor) -> Tensor:
        beside = side(current, [world.reference], x, drawn)
        batch = pair_batch(current, [world.reference], x, chosen, rejected, calibration=beside)
        return loss(batch).per_pair.sum()

    (after,) = descend(policy, objective, [30])
    return after


def study(seeds: Sequence[int]) -> Report:
    offline = {data: {alpha: offline_gaps(seeds, data, alpha) for alpha in ALPHAS} for data in DATA}
    online = {kind: {arm: online_gaps(seeds, kind, *arm) for arm in ARMS} for kind in WORLDS}
    regrets = {kind: {arm: regret(runs) for arm, runs in of.items()} for kind, of in online.items()}
    tables = {f"Offline gap, {PAIRS} pairs a prompt:": _offline_table(offline)}
    tables[f"Online regret over {ROUNDS} rounds of {A_ROUND} comparisons a prompt:"] = _online_table(regrets)
    panels = [_panel(f"online, {kind}", of) for kind, of in online.items()]
    claims = [*offline_claims(offline), *online_claims(regrets["rare"]), *long_claims(seeds)]
    return Report(claims, tables, panels)


def regret(runs: Sequence[Sequence[float]]) -> list[float]:
    """Sum over rounds, of each seed."""
    return [sum(run) for run in runs]


def offline_claims(offline: Mapping[str, Mapping[float, Sequence[float]]]) -> list[Claim]:
    cuts = {data: _cut(of[0.0], of[PESSIMISM]) for data, of in offline.items()}
    good, uniform = (mean_error(cuts[data])[0] for data in DATA)
    said = f"pessimism at α = {PESSIMISM:g} cuts the gap, "
    return [
        Claim(said + "pairs of a good policy", "a third or more", spread(cuts["good"]), good >= 1 / 3),
        Claim(said + "pairs of a uniform one", "little (below 0.15)", spread(cuts["uniform"]), uniform < 0.15),
    ]


def online_claims(regrets: Mapping[Arm, Sequence[float]]) -> list[Claim]:
    right, wrong = (_cut(regrets[0.0, 1], regrets[1.0, sign]) for sign in (1, -1))
    weaker = _cut(regrets[0.0, 1], regrets[0.3, 1])
    return [
        Claim("optimism at α = 1 cuts the regret", "by half", spread(right), mean_error(right)[0] >= 0.5),
        Claim("optimism at α = 0.3 cuts the regret", "by half", spread(weaker), mean_error(weaker)[0] >= 0.5),
        Claim("the wrong sign does not help", "below 0.05", spread(wrong), mean_error(wrong)[0] < 0.05),
    ]


def long_claims(seeds: Sequence[int], rounds: int = LONG) -> list[Claim]:
    """The same where the best answer is rare, over more rounds."""
    without, *bonus = (regret(online_gaps(seeds, "rare", alpha, 1, rounds)) for alpha in (0.0, 0.3, 1.0))
    said = f"cuts the regret of {rounds} rounds"
    return [
        Claim(f"optimism at α = {alpha:g} {said}", "by half", spread(cut), mean_error(cut)[0] >= 0.5)
        for alpha, cut in zip((0.3, 1.0), (_cut(without, ours) for ours in bonus), strict=True)
    ]


def _cut(before: Sequence[float], after: Sequence[float]) -> list[float]:
    return [1 - ours / theirs for theirs, ours in zip(before, after, strict=True)]


def _offline_table(offline: Mapping[str, Mapping[float, Sequence[float]]]) -> str:
    rows = [[f"{alpha:g}", *(spread(offline[data][alpha]) for data in DATA)] for alpha in ALPHAS]
    return table(["α", *(f"{data} data" for data in DATA)], rows)


def _named(arm: Arm) -> str:
    return f"α = {arm[0]:g}" + (", wrong sign" if arm[1] < 0 else "")


def _online_table(regrets: Mapping[str, Mapping[Arm, Sequence[float]]]) -> str:
    rows = [[_named(arm), *(spread(regrets[kind][arm], ".2f") for kind in WORLDS)] for arm in ARMS]
    return table(["bonus", "best answer rare", "no answer rare"], rows)


def _panel(title: str, of: Mapping[Arm, Sequence[Sequence[float]]]) -> Panel:
    rounds = list(range(1, 1 + len(of[0.0, 1][0])))
    return Panel(title, "round", "gap", {_named(arm): curve(rounds, runs) for arm, runs in of.items()})


if __name__ == "__main__":
    main(study, "value", "value-incentivised preference optimization", seeds=5)
