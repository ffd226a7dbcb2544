"""Which metrics the table of rounds shows, and how: one list for the terminal and the report."""

# metric, heading, format
COLUMNS = (
    ("reward", "reward", "{:.3f}"),
    ("slot_error_rate", "slot errors\ngreedy", "{:.1%}"),
    ("slot_error_rate_sampled", "slot errors\nsampled", "{:.1%}"),
    ("win_rate_vs_start", "win rate\nvs start", "{:.1%}"),
    ("kl_to_start", "KL to start\nnats/token", "{:.3f}"),
    ("kl_to_previous", "KL to previous\nnats/token", "{:.3f}"),
    ("response_length", "length\ntokens", "{:.1f}"),
    ("stop_rate", "ended by\nitself", "{:.1%}"),
    ("distinct_2", "distinct\nbigrams", "{:.1%}"),
    ("reference_logprob", "references\nnats/token", "{:.3f}"),
    ("held_out_accuracy", "held-out\naccuracy", "{:.1%}"),
)


def cell(value: float | None, form: str) -> str:
    """``value`` in its format, or a dash where the round has none."""
    return "–" if value is None else form.format(value)
