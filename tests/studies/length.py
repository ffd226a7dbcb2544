"""How much longer or shorter answers get when the chosen ones happen to be longer, or shorter, by loss.

The policy decides at each token whether to end, and else whether the word is a good or a bad one. People prefer the
answer with the larger share of good words, whatever its length. Of 400 sampled pairs a seed, three sets are trained on:
those whose chosen answer is the longer one, those whose chosen answer is the shorter one, and all. Expected length and
share of good words are computed exactly. In a second world ending may depend on the last word.

    python -m tests.studies.length --record
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers.modeling_outputs import CausalLMOutput

from pipeline.losses import Loss, PairBatch, Side, load_preset
from pipeline.training.batches.examples import Example
from tests.benchmarks.recorded_runs import table
from tests.studies.study_report import Claim, Curve, Panel, Report, main, mean_error, spread
from tests.studies.table_policy import TableConfig, TablePolicy, descend, trained_table

START, GOOD, BAD, END = range(4)
ENDS = 0.1  # at each token
LONGEST = 60
PAIRS, STEPS = 400, 60
SETS = ("longer", "shorter", "all")
DPO, KEPT, DROPPED = "DPO", "SamPO, end kept", "SamPO, as published"
LOSSES: Mapping[str, tuple[str, dict[str, object]]] = {
    DPO: ("dpo", {}),
    KEPT: ("sampo", {"keep_end": True}),
    DROPPED: ("sampo", {"keep_end": False}),
    "LD-DPO, α = 0.5": ("ld_dpo", {}),
    "LD-DPO, α = 0": ("ld_dpo", {"weights": {"kind": "tail", "alpha": 0.0}}),
    "R-DPO, α = 0.01": ("r_dpo", {}),
    "R-DPO, α = 0.1": ("r_dpo", {"margin": {"kind": "length", "alpha": 0.1}}),
    "SimPO": ("simpo", {}),
    "dpo_norm": ("dpo_norm", {}),
}


@dataclass(frozen=True)
class Answers:
    """B sampled answers, padded: ``before`` [B, T] the token before each, ``tokens`` [B, T], ``mask`` [B, T]."""

    before: Tensor
    tokens: Tensor
    mask: Tensor

    def lengths(self) -> Tensor:
        return self.mask.sum(1)

    def ended(self) -> Tensor:
        return ((self.tokens == END) & self.mask).any(1)

    def goodness(self) -> Tensor:
        """[B] share of good words; ½ for an answer without words."""
        good, bad = (((self.tokens == word) & self.mask).sum(1) for word in (GOOD, BAD))
        return torch.where(good + bad > 0, good / (good + bad).clamp(min=1), 0.5)

    def rows(self, chosen: Tensor) -> "Answers":
        return Answers(self.before[chosen], self.tokens[chosen], self.mask[chosen])

    def side(self, policy: Tensor, reference: Tensor) -> Side:
        ours, theirs = (logps[self.before, self.tokens] for logps in (policy, reference))
        return Side(policy=ours, mask=self.mask, reference=theirs)


def start_values() -> Tensor:
    """[4, 2] parameters: log-odds of ending, and of a good word, after each token."""
    return torch.tensor([math.log(ENDS / (1 - ENDS)), 0.0], dtype=torch.float64).repeat(4, 1)


def apart(values: Tensor) -> Tensor:
    """[4, 4] log-probabilities of the next token; one log-odds of ending for all places."""
    return tied(torch.stack([values[:1, 0].expand(4), values[:, 1]], dim=1))


def tied(values: Tensor) -> Tensor:
    """The same with a log-odds of ending for each last token."""
    on, good, bad = logsigmoid(-values[:, 0]), logsigmoid(values[:, 1]), logsigmoid(-values[:, 1])
    never = torch.full_like(on, -1e4)
    return torch.stack([never, on + good, on + bad, logsigmoid(values[:, 0])], dim=1)


WORLDS: Mapping[str, Callable[[Tensor], Tensor]] = {"apart": apart, "tied": tied}


class WordPolicy(TablePolicy):
    """``apart`` as a language model; the first two columns of its table are the parameters."""

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        logits = apart(self.table[:, :2])[input_ids]
        return CausalLMOutput(logits=logits, hidden_states=(logits,))


def word_policy() -> WordPolicy:
    """The start policy."""
    model = WordPolicy(TableConfig(vocab_size=4))
    with torch.no_grad():
        model.table[:, :2] = start_values().float()
    return model.eval()


def start_policy() -> Tensor:
    """[4, 4] log-probabilities of the next token at the start, in both worlds."""
    return apart(start_values())


def sampled(policy: Tensor, count: int, draw: torch.Generator) -> Answers:
    """Answers of at most ``LONGEST`` tokens; longer ones are cut, as in a run, without an end."""
    before, tokens, alive = [], [], []
    last, living = torch.full((count,), START), torch.ones(count, dtype=torch.bool)
    for _ in range(LONGEST):
        now = torch.multinomial(policy.exp()[last], 1, generator=draw)[:, 0]
        before, tokens, alive = [*before, last], [*tokens, now], [*alive, living]
        living, last = living & (now != END), now
    return Answers(torch.stack(before, 1), torch.stack(tokens, 1), torch.stack(alive, 1))


def expected(policy: Tensor) -> tuple[float, float]:
    """Tokens of an answer, end included and cut at ``LONGEST``; share of good words among all words."""
    step, here = policy.exp(), torch.eye(4, dtype=torch.float64)[START]
    tokens, good, bad = 0.0, 0.0, 0.0
    for _ in range(LONGEST):
        tokens += float(here.sum())
        here = here @ step
        good, bad = good + float(here[GOOD]), bad + float(here[BAD])
        here = here * torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)
    return tokens, good / (good + bad)


def preferred(seed: int, count: int = PAIRS) -> tuple[Answers, Answers]:
    """Chosen and rejected answers of the start policy; pairs that are equally good, or cut, are left out."""
    draw = torch.Generator().manual_seed(seed)
    one, other = (sampled(start_policy(), count, draw) for _ in range(2))
    # A cut answer has no end that could be kept.
    ended = one.ended() & other.ended()
    better = torch.where(ended, one.goodness() - other.goodness(), 0)
    first, second = (better > 0).nonzero()[:, 0], (better < 0).nonzero()[:, 0]
    return _joined(one.rows(first), other.rows(second)), _joined(other.rows(first), one.rows(second))


def _joined(one: Answers, other: Answers) -> Answers:
    parts = ((one.before, other.before), (one.tokens, other.tokens), (one.mask, other.mask))
    return Answers(*(torch.cat(both) for both in parts))


def of_set(name: str, chosen: Answers, rejected: Answers) -> tuple[Answers, Answers]:
    more = chosen.lengths() - rejected.lengths()
    rows = {"longer": more > 0, "shorter": more < 0, "all": more == more}[name].nonzero()[:, 0]
    return chosen.rows(rows), rejected.rows(rows)


def loss_named(name: str) -> Loss:
    preset, settings = LOSSES[name]
    return load_preset(preset, **settings)


def trained(loss: Loss, chosen: Answers, rejected: Answers, world: str = "apart") -> tuple[float, float]:
    """Expected length and share of good words after ``STEPS`` steps on all pairs at once."""
    reference = start_policy()

    def objective(policy: Tensor) -> Tensor:
        batch = PairBatch(chosen=chosen.side(policy, reference), rejected=rejected.side(policy, reference))
        return loss(batch).per_pair.mean()

    return expected(descend(start_values(), objective, [STEPS], policy_of=WORLDS[world])[0])


def by_trainer(name: str, seed: int, which: str, count: int = 100, epochs: int = 25) -> float:
    """Expected length after the production trainer on the same kind of pairs."""
    chosen, rejected = of_set(which, *preferred(seed, count))
    pairs = []
    for row in range(len(chosen.tokens)):
        better, worse = (tuple(a.tokens[row][a.mask[row]].tolist()) for a in (chosen, rejected))
        pairs.append(Example.pair(str(row), (START,), better, worse))
    model, start = word_policy(), word_policy()
    settings = {"epochs": epochs, "batch_size": len(pairs), "learning_rate": 0.1}
    trained_table(model, pairs, loss_named(name), [start], seed=seed, **settings)
    return expected(apart(model.table.detach()[:, :2].double()))[0]


Found = dict[str, dict[str, list[tuple[float, float]]]]


def every_set(seeds: Sequence[int], losses: Sequence[str], world: str = "apart") -> Found:
    """Loss -> set -> (expected length, share of good words) of each seed."""
    found: Found = {name: {which: [] for which in SETS} for name in losses}
    for seed in seeds:
        both = preferred(seed)
        for which in SETS:
            chosen, rejected = of_set(which, *both)
            for name in losses:
                found[name][which].append(trained(loss_named(name), chosen, rejected, world))
    return found


def study(seeds: Sequence[int]) -> Report:
    found, dependent = every_set(seeds, [*LOSSES]), every_set(seeds, [DPO, KEPT, DROPPED], "tied")
    trainer = {name: [by_trainer(name, seed, "longer") for seed in seeds[:2]] for name in (DPO, KEPT)}
    said = "Production trainer on the pairs with a longer chosen answer, 25 steps, 2 seeds: "
    said += ", ".join(f"{name} {spread(of, '.1f')} tokens" for name, of in trainer.items()) + "."
    title = f"Expected tokens ({expected(start_policy())[0]:.1f} at the start) and share of good words (0.5)"
    tables = {f"{title}:": _table(found), f"{title}, ending may depend on the last word:": _table(dependent)}
    return Report(claims(found), tables, [_panel(found)], [said])


def moved(runs: Sequence[tuple[float, float]]) -> list[float]:
    """Length over that of the start, or the start's over it: a factor of at least 1."""
    before = expected(start_policy())[0]
    return [max(length / before, before / length) for length, _ in runs]


def claims(found: Found) -> list[Claim]:
    dpo = {which: moved(found[DPO][which]) for which in ("longer", "shorter")}
    made = [
        Claim(f"DPO, chosen {which}: length moves", "2 times or more", spread(of, ".2f"), mean_error(of)[0] >= 2)
        for which, of in dpo.items()
    ]
    for name, bar in ((KEPT, "within 15 %"), (DROPPED, "not within 15 %")):
        worst = max((mean_error(moved(found[name][which]))[0], which) for which in SETS)
        held = (worst[0] <= 1.15) == (name == KEPT)
        made.append(Claim(f"{name}: length stays", bar, f"{worst[0]:.2f} times, chosen {worst[1]}", held))
    return made


def _table(found: Found) -> str:
    header = ["loss", *(f"{what}, {which}" for which in SETS for what in ("tokens", "good"))]
    rows = []
    for name, of in found.items():
        cells = []
        for which in SETS:
            cells += [spread([length for length, _ in of[which]], ".1f"), spread([good for _, good in of[which]])]
        rows.append([name, *cells])
    return table(header, rows)


def _panel(found: Found) -> Panel:
    curves = {}
    for name, of in found.items():
        means = [[mean_error([run[k] for run in of[which]])[0] for which in SETS] for k in (0, 1)]
        curves[name] = Curve(means[0], means[1])
    return Panel("three sets of pairs by loss", "expected tokens", "share of good words", curves)


if __name__ == "__main__":
    main(study, "length", "length by loss", seeds=5)
