"""Columns of the table of rounds, and the unit that a policy's nats are counted in. Torch-free."""

from collections.abc import Mapping, Sequence
from typing import Any

# metric, heading (lines of at most eight letters, so that a row fits into 80 columns), format
COLUMNS = (
    ("held_out_accuracy", "held-out\naccuracy", "{:.1%}"),
    ("held_out_margin", "held-out\nmargin", "{:.3f}"),
    ("reward", "reward", "{:.3f}"),
    ("slot_error_rate", "slot err\ngreedy", "{:.1%}"),
    ("slot_error_rate_sampled", "slot err\nsampled", "{:.1%}"),
    ("right", "all\nright", "{:.1%}"),
    ("clean", "clean\nshapes", "{:.1%}"),
    ("distance_within", "distance\nwithin", "{:.2f}"),
    ("win_rate_vs_start", "wins vs\nstart", "{:.1%}"),
    ("kl_to_start", "KL start\nnats/tok", "{:.3f}"),
    ("kl_to_previous", "KL prev.\nnats/tok", "{:.3f}"),
    ("response_length", "tokens", "{:.1f}"),
    ("thinking_tokens", "thinking\ntokens", "{:.1f}"),
    ("stop_rate", "ended", "{:.1%}"),
    ("unfinished_thinking_rate", "cut in\nthought", "{:.1%}"),
    ("reference_logprob", "refs\nnats/tok", "{:.3f}"),
)


def shown_columns(
    rounds: Sequence[Mapping[str, Any]], further: Sequence[tuple[str, str, str]] = ()
) -> list[tuple[str, str, str]]:
    """Return the columns of which some round has a value, then of ``further`` ones; ``rounds``: their metrics."""
    shown = [column for column in (*COLUMNS, *further) if any(metrics.get(column[0]) is not None for metrics in rounds)]
    return [(name, of_modality(heading, rounds), form) for name, heading, form in shown]


def of_images(rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the metrics of ``rounds`` are of images."""
    return any("image_kl_to_start" in metrics for metrics in rounds)


def of_modality(text: str, rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return ``text``, which speaks of nats per token, as it is for images: per dimension.

    >>> of_modality("nats per token", [{"image_kl_to_start": 0.5}])
    'nats per dimension'
    """
    if not of_images(rounds):
        return text
    return text.replace("nats/tok", "nats/dim").replace("nats per token", "nats per dimension")
