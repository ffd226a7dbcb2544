"""Which metrics the table of rounds shows, and how: one list for the terminal and the report."""

# metric, heading (lines of at most eight letters, so that a row fits into 80 columns), format
COLUMNS = (
    ("reward", "reward", "{:.3f}"),
    ("slot_error_rate", "slot err\ngreedy", "{:.1%}"),
    ("slot_error_rate_sampled", "slot err\nsampled", "{:.1%}"),
    ("win_rate_vs_start", "wins vs\nstart", "{:.1%}"),
    ("kl_to_start", "KL start\nnats/tok", "{:.3f}"),
    ("kl_to_previous", "KL prev.\nnats/tok", "{:.3f}"),
    ("response_length", "tokens", "{:.1f}"),
    ("stop_rate", "ended", "{:.1%}"),
    ("reference_logprob", "refs\nnats/tok", "{:.3f}"),
    ("held_out_accuracy", "held-out\naccuracy", "{:.1%}"),
)


def cell(value: float | None, form: str) -> str:
    """``value`` in its format, or a dash where the round has none."""
    return "–" if value is None else form.format(value)
