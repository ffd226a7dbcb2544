"""A gate's decision in words and a colour, and the limits that it judges by. Torch-free."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.config import Gate

ACCEPTED = "accepted, not the best"
# Per decision: the style in a terminal, and the sign where text has no colour.
STYLES: Mapping[str, str] = MappingProxyType(
    {"promote": "green", "accepted": "yellow", "stop": "blue", "roll_back": "blue", "pause": "red"}
)
SIGNS: Mapping[str, str] = MappingProxyType(
    {"promote": "🟢", "accepted": "🟡", "stop": "🔵", "roll_back": "🔵", "pause": "🔴"}
)


def verdict_kind(decision: str, round_: int, best_round: int | None) -> str:
    """The decision, or ``accepted`` for a round that goes on although an earlier one is the best."""
    return "accepted" if decision == "promote" and best_round not in (None, round_) else decision


def verdict_words(decision: str, round_: int, best_round: int | None) -> str:
    """What a reader is told of the decision."""
    kind = verdict_kind(decision, round_, best_round)
    return ACCEPTED if kind == "accepted" else kind.replace("_", " ")


@dataclass(frozen=True, slots=True)
class GateLimit:
    """A limit of the gate: the setting's name, the measure that it bounds, and the number, in the measure's unit."""

    name: str
    measure: str
    value: float


_PLAIN = (
    ("max_kl", "kl"),
    ("max_length", "length_ratio"),
    ("min_length", "finished_length_ratio"),
    ("min_length_falling", "finished_length_ratio"),
    ("max_length_share", "length_share"),
    ("max_repetition", "repetition_rise"),
    ("max_unfinished", "stop_fall"),
    ("min_distinct", "distinct_ratio"),
    ("max_gap", "gap"),
    ("second_loss", "second_win_rate_vs_base"),
    ("second_loss", "second_win_rate_vs_best"),
    ("roll_back_below", "win_rate_vs_best"),
)


def gate_limits(settings: Gate) -> Iterator[GateLimit]:
    """All limits that are not switched off."""
    plain: dict[str, float | None] = settings.model_dump(include={name for name, _ in _PLAIN})
    for name, measure in _PLAIN:
        value = plain[name]
        if value is not None:
            yield GateLimit(name, measure, value)
    if settings.max_length_share is not None:
        yield GateLimit("min_longer", "length_ratio", settings.min_longer)
    if settings.max_reward_fall is not None:
        yield GateLimit("max_reward_fall", "reward_change_vs_best", 0.0 - settings.max_reward_fall)
    if settings.patience is not None:
        yield GateLimit("min_gain", "win_rate_since_best", 0.5 + settings.min_gain)
