"""Reward against KL of a table of next words, for losses that claim a better frontier, with a labeller of its own.

``frontiers_transformer`` asks the same of a tiny Llama. Every token's KL and entropy is known, as the losses read it
(``table_policy``). A labeller prefers the answer with more of the words that it likes; a second one, never trained on,
likes mostly the same words. Each loss is trained with five β on the same pairs; its curve is compared with DPO's in the
middle of the KLs that both reach, by interpolation, seed by seed.

    python -m tests.studies.frontiers --record
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipeline.losses import Loss, PairBatch, Side, load_preset
from pipeline.training.reference import dispersions
from tests.benchmarks.recorded_runs import table
from tests.studies.study_report import Claim, Curve, Panel, Report, main, mean_error, spread
from tests.studies.table_policy import softmaxed

WORDS, LENGTH, PAIRS, STEPS = 8, 6, 200, 60
SHARED = 0.7  # correlation of the second labeller's taste with the first's
NOISE = 1.0  # of the first labeller's comparisons: Bradley-Terry at this temperature
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
# name -> preset, β at the middle of its five.
LOSSES: Mapping[str, tuple[str, float]] = {
    "DPO": ("dpo", 0.4),
    "TDPO1": ("tdpo1", 0.4),
    "TDPO2": ("tdpo2", 0.4),
    "SparsePO": ("sparsepo", 0.4),
    "MallowsPO-θ": ("mallows_theta", 0.4),
    "MallowsPO-φ": ("mallows_phi", 0.4),
    "SimPO": ("simpo", 2.5),
}


@dataclass(frozen=True)
class Task:
    """A start policy [W, W], and what two labellers like [W]; an answer is ``LENGTH`` words after word 0."""

    start: Tensor
    liked: Tensor
    second: Tensor


@dataclass(frozen=True)
class Pairs:
    """Words before [N, T] and of [N, T] the chosen and the rejected answers, and each pair's dispersion [N]."""

    chosen: tuple[Tensor, Tensor]
    rejected: tuple[Tensor, Tensor]
    dispersion: Tensor


def task_of(seed: int) -> Task:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((WORDS, WORDS), (WORDS,), (WORDS,))
    start, liked, other = (torch.randn(*shape, generator=draw).double() for shape in shapes)
    return Task(start.log_softmax(1), liked, SHARED * liked + (1 - SHARED**2) ** 0.5 * other)


def visits(policy: Tensor) -> Tensor:
    """[T, W] probability of each word before each token of an answer."""
    here, found = torch.eye(WORDS, dtype=policy.dtype)[0], []
    for _ in range(LENGTH):
        found.append(here)
        here = here @ policy.exp()
    return torch.stack(found)


def reward(policy: Tensor, liked: Tensor) -> float:
    """Expected sum of what a labeller likes, exact."""
    return float((visits(policy) @ policy.exp() @ liked).sum())


def kl(policy: Tensor, start: Tensor) -> float:
    """KL of whole answers to the start policy, nats, exact."""
    return float((visits(policy) @ (policy.exp() * (policy - start)).sum(1)).sum())


def pairs_of(task: Task, seed: int) -> Pairs:
    """Comparisons of sampled answers by the first labeller."""
    draw = torch.Generator().manual_seed(100 + seed)
    words = torch.zeros(2 * PAIRS, 1, dtype=torch.int64)
    for _ in range(LENGTH):
        words = torch.cat([words, torch.multinomial(task.start.exp()[words[:, -1]], 1, generator=draw)], dim=1)
    one, other = words.view(2, PAIRS, -1)
    gap = (task.liked[one[:, 1:]].sum(1) - task.liked[other[:, 1:]].sum(1)) / NOISE
    won = (torch.rand(PAIRS, generator=draw) < torch.sigmoid(gap))[:, None]
    chosen, rejected = torch.where(won, one, other), torch.where(won, other, one)
    entropy = -(task.start.exp() * task.start).sum(1) / torch.log(torch.tensor(float(WORDS)))
    of_pairs = (entropy[chosen[:, :-1]].mean(1) + entropy[rejected[:, :-1]].mean(1)) / 2
    told = torch.tensor(dispersions(of_pairs.tolist()), dtype=torch.float64)
    return Pairs((chosen[:, :-1], chosen[:, 1:]), (rejected[:, :-1], rejected[:, 1:]), told)


def side_of(policy: Tensor, start: Tensor, words: tuple[Tensor, Tensor], mask: Tensor | None) -> Side:
    before, at = words
    divergence = (start.exp() * (start - policy)).sum(1)
    made = Side(
        policy=policy[before, at],
        mask=torch.ones_like(at, dtype=torch.bool),
        reference=start[before, at],
        kl=divergence[before],
    )
    # SparsePO's mask, here of the word before, which is all that a hidden state could tell.
    return made if mask is None else replace(made, weights=mask.relu()[before])


def trained(loss: Loss, task: Task, pairs: Pairs, steps: int = STEPS) -> Tensor:
    """The policy after ``steps`` of Adam on all pairs; with a learned mask, one weight for each word before."""
    logits = task.start.clone().requires_grad_()
    masks = torch.ones(WORDS, dtype=torch.float64).requires_grad_() if "weights" in loss.needs else None
    optimiser = torch.optim.Adam([logits, *([] if masks is None else [masks])], lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(batch_of(softmaxed(logits), task.start, pairs, masks)).per_pair.mean().backward()
        optimiser.step()
    return softmaxed(logits.detach())


def batch_of(policy: Tensor, start: Tensor, pairs: Pairs, masks: Tensor | None) -> PairBatch:
    sides = (side_of(policy, start, words, masks) for words in (pairs.chosen, pairs.rejected))
    return PairBatch(chosen=next(sides), rejected=next(sides), dispersion=pairs.dispersion)


def loss_of(name: str, factor: float) -> Loss:
    preset, middle = LOSSES[name]
    settings: dict[str, Any] = {"weights": {"kind": "learned", "l1_ratio": 0.001}} if preset == "sparsepo" else {}
    return load_preset(preset, beta=middle * factor, **settings)


# [β] of (KL, reward by the labeller, by the second one, both less the start's)
Line = list[tuple[float, float, float]]


def line(name: str, task: Task, pairs: Pairs) -> Line:
    found = []
    for factor in FACTORS:
        policy = trained(loss_of(name, factor), task, pairs)
        gains = [reward(policy, liked) - reward(task.start, liked) for liked in (task.liked, task.second)]
        found.append((kl(policy, task.start), gains[0], gains[1]))
    return found


def at_kl(points: Line, place: float, which: int) -> float:
    """Reward at a KL within the curve, on straight lines between its points."""
    known = sorted((point[0], point[which]) for point in points)
    for (low, before), (high, after) in pairwise(known):
        if low <= place <= high:
            return before + (after - before) * (place - low) / max(high - low, 1e-12)
    raise ValueError(f"KL {place:g} is not within {known[0][0]:g} to {known[-1][0]:g}")


def study(seeds: Sequence[int]) -> Report:
    tasks = {seed: (task, pairs_of(task, seed)) for seed, task in ((seed, task_of(seed)) for seed in seeds)}
    return report_of({name: [line(name, *of) for of in tasks.values()] for name in LOSSES})


def report_of(lines: Mapping[str, Sequence[Line]]) -> Report:
    """Claims, tables and pictures of the ``lines`` of each loss, one of each seed."""
    tables = {
        "KL, gain by the labeller and by the second one, at the five β from small to large:": _lines_table(lines),
        "Gain less DPO's in the middle of the KLs that both reach, seed by seed:": _leads_table(lines),
    }
    claims = [order_claim(name, lines) for name in LOSSES if name != "DPO"]
    return Report(claims, tables, [_panel(lines, 1, "the labeller"), _panel(lines, 2, "a second labeller")])


def leads(name: str, lines: Mapping[str, Sequence[Line]], which: int) -> list[tuple[float, float]]:
    """Of each seed, the KL in the middle of both curves, and the gain there less DPO's; none where they do not meet."""
    found = []
    for ours, dpo in zip(lines[name], lines["DPO"], strict=True):
        low = max(min(point[0] for point in points) for points in (ours, dpo))
        high = min(max(point[0] for point in points) for points in (ours, dpo))
        if low <= high:
            place = (low + high) / 2
            found.append((place, at_kl(ours, place, which) - at_kl(dpo, place, which)))
    return found


def order_claim(name: str, lines: Mapping[str, Sequence[Line]]) -> Claim:
    """Held if the second labeller sees a lead of more than two standard errors."""
    found = [lead for _, lead in leads(name, lines, 2)]
    mean, error = mean_error(found)
    return Claim(f"{name} has more reward than DPO at the same KL", "above 0", spread(found, "+.3f"), mean > 2 * error)


def _lines_table(lines: Mapping[str, Sequence[Line]]) -> str:
    def cell(points: Sequence[tuple[float, float, float]]) -> str:
        kls, first, second = (mean_error([point[k] for point in points])[0] for k in range(3))
        return f"{kls:.2f}: {first:.2f}, {second:.2f}"

    rows = [[name, *(cell(points) for points in zip(*of, strict=True))] for name, of in lines.items()]
    return table(["loss", *(f"β · {factor:g}" for factor in FACTORS)], rows)


def _leads_table(lines: Mapping[str, Sequence[Line]]) -> str:
    rows = []
    for name in lines:
        if name != "DPO":
            first, second = (leads(name, lines, which) for which in (1, 2))
            cells = [spread([lead for _, lead in of], "+.3f") for of in (first, second)]
            rows.append([name, spread([place for place, _ in first], ".2f"), *cells, str(len(first))])
    return table(["loss", "at KL", "labeller", "second labeller", "seeds that meet"], rows)


def _panel(lines: Mapping[str, Sequence[Line]], which: int, title: str) -> Panel:
    curves = {}
    for name, of in lines.items():
        points = [[mean_error([point[k] for point in at]) for k in (0, which)] for at in zip(*of, strict=True)]
        ordered = sorted((x[0], y[0], y[1]) for x, y in points)
        curves[name] = Curve(*([one[k] for one in ordered] for k in range(3)))
    return Panel(title, "KL to the start, nats", "gain in reward", curves)


if __name__ == "__main__":
    main(study, "frontiers", "reward against KL", seeds=5)
