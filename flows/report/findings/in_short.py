"""A round in a few sentences: whether it is better, what changed, what it cost, what waits for a person. Torch-free."""

from collections.abc import Sequence

from flows.report.facts import Estimate, PairFacts, RoundFacts, estimate
from flows.report.findings.round_line import round_line
from pipeline.types.counts import number_of

# Decisions of the gate, in words on what a person is to do.
_TO_DO = {
    "promote": "nothing; what follows starts from this round",
    "accepted": "nothing; what follows starts from this round, although an earlier one is the best",
    "stop": "nothing, unless you want the run to go on although nothing is gained: prefloop approve",
    "pause": "decide. Press Resume on the flow run's page (or use prefloop approve): promote, stop or roll back",
}


def in_short(facts: RoundFacts, earlier: Sequence[RoundFacts] = ()) -> list[tuple[str, str]]:
    """Return questions and answers about a round, as plain text.

    Args:
        earlier: facts about the start and the round before, if they are another round's.
    """
    before = {one.round: one for one in earlier}
    told = [
        ("Better?", _better(facts, before)),
        ("Changed", _changed(facts)),
        ("Cost", cost_words(facts)),
        ("For you", _to_do(facts)),
    ]
    return [(question, answer) for question, answer in told if answer]


def outcome(facts: RoundFacts) -> str:
    """Return the round in one line with what it cost, for the message of a flow run's last state."""
    return f"{round_line(facts)}; {cost_words(facts)}"


def cost_words(facts: RoundFacts) -> str:
    """Return the wall time of a round's stages and, with a paid labeller, what the labels cost."""
    minutes, seconds = divmod(round(facts.seconds), 60)
    time = f"{minutes:,} min {seconds} s" if minutes else f"{seconds} s"
    calls = sum(labels.calls for labels in facts.labels)
    if not calls:
        return time
    tokens = sum(labels.prompt_tokens + labels.completion_tokens for labels in facts.labels)
    return f"{time}; labels {facts.label_cost:.4g} for {number_of(calls, 'call')} and {number_of(tokens, 'token')}"


def examples_of(pairs: PairFacts) -> str:
    """Return what a round trained on: ``1 pair``, ``12 single responses``."""
    kinds = {"pair": "pair", "group": "group", "unpaired": "single response"}
    return number_of(pairs.rows, kinds.get(pairs.kind, "example"))


def _better(facts: RoundFacts, before: dict[int, RoundFacts]) -> str:
    if facts.round == 0:
        return "this is the start, which later rounds are compared with"
    wins, start = facts.win_rate_vs_start, before.get(0)
    ranked = estimate(facts.metrics, "held_out_accuracy")
    parts = []
    if wins is not None:
        parts.append(f"{_against(wins)} the start: wins {_share(wins)}")
    elif ranked is not None and start is not None:
        was = estimate(start.metrics, "held_out_accuracy")
        known = "" if was is None else f"{was.mean:.1%} at the start, now "
        parts.append(f"held-out pairs ranked as labelled: {known}{_share(ranked)}")
    last = before.get(facts.round - 1)
    if facts.reward is not None and last is not None and last.reward is not None:
        parts.append(f"reward {last.reward:.3f} in round {last.round}, now {facts.reward:.3f}")
    return "; ".join(parts)


def _against(wins: Estimate) -> str:
    if wins.low is not None and wins.low > 0.5:
        return "surely better than"
    if wins.high is not None and wins.high < 0.5:
        return "surely worse than"
    return "not surely better or worse than"


def _share(found: Estimate) -> str:
    ends = "" if found.low is None or found.high is None else f" ({found.low:.0%} to {found.high:.0%})"
    return f"{found.mean:.1%}{ends}"


def _changed(facts: RoundFacts) -> str:
    if facts.training is None or facts.pairs is None:
        return ""
    steps = len(facts.training.steps)
    first, last = facts.training.metric("first_loss"), facts.training.metric("loss")
    loss = "" if first is None or last is None else f"; loss {first:.3f}, then {last:.3f}"
    trained = f"{number_of(steps, 'step')} on {examples_of(facts.pairs)}"
    return "; ".join([f"{trained}{loss}", *facts.training.notices()])


def _to_do(facts: RoundFacts) -> str:
    if facts.gate is None:
        return "" if facts.round == 0 else "nothing; there is no gate"
    decision, best = facts.gate.decision, facts.gate.best_round
    if facts.gate.answer is not None:
        return f"nothing; a person has decided: {facts.gate.answer.replace('_', ' ')}"
    if decision == "roll_back":
        return f"nothing; what follows starts from {'an earlier round' if best is None else f'round {best}'}"
    accepted = decision == "promote" and best not in (None, facts.round)
    return _TO_DO["accepted" if accepted else decision]
