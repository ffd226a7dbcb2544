"""Values of responses under models that are not trained: log-probabilities, entropies, token weights, KL."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Literal

import torch

from pipeline.config.loss.components import GivenWeights
from pipeline.config.loss.needs import Fact
from pipeline.errors import RunError
from pipeline.losses.dispersion import scaled
from pipeline.models.weights.lora import plain_model
from pipeline.models.weights.weight_format import Precision
from pipeline.training.auxiliary.heads import ValueHead
from pipeline.training.batches.examples import Example, Logps
from pipeline.training.distributed.launch import Placement
from pipeline.training.distributed.passes import OnProgress, PassJob, Sequences, pass_values
from pipeline.types import TurnRow

# What the passes of a value head read.
OF_VALUES: frozenset[Fact] = frozenset({"hidden"})

__all__ = [
    "Logps",
    "ReferenceValues",
    "contrastive_weights",
    "dispersions",
    "kl_per_token",
    "reference_logps",
    "reference_values",
    "response_logps",
    "token_values",
    "with_reference",
    "with_references",
]


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """One model's values for an example.

    Attributes:
        logps: one natural-log probability per token, for each of the example's ``continuations``.
        entropy: mean over the responses of the mean over their tokens of the entropy of the next token, over log V:
            in [0, 1]. None if not requested.
    """

    logps: tuple[Logps, ...]
    entropy: float | None = None


def response_logps(
    model: Any,
    sequences: Sequences,
    batch_size: int = 64,
    dtype: Precision = "float32",
    on_progress: OnProgress | None = None,
    among: Placement | None = None,
) -> list[Logps]:
    """Return natural-log probabilities of response tokens, with dropout off.

    Args:
        model: a policy, on any device.
        sequences: (prompt ids, response ids); a response may be empty, a prompt may not.
        batch_size: sequences per forward pass.
        dtype: of matrix products.
        on_progress: called with the number of finished sequences.
        among: this process's place among those that share the passes; see ``pass_values``. None: it is alone.

    Returns:
        one value per response token, in the order of ``sequences``.
    """
    job = PassJob(sequences, batch_size, dtype, frozenset())
    return [logps for logps, _ in pass_values(model, job, on_progress, among)]


def reference_values(
    model: Any,
    examples: Sequence[Example],
    batch_size: int = 64,
    dtype: Precision = "float32",
    on_progress: OnProgress | None = None,
    among: Placement | None = None,
    *,
    entropy: bool = False,
) -> list[ReferenceValues]:
    """Return ``model``'s values for each example, from one pass over all of its continuations.

    ``on_progress`` is called with the number of finished rows (``Example.read``); the other arguments are
    those of ``response_logps``.
    """
    sequences = [(row.prompt_ids, row.ids) for e in examples for row in e.read]
    job = PassJob(sequences, batch_size, dtype, frozenset({"entropy"} if entropy else ()))
    values = iter(pass_values(model, job, on_progress, among))
    largest = math.log(plain_model(model).get_output_embeddings().weight.shape[0]) if entropy else 1.0
    found = []
    for e in examples:
        logps, nats = zip(*(_of_trained(c.read(e.prompt_ids), values) for c in e.continuations), strict=True)
        means = [sum(of_tokens) / len(of_tokens) / largest for of_tokens in nats[: len(e.responses)] if of_tokens]
        found.append(ReferenceValues(logps, sum(means) / len(means) if means else None))
    return found


def token_values(
    model: Any,
    examples: Sequence[Example],
    head: ValueHead,
    batch_size: int = 64,
    dtype: Precision = "float32",
    on_progress: OnProgress | None = None,
    among: Placement | None = None,
) -> list[tuple[Logps, ...]]:
    """Return, for each example, what ``head`` on ``model`` expects at each token of each of its continuations.

    The other arguments are those of ``reference_values``.
    """
    sequences = [(row.prompt_ids, row.ids) for e in examples for row in e.read]
    values = iter(pass_values(model, PassJob(sequences, batch_size, dtype, OF_VALUES, head), on_progress, among))
    return [tuple(_of_trained(c.read(e.prompt_ids), values)[1] for c in e.continuations) for e in examples]


def _of_trained(
    rows: Sequence[TurnRow], values: Iterator[tuple[Logps, tuple[float, ...]]]
) -> tuple[Logps, tuple[float, ...]]:
    """Take the next values, of ``rows``; return those of trained tokens, in order."""
    logps: list[float] = []
    nats: list[float] = []
    for row in rows:
        for kept, of_row in zip((logps, nats), next(values), strict=True):
            kept += of_row if all(row.trained) else compress(of_row, row.trained)
    return tuple(logps), tuple(nats)


def reference_logps(
    model: Any,
    examples: Sequence[Example],
    batch_size: int = 64,
    dtype: Precision = "float32",
    on_progress: OnProgress | None = None,
    among: Placement | None = None,
) -> list[tuple[Logps, ...]]:
    """Return, for each example, log-probabilities of each of its continuations; see ``reference_values``."""
    return [values.logps for values in reference_values(model, examples, batch_size, dtype, on_progress, among)]


def with_references(examples: Sequence[Example], passes: Sequence[Sequence[tuple[Logps, ...]]]) -> list[Example]:
    """Return the examples with log-probabilities under reference models, in the loss's order of models.

    Args:
        examples: E examples.
        passes: each reference model's ``reference_logps`` of these examples: [K][E][continuation].

    Raises:
        ValueError: a pass belongs to other examples.
    """
    if any(len(logps) != len(examples) for logps in passes):
        raise ValueError(f"reference log-probabilities of other examples than these {len(examples)}")
    return [with_reference(example, [logps[index] for logps in passes]) for index, example in enumerate(examples)]


def with_reference(example: Example, per_model: Sequence[tuple[Logps, ...]]) -> Example:
    """Return one example with its ``reference_logps`` from each reference model: [K][continuation].

    Raises:
        ValueError: they belong to another example.
    """
    places = range(len(example.continuations))
    if any(len(logps) != len(places) for logps in per_model):
        raise ValueError(f"example {example.id}: reference log-probabilities of other examples")
    values = [tuple(of_model[place] for of_model in per_model) for place in places]
    scored = [replace(c, references=v) for c, v in zip(example.continuations, values, strict=True)]
    return example.with_continuations(scored)


def dispersions(entropies: Sequence[float], scale: float | Literal["mean"] = "mean") -> list[float]:
    """Return d = −φ* log Hn of each example (MallowsPO, arXiv:2405.14953).

    Args:
        entropies: Hn, from ``reference_values``, in [0, 1].
        scale: φ*; "mean": the value that makes the mean of d equal to 1.

    Raises:
        RunError: φ* is undefined, since every entropy is at its maximum.
    """
    values = scaled(torch.tensor(entropies, dtype=torch.float64), 1.0 if scale == "mean" else scale)
    if scale != "mean" or not len(values):
        return [float(value) for value in values]
    mean = float(values.mean())
    if mean <= 0:
        raise RunError("dispersion: the reference's entropy is maximal at every token, so no scale gives a mean of 1")
    return [float(value) / mean for value in values]


def contrastive_weights(positive: Logps, negative: Logps, settings: GivenWeights, *, chosen: bool) -> tuple[float, ...]:
    """Return w_t = e^(± μ clamp(log π⁺ − log π⁻, low, high)) of a response's tokens (TIS-DPO, arXiv:2410.04350).

    Args:
        positive, negative: log-probabilities under two models, one that prefers good and one that prefers bad
            responses.
        settings: μ and the clamp.
        chosen: the sign is + for a chosen response, − for a rejected one.
    """
    sign = settings.mu if chosen else -settings.mu
    gaps = (ours - theirs for ours, theirs in zip(positive, negative, strict=True))
    return tuple(math.exp(sign * min(max(gap, settings.low), settings.high)) for gap in gaps)


def kl_per_token(ours: Sequence[Logps], theirs: Sequence[Logps]) -> float:
    """Return a Monte-Carlo estimate of KL(policy ‖ other) in nats per token.

    Args:
        ours: for each response, one log-probability per token under the policy that it was sampled from, at
            temperature 1 and without cuts.
        theirs: the same tokens under the other model.

    Returns:
        Σ (log policy − log other) over all response tokens, divided by their number; 0 without any.
        Like any sample mean, it may be slightly negative when the two are close.
    """
    tokens = sum(map(len, ours))
    return sum(sum(a) - sum(b) for a, b in zip(ours, theirs, strict=True)) / tokens if tokens else 0.0
