"""How far a policy is from the one that its samples come from, with ``training.lag``. Torch-free."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

KL_TO_SAMPLED = "kl_to_sampled"
# Times the mean of the earlier rounds.
GROWTH = 1.5


def lag_line(rounds: Sequence[Mapping[str, JsonValue]]) -> tuple[str, bool]:
    """Return a line on the last of ``rounds``, the metrics of trained rounds in order, and whether it is a warning.

    It is one if the whole 95 % interval lies above ``GROWTH`` times the mean of the rounds before.
    """
    values = [float(str(metrics[KL_TO_SAMPLED])) for metrics in rounds]
    interval = rounds[-1].get(f"{KL_TO_SAMPLED}_ci")
    low = float(str(interval[0])) if isinstance(interval, list) else values[-1]
    line = f"the policy is {values[-1]:.3g} nats a token (KL) from the one that the next round samples"
    usual = sum(values[:-1]) / max(len(values) - 1, 1)
    if len(values) < 2 or low <= GROWTH * usual:
        return line, False
    return (
        f"{line}, {usual:.3g} in earlier rounds: samples lag further and further behind; a smaller "
        "training.learning_rate, or training.lag: 0, keeps them closer",
        True,
    )
