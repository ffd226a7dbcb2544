"""Reward-aware preference optimization (RPO, arXiv:2502.00203) against DPO on hard labels, production losses.

1. With numeric rewards the squared and both Bernoulli distances reach the exact tilt π_ref e^(η r/β) and stay there;
   DPO on the same pairs, labelled by who scores more, moves away for as long as it is trained.
2. A pair whose rewards are equal moves nothing.
3. At equally many answers, groups of four have gradients of less variance than groups of two.
4. The same on real scores: the four answers to each prompt of ../shared/data/ranked, scored three times by GPT-4. One
   scoring is trained on, the others measure.

    python -m tests.studies.rewards --record
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.losses import GroupBatch, Loss, PairBatch, load_preset
from tests.benchmarks.recorded_runs import table
from tests.studies.study_report import Claim, Panel, Report, curve, main, mean_error, spread
from tests.studies.table_policy import (
    World,
    answer,
    bandit_pair,
    bandit_table,
    descend,
    every_pair,
    group_batch,
    many_worlds,
    minimise,
    of_bandit,
    pair_batch,
    random_world,
    total_variation,
    trained_table,
)
from tests.support.places import DATA

BETA = 0.5
DISTANCES = ("rpo_sq", "rpo_bwd", "rpo_fwd")
SHORT, LONG = 400, 1600
RANKED = DATA / "ranked" / "mtbench_vicuna_k4_scores.jsonl"
REAL = ("largest TV from the tilt", "best to worst, nats", "KL", "gain by other scorings", "TV moved where all tie")
Facts = dict[str, dict[int, list[float]]]


def objective_of(loss: Loss, world: World) -> Callable[[Tensor], Tensor]:
    """The loss over all pairs (or the group) of each prompt's answers; DPO gets pairs that do not tie, best first."""
    if "responses" in loss.needs:
        return lambda policy: loss(whole_groups(policy, world)).per_pair.sum()
    x, first, second = every_pair(*world.rewards.shape)
    swap = world.rewards[x, first] < world.rewards[x, second]
    chosen, rejected = torch.where(swap, second, first), torch.where(swap, first, second)
    if "reward_chosen" not in loss.needs:
        told = world.rewards[x, first] != world.rewards[x, second]
        x, chosen, rejected = x[told], chosen[told], rejected[told]
    return lambda policy: loss(rewarded(policy, world, x, chosen, rejected)).per_pair.sum()


def rewarded(policy: Tensor, world: World, x: Tensor, chosen: Tensor, rejected: Tensor) -> PairBatch:
    scores: dict[str, Any] = {"reward_chosen": world.rewards[x, chosen], "reward_rejected": world.rewards[x, rejected]}
    return pair_batch(policy, [world.reference], x, chosen, rejected, **scores)


def whole_groups(policy: Tensor, world: World) -> GroupBatch:
    prompts, answers = world.rewards.shape
    every = torch.arange(answers).expand(prompts, answers)
    return group_batch(policy, world.reference, torch.arange(prompts), every, world.rewards)


def reach(world: World, policy: Tensor) -> Tensor:
    """[X] log π/π_ref of the answer that gained most less that of the one that lost most, nats."""
    ratio = policy - world.reference
    return ratio.amax(1) - ratio.amin(1)


def courses(world: World, seeds: int, presets: Sequence[str], steps: Sequence[int]) -> tuple[Facts, Facts]:
    """Preset -> step -> [seed]: total variation from the tilt (the largest of a seed's prompts), and ``reach``."""
    apart: Facts = {}
    reaches: Facts = {}
    for preset in presets:
        loss = load_preset(preset, beta=BETA)
        policies = descend(world.reference, objective_of(loss, world), steps)
        found = [(total_variation(p, world.tilt(1 / BETA)), reach(world, p)) for p in policies]
        of_steps = list(zip(steps, found, strict=True))
        apart[preset] = {step: tv.view(seeds, -1).amax(1).tolist() for step, (tv, _) in of_steps}
        reaches[preset] = {step: of.view(seeds, -1).mean(1).tolist() for step, (_, of) in of_steps}
    return apart, reaches


def by_trainer(preset: str, seed: int, epochs: int = 100) -> float:
    """Total variation from the tilt after the production trainer: AdamW in float32 on all pairs of one prompt."""
    world = random_world(seed, prompts=1, answers=5)
    rewards = world.rewards[0].tolist()
    order = sorted(range(5), key=lambda y: -rewards[y])
    pairs = []
    for i, chosen in enumerate(order):
        for rejected in order[i + 1 :]:
            sides = [replace(answer(1, y), reward=rewards[y]) for y in (chosen, rejected)]
            pair = bandit_pair(f"{chosen}-{rejected}", 1, 0, chosen, rejected)
            pairs.append(replace(pair, responses=tuple(sides)))
    model, start = bandit_table(world.reference), bandit_table(world.reference)
    settings = {"epochs": epochs, "batch_size": len(pairs), "learning_rate": 0.2}
    trained_table(model, pairs, load_preset(preset, beta=BETA), [start], seed=seed, **settings)
    return float(total_variation(of_bandit(model, 1), world.tilt(1 / BETA)))


def moved_by_ties(preset: str) -> float:
    """Total variation from the start after training on pairs whose rewards are equal."""
    world = random_world(0, prompts=2, answers=4)
    tied = World(world.reference, torch.full_like(world.rewards, 1.5))
    x, first, second = every_pair(2, 4)
    loss = load_preset(preset, beta=BETA)
    (policy,) = descend(
        tied.reference, lambda policy: loss(rewarded(policy, tied, x, first, second)).per_pair.sum(), [100]
    )
    return float(total_variation(policy, tied.reference).max())


def relative_variance(seed: int, size: int, answers: int = 32, draws: int = 400) -> float:
    """tr Cov(g)/‖E g‖² of the gradient of a batch of ``answers`` from the reference, in groups of ``size``."""
    world, loss = random_world(seed, prompts=1, answers=6), load_preset("rpo_sqloo", beta=BETA)
    draw = torch.Generator().manual_seed(7 + seed)
    groups = answers // size
    chosen = torch.multinomial(world.reference.exp()[0], draws * answers, replacement=True, generator=draw)
    y = chosen.view(draws * groups, size)
    # A copy of the policy for each draw, so that one backward pass gives all their gradients.
    logits = world.reference.repeat(draws, 1).requires_grad_()
    x = torch.arange(draws).repeat_interleave(groups)
    reference = world.reference.repeat(draws, 1)
    batch = group_batch(logits.log_softmax(1), reference, x, y, world.rewards[0][y])
    (loss(batch).per_pair.sum() / groups).backward()
    assert logits.grad is not None
    return float(logits.grad.var(0).sum() / logits.grad.mean(0).square().sum())


def real_world(seed: int) -> tuple[World, Tensor]:
    """Real answers under a made-up reference, with one GPT-4 scoring; and the mean of the other scorings, [X, 4]."""
    rows = [json.loads(line) for line in RANKED.read_text(encoding="utf-8").splitlines()]
    scores = torch.tensor([row["gpt4_scores"] for row in rows], dtype=torch.float64)
    trained = seed % scores.shape[2]
    others = [k for k in range(scores.shape[2]) if k != trained]
    reference = random_world(seed, *scores.shape[:2]).reference
    return World(reference, scores[:, :, trained]), scores[:, :, others].mean(2)


def real_scores(seeds: Sequence[int], steps: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Preset -> measure -> [seed]: at the minimum, and for DPO, which has none, after each of ``steps``."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        world, other = real_world(seed)
        alike = (world.rewards == world.rewards[:, :1]).all(1)
        for preset in (*DISTANCES, "rpo_sqloo", "dpo"):
            objective = objective_of(load_preset(preset, beta=BETA), world)
            if preset == "dpo":
                names = [f"dpo, {step:,} steps" for step in steps]
                policies = descend(world.reference, objective, steps)
            else:
                names, policies = [preset], [minimise(world.reference, objective)]
            for name, policy in zip(names, policies, strict=True):
                of = found.setdefault(name, {measure: [] for measure in REAL})
                of[REAL[0]].append(float(total_variation(policy, world.tilt(1 / BETA)).max()))
                of[REAL[1]].append(float(reach(world, policy).mean()))
                of[REAL[2]].append(float(world.kl(policy).mean()))
                of[REAL[3]].append(float(((policy.exp() - world.reference.exp()) * other).sum(1).mean()))
                of[REAL[4]].append(float(total_variation(policy, world.reference)[alike].max()))
    return found


def study(seeds: Sequence[int]) -> Report:
    places = [SHORT // 4, SHORT, LONG]
    apart, reaches = courses(many_worlds(seeds, prompts=2, answers=6), len(seeds), (*DISTANCES, "dpo"), places)
    trained = {preset: [by_trainer(preset, seed) for seed in seeds] for preset in (*DISTANCES, "dpo")}
    ties = {preset: moved_by_ties(preset) for preset in (*DISTANCES, "dpo")}
    variances = {size: [relative_variance(seed, size) for seed in seeds] for size in (2, 4, 8)}
    claims = [*course_claims(apart, reaches), *tie_claims(ties), variance_claim(variances)]
    tables = {"Total variation from the exact tilt, 6 answers a prompt:": _course_table(apart, reaches, trained)}
    tables["Relative variance of the gradient of 32 answers (rpo_sqloo):"] = table(
        ["groups of", *map(str, variances)], [["tr Cov / ‖mean‖²", *(spread(of) for of in variances.values())]]
    )
    if RANKED.is_file():
        real = real_scores(seeds, [SHORT // 4, SHORT])
        claims += real_claims(real)
        tables["Real scores (160 prompts, 4 answers, 3 scorings by GPT-4):"] = _real_table(real)
    panels = [
        Panel(f"{name}, 6 answers a prompt", "steps", name, _curves(of, places), logarithmic=True)
        for name, of in (("total variation from the tilt", apart), ("log-ratio from best to worst, nats", reaches))
    ]
    return Report(claims, tables, panels)


def _curves(of: Facts, places: Sequence[int]) -> dict[str, Any]:
    return {
        preset: curve(places, [*zip(*(by_step[step] for step in places), strict=True)])
        for preset, by_step in of.items()
    }


def course_claims(apart: Facts, reaches: Facts) -> list[Claim]:
    claims = []
    for preset in DISTANCES:
        reached, stayed = (max(apart[preset][step]) for step in (SHORT, LONG))
        said = f"{reached:.4f}, later {stayed:.4f}"
        claims.append(Claim(f"{preset} reaches the tilt and stays", "below 0.01", said, max(reached, stayed) < 0.01))
    reached, later = (mean_error(reaches["dpo"][step])[0] for step in (SHORT, LONG))
    away = mean_error(apart["dpo"][LONG])[0]
    said = f"{reached:.1f}, later {later:.1f} nats from best to worst; {away:.2f} from the tilt"
    return [*claims, Claim("dpo on hard labels runs away", "grows", said, later > 1.1 * reached and away > 0.1)]


def tie_claims(ties: Mapping[str, float]) -> list[Claim]:
    claims = [Claim(f"{name}: a tie moves nothing", "0", f"{ties[name]:.1e}", ties[name] < 1e-12) for name in DISTANCES]
    return [*claims, Claim("dpo moves on a tie", "above 0", f"{ties['dpo']:.3f}", ties["dpo"] > 0.01)]


def variance_claim(variances: Mapping[int, Sequence[float]]) -> Claim:
    ratios = [four / two for two, four in zip(variances[2], variances[4], strict=True)]
    return Claim("K = 4 has less variance than K = 2", "ratio below 1", spread(ratios), max(ratios) < 1)


def real_claims(real: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Claim]:
    aware = (*DISTANCES, "rpo_sqloo")
    worst = {preset: max(real[preset][REAL[0]]) for preset in aware}
    claims = [
        Claim(f"real: {name} reaches the tilt", "below 0.01", f"{tv:.4f}", tv < 0.01) for name, tv in worst.items()
    ]
    still = max(max(real[preset][REAL[4]]) for preset in aware)
    claims.append(Claim("real: prompts of equal scores do not move", "0", f"{still:.1e}", still < 1e-9))
    reached, later = (mean_error(of[REAL[1]])[0] for name, of in real.items() if name.startswith("dpo"))
    said = f"{reached:.1f}, later {later:.1f} nats from best to worst"
    return [*claims, Claim("real: dpo runs away", "grows", said, later > 1.1 * reached)]


def _course_table(apart: Facts, reaches: Facts, trained: Mapping[str, Sequence[float]]) -> str:
    header = ["loss", *(f"{step:,} steps" for step in apart["dpo"]), f"best to worst, {LONG:,} steps"]
    header.append("production trainer, 100 steps")
    rows = [
        [name, *(spread(of) for of in by_step.values()), spread(reaches[name][LONG], ".2f"), spread(trained[name])]
        for name, by_step in apart.items()
    ]
    return table(header, rows)


def _real_table(real: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    return table(["loss", *REAL], [[name, *(spread(of[measure]) for measure in REAL)] for name, of in real.items()])


if __name__ == "__main__":
    main(study, "rewards", "reward-aware preference optimization", seeds=5)
