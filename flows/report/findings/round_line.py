"""What a log says of a round, in one line of plain characters. Torch-free."""

from flows.report.facts import Estimate, RoundFacts, estimate
from flows.report.findings.verdicts import verdict_words


def round_line(facts: RoundFacts) -> str:
    """Reward, or else held-out accuracy, then wins over the start and the gate's decision, as far as they are known."""
    ranked = estimate(facts.metrics, "held_out_accuracy")
    parts = []
    if facts.reward is not None:
        parts.append(f"reward {facts.reward:.3f}")
    elif ranked is not None:
        parts.append(f"held-out accuracy {_share(ranked)}")
    if facts.win_rate_vs_start is not None and facts.round > 0:
        parts.append(f"wins over the start {_share(facts.win_rate_vs_start)}")
    if facts.gate is not None:
        answered = "" if facts.gate.answer is None else f" (a person: {facts.gate.answer.replace('_', ' ')})"
        parts.append(f"gate: {verdict_words(facts.gate.decision, facts.round, facts.gate.best_round)}{answered}")
    return f"round {facts.round}: {', '.join(parts) or 'evaluated'}"


def _share(found: Estimate) -> str:
    ends = "" if found.low is None or found.high is None else f" [{found.low:.1%}, {found.high:.1%}]"
    return f"{found.mean:.1%}{ends}"
