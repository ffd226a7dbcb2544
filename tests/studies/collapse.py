"""What length-normalised losses do to length over rounds, when the production gate stops them, and what cures it.

The policy is that of ``length.py``, whose ending may depend on the last word. Each round it answers 200 prompts four
times; a labeller scores the share of good words, the best answer is trained on against the worst, and the gate judges
the round by fresh answers: ``pipeline.evaluation.gate`` with its default limits, and with ``min_length: 0.5``. The
study goes on either way, to see what the gate spares.

    python -m tests.studies.collapse --record
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import Gate
from pipeline.evaluation.gate import Standing, decide
from pipeline.evaluation.gate_measures import Measuring, by_prompt, finished, tokens
from pipeline.losses import Loss, PairBatch, load_preset
from pipeline.types import Group, Message, Prompt, Response
from tests.benchmarks.recorded_runs import table
from tests.studies.length import END, Answers, expected, sampled, start_values, tied
from tests.studies.study_report import Claim, Panel, Report, curve, main, spread
from tests.studies.table_policy import descend

PROMPTS, SAMPLES, ROUNDS, STEPS = 200, 4, 6, 25
HELD_OUT, FEWEST = 100, 20
DEFAULT, STRICT = Gate(), Gate(min_length=0.5)


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
    """A round: expected tokens, share of good words, and the broken rules of the gate and of a stricter one."""

    length: float
    good: float
    broken: tuple[str, ...]
    strictly: tuple[str, ...]


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


def broken_rules(gate: Gate, round_: int, ours: Sequence[Group], start: Sequence[Group]) -> tuple[str, ...]:
    """Names of the gate's rules on length that the round breaks."""
    measuring = Measuring(200, 0)
    measures = {
        "length_ratio": measuring.ratio(by_prompt(ours, tokens), by_prompt(start, tokens)),
        "finished_length_ratio": measuring.finished_length_ratio(ours, start),
        "stop_fall": measuring.difference(*(by_prompt(groups, finished) for groups in (start, ours))),
    }
    judged = decide(gate, measures, Standing(round=round_, best=0, base=0, prompts=HELD_OUT))
    return tuple(rule.name for rule in judged.rules if rule.broken)


def course(arm: Arm, seed: int, rounds: int = ROUNDS) -> list[Point]:
    values, draw = start_values(), torch.Generator().manual_seed(seed)
    start = groups_of(tied(values), 10_000 + seed)
    found = []
    for number in range(1, rounds + 1):
        values = one_round(values, arm, draw)
        ours = groups_of(tied(values), 10_000 * (number + 1) + seed)
        rules = [broken_rules(gate, number, ours, start) for gate in (DEFAULT, STRICT)]
        found.append(Point(*expected(tied(values)), *rules))
    return found


Courses = Mapping[str, Sequence[Sequence[Point]]]


def study(seeds: Sequence[int]) -> Report:
    found = {name: [course(arm, seed) for seed in seeds] for name, arm in ARMS.items()}
    start = expected(tied(start_values()))[0]
    rounds = list(range(1, ROUNDS + 1))
    lengths = {name: curve(rounds, [[point.length for point in run] for run in of]) for name, of in found.items()}
    words = {name: curve(rounds, [[point.good for point in run] for run in of]) for name, of in found.items()}
    panels = [Panel("length", "round", "tokens", lengths), Panel("quality", "round", "share of good words", words)]
    return Report(claims(found), {f"Tokens an answer ({start:.1f} at the start), by round:": rows_of(found)}, panels)


def stopped(runs: Sequence[Sequence[Point]], *, strictly: bool = False) -> list[int]:
    """The first round that breaks a rule, of each seed that has one."""
    found = []
    for run in runs:
        broken = [n for n, point in enumerate(run, 1) if (point.strictly if strictly else point.broken)]
        found += broken[:1]
    return found


def told(runs: Sequence[Sequence[Point]], *, strictly: bool = False) -> str:
    """How often the gate stops, and after which rounds."""
    rounds = stopped(runs, strictly=strictly)
    last = f" to {max(rounds)}" if len(set(rounds)) > 1 else ""
    return f"{len(rounds)} of {len(runs)}" + (f", after round {min(rounds)}{last}" if rounds else "")


def claims(found: Courses) -> list[Claim]:
    start, runs = expected(tied(start_values()))[0], found[COLLAPSING]
    last = [run[-1].length / start for run in runs]
    made = [
        Claim("SimPO's answers collapse over rounds", "below 0.3 of the start", spread(last, ".2f"), max(last) < 0.3)
    ]
    for strictly, name in (
        (False, "the gate with its default limits stops it"),
        (True, "with min_length: 0.5 it does"),
    ):
        held = len(stopped(runs, strictly=strictly)) == len(runs)
        made.append(Claim(name, "every seed", told(runs, strictly=strictly), held))
    cured = [[point.length / start for point in run] for run in found[CURED]]
    said = f"{min(map(min, cured)):.2f} to {max(map(max, cured)):.2f} of the start"
    kept = min(map(min, cured)) > 0.5 and max(map(max, cured)) < 2
    return [*made, Claim("pairs of equal length prevent it", "0.5 to 2 in every round", said, kept)]


def rows_of(found: Courses) -> str:
    rows = []
    for name, runs in found.items():
        cells = [spread([run[k].length for run in runs], ".1f") for k in range(len(runs[0]))]
        gates = [told(runs, strictly=strictly) for strictly in (False, True)]
        rows.append([name, *cells, spread([run[-1].good for run in runs]), *gates])
    header = ["loss", *(f"round {k + 1}" for k in range(ROUNDS)), "good words", "gate stops", "with min_length: 0.5"]
    return table(header, rows)


if __name__ == "__main__":
    main(study, "collapse", "length over rounds", seeds=5)
