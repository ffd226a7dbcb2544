"""What the links of GPO (arXiv:2402.05749) do with the same β: four claims, with the production losses.

1. Slope: where rewards are close, the log-ratio of the optimum rises with the reward at the rate |f′(0)|/f″(0) · ½, so
   that logistic, Savage, exponential, squared and truncated quadratic relate as 2 : 2 : 1 : 1 : 1.
2. Stop: on a pair that always ends the same way, squared and truncated quadratic stop at β D = 1; logistic goes on as
   log t, Savage as ½ log t; far on the wrong side Savage has hardly any gradient.
3. Matched KL: β compensates for all of that; at the same KL the smooth links win as often as the exact tilt does.

    python -m tests.studies.gpo --record
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.losses import Loss, load_preset
from tests.benchmarks.recorded_runs import table
from tests.studies.study_report import Claim, Curve, Panel, Report, curve, main, mean_error, spread
from tests.studies.table_policy import (
    World,
    bandit_pair,
    bandit_table,
    every_pair,
    minimise,
    of_bandit,
    pair_batch,
    random_world,
    trained_table,
    weighted,
)

# name -> the preset, what stands before β so that z is the same for all, and the published ratio of slopes.
LINKS: Mapping[str, tuple[str, dict[str, object], float]] = {
    "logistic": ("dpo", {}, 2),
    "Savage": ("gpo_savage", {}, 2),
    "exponential": ("gpo_exponential", {}, 1),
    "squared": ("dpo", {"link": "square"}, 1),
    "truncated quadratic": ("gpo_truncated_quadratic", {}, 1),
}
SMOOTH = ("logistic", "Savage", "exponential")
STOPPING = ("squared", "truncated quadratic")
STRENGTHS = (0.4, 1.0, 2.5)
TIMES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
BETA = 0.5
CLOSE, FARTHER = 0.1, 5  # deviation of rewards that are close; a factor
COMPARISONS = 40
WRONG = -5.0


def loss_of(link: str, beta: float = BETA) -> Loss:
    preset, settings, _ = LINKS[link]
    return load_preset(preset, beta=beta, **settings)


def optimum(world: World, loss: Loss) -> Tensor:
    """The minimum over all pairs of the reference's answers, labelled with their true probabilities."""
    x, first, second = every_pair(*world.rewards.shape)
    labels = world.preference()[x, first, second]
    shares = (world.reference[x, first] + world.reference[x, second]).exp()
    return minimise(
        world.reference,
        lambda policy: weighted(
            loss(pair_batch(policy, [world.reference], x, first, second, soft_label=labels)), shares
        ),
    )


def slope(world: World, policy: Tensor, beta: float = BETA) -> float:
    """Of β log π/π_ref on the reward, within prompts."""
    ratio, reward = (values - values.mean(1, keepdim=True) for values in (policy - world.reference, world.rewards))
    return beta * float((ratio * reward).sum() / reward.square().sum())


def sampled_slope(world: World, link: str, seed: int, comparisons: int = COMPARISONS) -> float:
    """The same by the production trainer on ``comparisons`` of each pair, AdamW in float32."""
    prompts, answers = world.rewards.shape
    x, first, second = every_pair(prompts, answers)
    draw = torch.Generator().manual_seed(1000 + seed)
    truth = world.preference()[x, first, second]
    share = torch.binomial(torch.full_like(truth, comparisons), truth, generator=draw) / comparisons
    rows = list(zip(x.tolist(), first.tolist(), second.tolist(), share.tolist(), strict=True))
    pairs = [bandit_pair(str(n), prompts, a, b, c, p) for n, (a, b, c, p) in enumerate(rows)]
    model, start = bandit_table(world.reference), bandit_table(world.reference)
    settings = {"epochs": 60, "batch_size": len(pairs), "learning_rate": 0.1}
    trained_table(model, pairs, loss_of(link), [start], seed=seed, **settings)
    return slope(world, of_bandit(model, prompts))


def separable(link: str, start: Tensor, times: Sequence[float]) -> list[Tensor]:
    """β D of one pair a world that always ends the same way, [seeds], at ``times`` = Σ rate of gradient descent.

    The rate grows with the time, where the slope falls as fast: with a constant one the last decade alone would take
    millions of steps.
    """
    loss, reference = loss_of(link), start.log_softmax(1)
    logits = start.clone().requires_grad_()
    rows, chosen = torch.arange(len(start)), torch.zeros(len(start), dtype=torch.int64)
    found: list[Tensor] = []
    time, growth = 0.0, 0.0 if link in STOPPING else 1e-2
    while len(found) < len(times):
        policy = logits.log_softmax(1)
        loss(pair_batch(policy, [reference], rows, chosen, chosen + 1)).per_pair.sum().backward()
        assert logits.grad is not None
        rate = min(max(0.1, growth * time), times[len(found)] - time)
        with torch.no_grad():
            # In units of z = β D, which two logits move.
            logits -= rate / (2 * BETA**2) * logits.grad
            logits.grad = None
            time += rate
            if time > times[len(found)] * (1 - 1e-9):
                ratio = logits.log_softmax(1) - reference
                found.append(BETA * (ratio[:, 0] - ratio[:, 1]))
    return found


def gradient_at(link: str, z: float) -> float:
    """|∂L/∂z| of one pair at β D = z."""
    reference = torch.zeros(1, 2, dtype=torch.float64).log_softmax(1)
    policy = torch.tensor([[z / BETA, 0.0]], dtype=torch.float64).requires_grad_()
    row = torch.tensor([0])
    loss_of(link)(pair_batch(policy, [reference], row, row, row + 1)).per_pair.sum().backward()
    assert policy.grad is not None
    return abs(float(policy.grad[0, 0])) / BETA


def tilt_at_kl(world: World, kl: float) -> Tensor:
    low, high = 0.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if float(world.kl(world.tilt(middle)).mean()) > kl else (middle, high)
    return world.tilt(low)


def study(seeds: Sequence[int], times: Sequence[float] = TIMES) -> Report:
    exact, sampled = slopes(seeds)
    stops = {link: stopping(link, seeds, times) for link in LINKS}
    gaps = {strength: win_gaps(seeds, strength) for strength in STRENGTHS}
    return Report(
        [*slope_claims(exact), *stop_claims(stops), *gap_claims(gaps)],
        {
            "Slope of β log π/π_ref on the reward:": _slope_table(exact, sampled),
            "β D of a separable pair, by training time (steps times rate):": _stop_table(stops),
            "Win rate less that of the exact tilt at the same KL, at three βs (KL of logistic):": _gap_table(gaps),
        },
        [
            Panel(
                "a separable pair",
                "training time",
                "β D",
                {link: curve(list(stops[link]), _by_seed(stops[link])) for link in LINKS},
                logarithmic=True,
            ),
            Panel("optimum by reward difference", "reward difference", "β D", _responses()),
        ],
    )


def slopes(seeds: Sequence[int]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Link -> slope of each seed: of the population, and of the production trainer on sampled labels."""
    exact: dict[str, list[float]] = {link: [] for link in LINKS}
    sampled: dict[str, list[float]] = {link: [] for link in LINKS}
    for seed in seeds:
        world = random_world(seed, prompts=4, answers=6, spread=CLOSE)
        # So that a few comparisons can tell them.
        distant = World(world.reference, FARTHER * world.rewards)
        for link in LINKS:
            exact[link].append(slope(world, optimum(world, loss_of(link))))
            sampled[link].append(sampled_slope(distant, link, seed))
    return exact, sampled


def stopping(link: str, seeds: Sequence[int], times: Sequence[float]) -> dict[float, Tensor]:
    """Time -> β D of each seed, whose starts differ."""
    start = torch.cat([torch.randn(1, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).double()
    # What stops is there by then.
    shown = [time for time in times if time <= 100] if link in STOPPING else list(times)
    return dict(zip(shown, separable(link, start, shown), strict=True))


Gaps = dict[str, list[tuple[float, float]]]


def win_gaps(seeds: Sequence[int], strength: float) -> Gaps:
    """Link -> KL, and win rate less the tilt's at that KL, of each seed, at β = the link's slope over ``strength``."""
    gaps: Gaps = {link: [] for link in LINKS}
    for seed in seeds:
        world = random_world(seed, prompts=1, answers=5)
        for link in LINKS:
            policy = optimum(world, loss_of(link, LINKS[link][2] / 2 / strength))
            kl = float(world.kl(policy).mean())
            best = float(world.wins(tilt_at_kl(world, kl)).mean())
            gaps[link].append((kl, float(world.wins(policy).mean()) - best))
    return gaps


def slope_claims(exact: Mapping[str, Sequence[float]]) -> list[Claim]:
    unit = mean_error(exact["exponential"])[0]
    found = {link: [value / unit for value in values] for link, values in exact.items()}
    wrong = max(abs(mean_error(found[link])[0] / LINKS[link][2] - 1) for link in LINKS)
    said = " : ".join(f"{mean_error(found[link])[0]:.3f}" for link in LINKS)
    return [Claim("slopes " + ", ".join(LINKS), "2 : 2 : 1 : 1 : 1 within 2 %", said, wrong < 0.02)]


def stop_claims(stops: Mapping[str, Mapping[float, Tensor]]) -> list[Claim]:
    claims = []
    for link in STOPPING:
        last = stops[link][max(stops[link])].tolist()
        held = max(abs(value - 1) for value in last) <= 0.01
        claims.append(Claim(f"{link} stops", "1.00 ± 0.01", spread(last, ".4f"), held))
    for link, wanted in (("logistic", math.log(10)), ("Savage", math.log(10) / 2)):
        before, after = sorted(stops[link])[-2:]
        decade = (stops[link][after] - stops[link][before]).tolist()
        held = abs(mean_error(decade)[0] / wanted - 1) < 0.02
        claims.append(Claim(f"{link} grows in a decade of steps", f"{wanted:.3f}", spread(decade), held))
    factor = gradient_at("logistic", WRONG) / gradient_at("Savage", WRONG)
    said = f"{factor:.0f} times at β D = {WRONG:g}"
    return [*claims, Claim("Savage's gradient on the wrong side is smaller", "50 times", said, factor >= 50)]


def gap_claims(gaps: Mapping[float, Gaps]) -> list[Claim]:
    largest = max(abs(gap) for of_links in gaps.values() for link in SMOOTH for _, gap in of_links[link])
    said = f"at most {largest:.5f} off"
    return [Claim("win rate at matched KL: " + ", ".join(SMOOTH), "within 0.001 of the tilt", said, largest <= 0.001)]


def _by_seed(found: Mapping[float, Tensor]) -> list[list[float]]:
    rows: list[list[float]] = torch.stack(list(found.values())).T.tolist()
    return rows


def _responses() -> dict[str, Curve]:
    """β D at the optimum of one pair by its reward difference."""
    differences = [0.5 * k for k in range(9)]
    worlds = World(
        torch.zeros(9, 2, dtype=torch.float64).log_softmax(1),
        torch.tensor([[d, 0.0] for d in differences], dtype=torch.float64),
    )
    found = {}
    for link in LINKS:
        ratio = optimum(worlds, loss_of(link)) - worlds.reference
        found[link] = Curve(differences, (BETA * (ratio[:, 0] - ratio[:, 1])).tolist())
    return found


def _slope_table(exact: Mapping[str, Sequence[float]], sampled: Mapping[str, Sequence[float]]) -> str:
    rows = [[link, spread(exact[link], ".4f"), spread(sampled[link], ".3f")] for link in LINKS]
    return table(
        [
            "link",
            "population",
            f"{COMPARISONS} comparisons a pair, production trainer, rewards {FARTHER} times as far apart",
        ],
        rows,
    )


def _stop_table(stops: Mapping[str, Mapping[float, Tensor]]) -> str:
    places = sorted(stops["logistic"])
    rows = [
        [link, *(spread(of_link[place].tolist()) if place in of_link else "" for place in places)]
        for link, of_link in stops.items()
    ]
    return table(["link", *(f"{place:,.0f}" for place in places)], rows)


def _gap_table(gaps: Mapping[float, Gaps]) -> str:
    rows = [[link, *(spread([gap for _, gap in of[link]], "+.5f") for of in gaps.values())] for link in LINKS]
    kls = [mean_error([kl for kl, _ in of["logistic"]])[0] for of in gaps.values()]
    return table(["link", *(f"KL {kl:.2f}" for kl in kls)], rows)


if __name__ == "__main__":
    main(study, "gpo", "the links of GPO", seeds=5)
