"""The weight handshake: does the sampling engine hold the weights that the trainer wrote?

After each load or swap of weights, the engine scores fixed probe tokens, and the scores are compared
with the training model's own. Engines can report success and still sample from stale weights: vLLM
0.32.0 leaves the output head behind when it reloads a model with tied embeddings. In 16 bits,
rounding alone causes larger differences than a round of small steps, so an engine that is not fresh
is also compared with its scores for the weights that it held before. Torch-free.
"""

import json
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RunError

PROBE_FILE = "probe.json"
_Sequences = Sequence[Sequence[int]]
Logprobs = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest and mean absolute difference, in nats per token, that rounding alone may cause."""

    largest: float
    mean: float


# Between two implementations of one model in that precision. bfloat16 keeps 8 bits, so a logit near 20 is rounded by up
# to 0.06 and a whole forward pass by several times that on single tokens; there, stale weights show in the mean, which
# is about 0.005 for dense models in bfloat16. Mixtures of experts differ by 0.14 to 0.34 on average in 16 bits, since
# rounding sends tokens to other experts; and an engine whose weights, or keys and values, have 4 or 8 bits by
# their rounding. Where the trainer alone holds the weights under an adapter in few bits (8-bit, 4-bit), the two compute
# different models; a stale adapter shows by how the engine moved since the one before (``check_swap``).
TOLERANCES = {
    "float32": Tolerance(2e-3, 5e-4),
    "float16": Tolerance(0.25, 0.02),
    "bfloat16": Tolerance(1.0, 0.05),
    "8-bit": Tolerance(1.5, 0.2),
    "quantised": Tolerance(3.0, 0.3),
    "4-bit": Tolerance(4.0, 0.6),
    "experts": Tolerance(4.5, 0.5),
}
PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe sequences and the training model's log-probabilities of their tokens 1..T-1.

    ``bits``: 4 or 8 if it holds its linear layers so.
    """

    sequences: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    dtype: str
    bits: int | None = None


# Below this mean difference, in nats per token, two probes come from the same weights: float32 sums in
# a different order differ by less.
SAME_WEIGHTS = 1e-5
# What float32 arithmetic may add to an engine's measured noise, in nats per token.
_ROUNDING = 1e-4


@dataclass(frozen=True, slots=True)
class Held:
    """An engine's scores for the probe of the last weights that it was found to hold."""

    probe: Probe
    scores: tuple[tuple[float, ...], ...]


def probe_sequences(vocab_size: int, special_ids: Collection[int], seed: int = 0) -> list[list[int]]:
    """Eight sequences of 16 token ids, drawn evenly from the vocabulary without ``special_ids``.

    Random text reaches all of the embedding and the head, and no prompt of the run shares its prefix.
    """
    ordinary = [i for i in range(vocab_size) if i not in set(special_ids)]
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    return [[draw.choice(ordinary) for _ in range(16)] for _ in range(8)]


def check_weights(
    sampler_scores: Logprobs, trainer_scores: Logprobs, dtype: str, given: Tolerance | None = None
) -> float:
    """Largest absolute difference of the two sides' log-probabilities, in nats.

    Args:
        sampler_scores: the engine's scores of each probe sequence, tokens 1..T-1.
        trainer_scores: the training model's scores, same shape.
        dtype: the coarser of the two sides' precisions, or another name in ``TOLERANCES``.
        given: the user's limits, instead of those of ``dtype``.

    Raises:
        RunError: above the tolerance, a value that is not finite, or shapes that differ.
    """
    if [len(row) for row in sampler_scores] != [len(row) for row in trainer_scores]:
        raise RunError("weight handshake: engine and trainer scored different numbers of probe tokens")
    rows = zip(sampler_scores, trainer_scores, strict=True)
    differences = [abs(ours - theirs) for row in rows for ours, theirs in zip(*row, strict=True)]
    if not differences or not all(math.isfinite(d) for d in differences):
        raise RunError(
            "weight handshake: the engine's log-probabilities of the probe tokens are missing or not finite; if it has "
            "just started on this folder, it cannot compute this kind of model here; choose sampler.kind=transformers"
        )
    largest, mean = max(differences), sum(differences) / len(differences)
    allowed = given or TOLERANCES[dtype]
    if largest > allowed.largest or mean > allowed.mean:
        raise RunError(
            "weight handshake: the sampling engine does not hold the policy's weights: log-probabilities of "
            f"{len(differences)} probe tokens differ by up to {largest:.3g} nats, {mean:.3g} on average "
            f"(allowed in {dtype}: {allowed.largest:g} and {allowed.mean:g}, sampler.handshake). "
            "If the engine has just started on this folder, it "
            "computes this kind of model otherwise than transformers; choose sampler.kind=transformers"
        )
    return largest


def check_swap(held: Held, scores: Logprobs, probe: Probe) -> None:
    """Refuse an engine whose weights did not move as the policy did.

    Rounding differs little between an engine's answers before and after one round, so its size is known
    from ``held``, and movements far below the tolerance of ``check_weights`` show. An engine is stale if

    - its scores are identical although the policy moved, or
    - it is off by more than twice its noise and the policy moved by more than that, or
    - it covered less than half of the policy's way, and the noise leaves no doubt about that: with
      d = the policy's movement and e = the engine's, the share e.d / d.d is 1 for the new weights and 0
      for the old ones, with a standard error of at most sqrt(2) noise / |d|; half the way is three of them.

    Nothing is compared if the two probes have different sequences or the policy did not move.

    Args:
        held: scores before the swap, which passed ``check_weights``.
        scores: scores after the swap, for ``probe.sequences``, which passed ``check_weights``.
        probe: the probe of the new weights.

    Raises:
        RunError: the engine still holds the old weights, or a part of them.
    """
    if held.probe.sequences != probe.sequences:
        return
    old, new = _flat(held.probe.logprobs), _flat(probe.logprobs)
    before, after = _flat(held.scores), _flat(scores)
    policy = [n - o for n, o in zip(new, old, strict=True)]
    engine = [a - b for a, b in zip(after, before, strict=True)]
    moved, off = _mean_size(policy), _mean_size([a - n for a, n in zip(after, new, strict=True)])
    if moved <= SAME_WEIGHTS:
        return
    errors = [b - o for b, o in zip(before, old, strict=True)]
    bound = 2 * _mean_size(errors) + _ROUNDING
    noise = math.hypot(*errors) / math.sqrt(len(errors)) + _ROUNDING
    length = math.hypot(*policy)
    share = sum(e * d for e, d in zip(engine, policy, strict=True)) / length**2
    if after == before or min(off, moved) > bound or (share < 0.5 and length > 6 * math.sqrt(2) * noise):
        raise RunError(
            "weight handshake: the sampling engine does not hold the policy's new weights: log-probabilities of "
            f"{len(new)} probe tokens moved by {moved:.3g} nats on average in the policy and by "
            f"{_mean_size(engine):.3g} in the engine, {share:.0%} of the way, and differ by {off:.3g} now and by "
            f"{_mean_size(errors):.3g} before"
        )


def coarser_dtype(one: str, other: str) -> str:
    """The one of two names in ``TOLERANCES`` that has the larger rounding error."""
    return max(one, other, key=lambda dtype: TOLERANCES[dtype].largest)


def write_probe(folder: Path, sequences: _Sequences, logprobs: Logprobs, dtype: str, bits: int | None = None) -> None:
    """Write ``folder/probe.json``; the numbers must come from the training model's weights in memory."""
    rows = {"sequences": [list(s) for s in sequences], "logprobs": [list(s) for s in logprobs]}
    content = {**rows, "dtype": dtype, **({} if bits is None else {"bits": bits})}
    (folder / PROBE_FILE).write_text(json.dumps(content), encoding="utf-8")


def read_probe(folder: Path) -> Probe:
    """Read ``folder/probe.json``; RunError if it is missing or not a probe."""
    file = folder / PROBE_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        probe = Probe(
            tuple(tuple(int(i) for i in row) for row in content["sequences"]),
            tuple(tuple(float(x) for x in row) for row in content["logprobs"]),
            str(content["dtype"]),
            None if content.get("bits") is None else int(content["bits"]),
        )
    except FileNotFoundError as error:
        raise RunError(f"{file}: missing, so an engine's copy of these weights cannot be checked") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: not a weight probe: {error!r}") from error
    if probe.dtype not in PRECISIONS or probe.bits not in (None, 4, 8):
        raise RunError(f"{file}: dtype {probe.dtype!r}, bits {probe.bits}; one of {', '.join(PRECISIONS)}")
    return probe


def _flat(rows: Logprobs) -> list[float]:
    return [value for row in rows for value in row]


def _mean_size(values: Sequence[float]) -> float:
    return sum(abs(value) for value in values) / len(values)
