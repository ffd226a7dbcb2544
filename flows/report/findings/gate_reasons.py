"""A gate's judgement in sentences for people: the reasons in decision.json. Torch-free."""

from pipeline.config import Gate
from pipeline.evaluation.gate import Judgement, Measures, Rule, Standing, least_gain
from pipeline.evaluation.intervals import Interval
from pipeline.types.counts import number_of

# Rules whose values are shares; others are ratios, or nats.
SHARES = {"length_share", "repetition", "unfinished", "second", "second_best", "gap"}


def gate_reasons(judgement: Judgement, settings: Gate, measures: Measures, standing: Standing) -> tuple[str, ...]:
    """Why the gate decided as it did: a sentence for each broken rule, or one for what else decided.

    Args:
        settings, measures, standing: what ``judgement`` was made from.
    """
    wins, best = _wins(measures.get("win_rate_vs_best"), standing.ranks), standing.best
    match judgement.why:
        case "alarms":
            reasons = [*standing.alarms, *_broken(judgement, measures, standing)]
        case "few_prompts":
            few = f"{number_of(standing.prompts, 'held-out prompt is', 'held-out prompts are')} too few to judge by"
            reasons = [f"{few} (gate.min_prompts {settings.min_prompts})"]
        case "broken_rules":
            reasons = _broken(judgement, measures, standing)
        case "no_gain":
            pooled = _wins(measures.get("win_rate_since_best"), standing.ranks)
            over = (
                f"{pooled} over round {best}, the best so far, is surely below {_least(least_gain(settings), standing)}"
            )
            reasons = [f"no gain in {number_of(settings.patience or 0, 'round')}: {over}"]
        case "worse":
            least = _least(settings.roll_back_below, standing)
            reasons = [f"{wins} over round {best}, the best so far, is surely below {least}"]
        case "reward_fell":
            fall = _fall(measures.get("reward_change_vs_best"))
            reasons = [f"the mean reward fell by {fall} from round {best}, the best so far, at a {wins} over it"]
        case "unmeasured":
            reasons = ["no rule is broken; nothing tells whether the round is better than the ones before"]
        case "better":
            reasons = [f"no rule is broken, and the round is the best so far: {wins} over round {best}"]
        case "not_better":
            reasons = [f"no rule is broken; round {best} is still the best: {wins} over it"]
    if judgement.too_late is not None:
        begun = f"round {standing.round + 1} had begun before this round had a gate"
        reasons.append(f"{judgement.too_late}, but {begun}")
    return tuple(reasons)


def _broken(judgement: Judgement, measures: Measures, standing: Standing) -> list[str]:
    sayings = _sayings(measures, standing)
    return [_of_rule(sayings[rule.name], rule) for rule in judgement.rules if rule.broken]


def _sayings(measures: Measures, standing: Standing) -> dict[str, str]:
    """The sentence for each rule if it is broken, with a place for its value."""
    base, best = f"round {standing.base}", f"round {standing.best}"
    gain = f"the training labeller sees a gain ({_wins(measures.get('win_rate_vs_base'))} over {base})"
    unseen = _wins(measures.get("second_win_rate_vs_base"))
    return {
        "kl": f"KL to the start is {{}} nats per {standing.unit}"
        + (f" more than that of {base}" if standing.base else ""),
        "length": f"responses are {{}} times as long as {base}'s",
        "short": f"responses that end by themselves are {{}} times as long as {base}'s",
        "shrinking": f"responses that end by themselves shrank in two rounds after another, to {{}} times {base}'s",
        "length_share": f"{{}} of the gain in reward over {base} goes with longer responses",
        "repetition": f"the share of responses that repeat themselves rose by {{}} over {base}",
        "unfinished": f"the share of responses that end by themselves fell by {{}} from {base}",
        "distinct": f"responses hold {{}} times as many different pairs of words as {base}'s, in equally many words",
        "second": f"{gain}, but by the second labeller the win rate is {{}}",
        "second_best": f"the training labeller prefers the round to {best}, but by the second labeller the win rate "
        "is {}",
        "gap": f"{gain}, the second labeller none ({unseen}): a gap of {{}}",
        **{
            name.removesuffix("_change"): f"suite {name[6:-7]} changed by {{}} from {base}"
            for name in measures
            if name.startswith("suite_")
        },
        "reward": f"the mean reward changed by {{}} from {best}, the best so far",
    }


def _of_rule(saying: str, rule: Rule) -> str:
    form = "{:.1%}" if rule.name in SHARES or rule.name.startswith("suite_") else "{:.2f}"
    value, bound = form.format(rule.value), form.format(rule.limit)
    if rule.limit and bound == "0.00":
        bound = f"{rule.limit:g}"
    spread = f"95 % interval {form.format(rule.low)} to {form.format(rule.high)}, " if rule.low != rule.high else ""
    return f"{saying.format(value)} ({spread}limit {bound})"


def _fall(change: Interval | None) -> str:
    return "" if change is None else f"{-change.mean:.2f} [{-change.high:.2f}, {-change.low:.2f}]"


def _least(limit: float | None, standing: Standing) -> str:
    assert limit is not None, "only a rule with a limit is broken"
    return f"{2 * limit - 1:+.0%}" if standing.ranks else f"{limit:.0%}"


def _wins(wins: Interval | None, ranks: bool = False) -> str:
    """A win rate; ``ranks``: the change in held-out accuracy that stands in its place."""
    if wins is None:
        return "no win rate"
    if ranks:
        mean, low, high = (2 * value - 1 for value in (wins.mean, wins.low, wins.high))
        return f"a change in held-out accuracy of {mean:+.1%} [{low:+.1%}, {high:+.1%}]"
    return f"win rate {wins.mean:.1%} [{wins.low:.1%}, {wins.high:.1%}]"
