"""What length-normalised losses do to length over rounds, when the production gate stops them, and what cures it.

The policy is that of ``length.py``, whose ending may depend on the last word. Each round it answers 200 prompts four
times; a labeller scores the share of good words, the best answer is trained on against the worst, and the gate judges
the round by fresh answers: ``pipeline.evaluation.gate`` with its default limits, and as it was before
``min_length_falling``. The study goes on either way, to see what the gate spares.

    python -m tests.studies.collapse --record
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import Gate
from pipeline.evaluation.gate import FALLS, Standing, decide
from pipeline.evaluation.gate_measures import Measuring, by_prompt, finished, tokens
from pipeline.losses import Loss, PairBatch, load_preset
from pipeline.types import Group, Message, Prompt, Response
from tests.benchmarks.recorded_runs import table
from tests.studies.length import END, Answers, expected, sampled, start_values, tied
from tests.studies.study_report import Claim, Panel, Report, curve, main, spread
from tests.studies.table_policy import descend

PROMPTS, SAMPLES, ROUNDS, STEPS = 200, 4, 6, 25
HELD_OUT, FEWEST = 100, 20
DEFAULT, EARLIER = Gate(), Gate(min_length_falling=None)
# What a policy that learns to come to the point does: tokens over the start's, by round.
HONEST: Mapping[str, Sequence[float]] = {"one step": (0.45, 0.44, 0.45, 0.44), "slow": (0.9, 0.82, 0.75, 0.7)}


@dataclass(frozen=True, slots=True)
class Arm:
    """A loss and its pairs.

    ``closest``: the largest difference in length, as a share of the longer answer; ``every``: all pairs of a prompt,
    not the best against the worst.
    """

    preset: str
    settings: Mapping[str, object]
    closest: float = 1.0
    every: bool = False

    def loss(self) -> Loss:
        return load_preset(self.preset, **self.settings)


SIMPO: Mapping[str, object] = {"beta": 2.5, "gamma": 0.5}
ARMS: Mapping[str, Arm] = {
    "SimPO": Arm("simpo", SIMPO),
    "dpo_norm": Arm("dpo_norm", {}),
    "DPO": Arm("dpo", {}),
    "SimPO, likelihood of the chosen 1": Arm("simpo", {**SIMPO, "nll": 1.0}),
    "SimPO, best and worst of like length": Arm("simpo", SIMPO, closest=0.2),
    "SimPO, all pairs of equal length": Arm("simpo", SIMPO, closest=0.0, every=True),
    "dpo_norm, all pairs of equal length": Arm("dpo_norm", {}, closest=0.0, every=True),
}
COLLAPSING, CURED = "SimPO", "SimPO, all pairs of equal length"


@dataclass(frozen=True, slots=True)
class Point:
    """A round: expected tokens, share of good words, and the broken rules of the gate and of the gate as it was."""

    length: float
    good: float
    broken: tuple[str, ...]
    earlier: tuple[str, ...]


def pairs_of(policy: Tensor, arm: Arm, draw: torch.Generator) -> tuple[Answers, Answers]:
    """Of each prompt's four answers, if all ended, the best and the worst, or all pairs; ties are left out."""
    answers = sampled(policy, PROMPTS * SAMPLES, draw)
    scores, lengths = (values.view(PROMPTS, SAMPLES) for values in (answers.goodness(), answers.lengths()))
    whole = answers.ended().view(PROMPTS, SAMPLES).all(1)
    if arm.every:
        sides = torch.combinations(torch.arange(SAMPLES)).T
        one, other = (side.repeat(PROMPTS, 1) for side in sides)
    else:
        one, other = scores.argmax(1, keepdim=True), scores.argmin(1, keepdim=True)
    ahead = scores.gather(1, one) - scores.gather(1, other)
    both = torch.stack([lengths.gather(1, side) for side in (one, other)])
    told = whole[:, None] & (1 - both.amin(0) / both.amax(0) <= arm.closest) & (ahead != 0)
    first = (torch.arange(PROMPTS) * SAMPLES)[:, None]
    better, worse = torch.where(ahead > 0, one, other) + first, torch.where(ahead > 0, other, one) + first
    return answers.rows(better[told]), answers.rows(worse[told])


def one_round(values: Tensor, arm: Arm, draw: torch.Generator) -> Tensor:
    """The parameters after a round, whose start is the reference; as they were if there are too few pairs."""
    reference = tied(values)
    chosen, rejected = pairs_of(reference, arm, draw)
    # A handful of pairs is noise, which Adam takes at the full rate.
    if len(chosen.tokens) < FEWEST:
        return values
    loss, found = arm.loss(), values

    def objective(policy: Tensor) -> Tensor:
        batch = PairBatch(chosen=chosen.side(policy, reference), rejected=rejected.side(policy, reference))
        return loss(batch).per_pair.mean()

    def kept(current: Tensor) -> Tensor:
        nonlocal found
        found = current.detach().clone()
        return tied(current)

    descend(values, objective, [STEPS], policy_of=kept)
    return found


def groups_of(policy: Tensor, seed: int) -> list[Group]:
    """Answers to the held-out prompts as the evaluation stage hands them to the gate."""
    answers = sampled(policy, HELD_OUT, torch.Generator().manual_seed(seed))
    found = []
    for row in range(HELD_OUT):
        ids = tuple(answers.tokens[row][answers.mask[row]].tolist())
        prompt = Prompt((Message("user", str(row)),))
        ended = "stop" if ids[-1] == END else "length"
        found.append(Group(prompt, (0,), (Response("", ids, (), ended),), (float(answers.goodness()[row]),)))
    return found


def honest_groups(length: float, seed: int) -> list[Group]:
    """Answers of ``length`` tokens in the mean, all of which end by themselves."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for row, more in enumerate(torch.poisson(torch.full((HELD_OUT,), length - 1), generator=draw).int().tolist()):
        prompt = Prompt((Message("user", str(row)),))
        found.append(Group(prompt, (0,), (Response("", (1,) * more + (END,), (), "stop"),), (1.0,)))
    return found


def honest_course(name: str, seed: int) -> list[tuple[str, ...]]:
    """The rules that each round of a policy breaks whose answers get shorter as ``HONEST`` says."""
    start = 10.0
    rounds = [honest_groups(start * share, 100 * seed + n) for n, share in enumerate((1.0, *HONEST[name]))]
    return [broken_rules(DEFAULT, n, rounds[n], rounds[n - 1], rounds[0]) for n in range(1, len(rounds))]


def broken_rules(
    gate: Gate, round_: int, ours: Sequence[Group], before: Sequence[Group], start: Sequence[Group]
) -> tuple[str, ...]:
    """Names of the gate's rules on length that it breaks; ``before``: answers of the round that it started from."""
    measuring = Measuring(200, 0)
    falls = measuring.finished_length_ratio(ours, before), measuring.finished_length_ratio(before, start)
    measures = {
        **dict(zip(FALLS, falls, strict=True)),
        "length_ratio": measuring.ratio(by_prompt(ours, tokens), by_prompt(start, tokens)),
        "finished_length_ratio": measuring.finished_length_ratio(ours, start),
        "stop_fall": measuring.difference(*(by_prompt(groups, finished) for groups in (start, ours))),
    }
    judged = decide(gate, measures, Standing(round=round_, best=0, base=0, prompts=HELD_OUT))
    return tuple(rule.name for rule in judged.rules if rule.broken)


def course(arm: Arm, seed: int, rounds: int = ROUNDS) -> list[Point]:
    values, draw = start_values(), torch.Generator().manual_seed(seed)
    start = before = groups_of(tied(values), 10_000 + seed)
    found = []
    for number in range(1, rounds + 1):
        values = one_round(values, arm, draw)
        ours = groups_of(tied(values), 10_000 * (number + 1) + seed)
        rules = [broken_rules(gate, number, ours, before, start) for gate in (DEFAULT, EARLIER)]
        found.append(Point(*expected(tied(values)), *rules))
        before = ours
    return found


Courses = Mapping[str, Sequence[Sequence[Point]]]


def study(seeds: Sequence[int]) -> Report:
    found = {name: [course(arm, seed) for seed in seeds] for name, arm in ARMS.items()}
    start = expected(tied(start_values()))[0]
    rounds = list(range(1, ROUNDS + 1))
    lengths = {name: curve(rounds, [[point.length for point in run] for run in of]) for name, of in found.items()}
    words = {name: curve(rounds, [[point.good for point in run] for run in of]) for name, of in found.items()}
    panels = [Panel("length", "round", "tokens", lengths), Panel("quality", "round", "share of good words", words)]
    return Report(
        [*claims(found), *honest_claims(seeds)],
        {f"Tokens an answer ({start:.1f} at the start), by round:": rows_of(found)},
        panels,
    )


def stopped(runs: Sequence[Sequence[Point]], *, earlier: bool = False) -> list[int]:
    """The first round that breaks a rule, of each seed that has one."""
    found = []
    for run in runs:
        broken = [n for n, point in enumerate(run, 1) if (point.earlier if earlier else point.broken)]
        found += broken[:1]
    return found


def told(runs: Sequence[Sequence[Point]], *, earlier: bool = False) -> str:
    """How often the gate stops, and after which rounds."""
    rounds = stopped(runs, earlier=earlier)
    last = f" to {max(rounds)}" if len(set(rounds)) > 1 else ""
    return f"{len(rounds)} of {len(runs)}" + (f", after round {min(rounds)}{last}" if rounds else "")


def claims(found: Courses) -> list[Claim]:
    start, runs = expected(tied(start_values()))[0], found[COLLAPSING]
    last = [run[-1].length / start for run in runs]
    made = [
        Claim("SimPO's answers collapse over rounds", "below 0.3 of the start", spread(last, ".2f"), max(last) < 0.3)
    ]
    shrinking = ("SimPO", "dpo_norm", "DPO", "SimPO, likelihood of the chosen 1")
    for name in shrinking:
        held = len(stopped(found[name])) == len(found[name])
        made.append(Claim(f"the gate with its default limits stops {name}", "every seed", told(found[name]), held))
    spared = stopped(runs, earlier=True)
    made.append(
        Claim("without min_length_falling it stops none of SimPO", "0 of them", told(runs, earlier=True), not spared)
    )
    cured = [[point.length / start for point in run] for run in found[CURED]]
    said = f"{min(map(min, cured)):.2f} to {max(map(max, cured)):.2f} of the start"
    kept = min(map(min, cured)) > 0.5 and max(map(max, cured)) < 2
    return [*made, Claim("pairs of equal length prevent it", "0.5 to 2 in every round", said, kept)]


def honest_claims(seeds: Sequence[int]) -> list[Claim]:
    """Policies whose answers get shorter for a good reason are not stopped."""
    made = []
    for name in HONEST:
        broken = sum(any(honest_course(name, seed)) for seed in seeds)
        made.append(Claim(f"answers that get shorter: {name}", "not stopped", f"{broken} of {len(seeds)}", not broken))
    return made


def rows_of(found: Courses) -> str:
    rows = []
    for name, runs in found.items():
        cells = [spread([run[k].length for run in runs], ".1f") for k in range(len(runs[0]))]
        gates = [told(runs, earlier=earlier) for earlier in (False, True)]
        rows.append([name, *cells, spread([run[-1].good for run in runs]), *gates])
    header = [
        "loss",
        *(f"round {k + 1}" for k in range(ROUNDS)),
        "good words",
        "gate stops",
        "without min_length_falling",
    ]
    return table(header, rows)


if __name__ == "__main__":
    main(study, "collapse", "length over rounds", seeds=5)
