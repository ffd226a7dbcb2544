"""The arithmetic of a plan: bytes, tokens and seconds of a round, from counts. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

from pipeline.config import RunConfig
from pipeline.config.loss.needs import needs_of

# Weights, gradients and AdamW's two moments are float32, whatever the dtype of the matrix products.
WEIGHT_BYTES, GRADIENT_BYTES, MOMENT_BYTES = 4, 4, 8
# Bytes of state per weight for each ``training.optimiser``, and the optimisers whose state may be off the accelerator.
STATE_BYTES: Mapping[str, int] = {
    "adamw": MOMENT_BYTES,
    "adamw_offload": MOMENT_BYTES,
    "adamw_paged": MOMENT_BYTES,
    "adamw_8bit": 2,
    "adamw_8bit_paged": 2,
}
OFF_DEVICE = frozenset({"adamw_offload", "adamw_paged", "adamw_8bit_paged"})
# Kinds of work that each have their own rate.
KINDS = ("sampling", "labelling", "scoring", "training")


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters of the policy (with its adapter), those that are trained, and those of separate heads and critics."""

    total: int
    trained: int
    beside: int = 0


@dataclass(frozen=True, slots=True)
class TrainerMemory:
    """Peak memory of a training run, in bytes.

    Attributes:
        parameters: the model's counts.
        activations: everything temporary: what passes keep for their gradient, logits, masks, copies of weights.
        reference_beside: whether a second model is loaded together with the policy.
        state_bytes: optimiser state per weight.
        held: bytes of the policy as it is held; None: float32.
    """

    parameters: ParameterCounts
    activations: int
    reference_beside: bool = False
    state_bytes: int = MOMENT_BYTES
    held: int | None = None

    @property
    def policy(self) -> int:
        """Bytes of the policy with its adapter."""
        return self.parameters.total * WEIGHT_BYTES if self.held is None else self.held

    @property
    def weights(self) -> int:
        """Bytes of the policy, of the heads and critics, and of the reference model."""
        models = self.policy * (2 if self.reference_beside else 1)
        return models + self.parameters.beside * WEIGHT_BYTES

    @property
    def gradients(self) -> int:
        """Bytes of the gradients of everything that is trained."""
        return (self.parameters.trained + self.parameters.beside) * GRADIENT_BYTES

    @property
    def optimiser(self) -> int:
        """Bytes of AdamW's two moments, whatever their format."""
        return (self.parameters.trained + self.parameters.beside) * self.state_bytes

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by name."""
        named = {"weights": self.weights, "gradients": self.gradients, "optimiser": self.optimiser}
        return {**named, "activations": self.activations}

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def above_model(self) -> int:
        """Bytes that training adds to a process that already holds the policy."""
        return self.total - self.policy


def carried_on(places: Sequence[float], values: Sequence[float], at: float) -> float:
    """Extrapolate to ``at`` on the line through the first and last point; a single value is returned as it is.

    >>> carried_on((1, 3), (10, 14), 6)
    20.0
    """
    if len(places) == 1:
        return values[0]
    slope = (values[-1] - values[0]) / (places[-1] - places[0])
    return values[0] + slope * (at - places[0])


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes by name that a stage holds while it runs; ``on_device`` names those on the accelerator."""

    stage: str
    parts: Mapping[str, int]
    on_device: frozenset[str] = frozenset()

    def total(self, *, device: bool) -> int:
        """Bytes on the accelerator, or in the machine's own memory."""
        return sum(size for name, size in self.parts.items() if (name in self.on_device) == device)


@dataclass(frozen=True, slots=True)
class Round:
    """The size of one round.

    Attributes:
        prompts: prompts that are sampled from; ``responses`` to each.
        prompt_tokens, response_tokens: mean lengths.
        examples: examples that are trained on; ``continuations`` of each.
        example_prompt_tokens, example_response_tokens: means over the examples; the latter is of one continuation.
        held_out: prompts for evaluation, with ``held_out_responses`` each.
        references: number of models that score the examples before training, one after the other.
        epochs: passes over the examples.
        packing: whether a prompt is computed once for all its continuations.
    """

    prompts: int
    responses: int
    prompt_tokens: float
    response_tokens: float
    examples: int
    continuations: int
    example_prompt_tokens: float
    example_response_tokens: float
    held_out: int
    held_out_responses: int
    references: int
    epochs: float
    packing: bool = True

    @property
    def sampled(self) -> float:
        """Tokens sampled to train on."""
        return self.prompts * self.responses * self.response_tokens

    @property
    def evaluated(self) -> float:
        """Tokens sampled to evaluate."""
        return self.held_out * self.held_out_responses * self.response_tokens

    @property
    def example_tokens(self) -> float:
        """Tokens that one pass over the examples computes."""
        prompts = 1 if self.packing else self.continuations
        each = prompts * self.example_prompt_tokens + self.continuations * self.example_response_tokens
        return self.examples * each

    def tokens(self) -> dict[str, float]:
        """Tokens that the round's stages compute (``sampling``: generate), by kind of work.

        ``scoring`` covers the examples under each reference, and the evaluation's samples under this policy, the start
        and the previous one.
        """
        read = self.prompt_tokens + self.response_tokens
        labelled = self.prompts * self.responses + self.held_out * self.held_out_responses
        evaluated = self.held_out * self.held_out_responses * read
        return {
            "sampling": self.sampled + self.evaluated,
            "labelling": labelled * read,
            "scoring": self.references * self.example_tokens + 3 * evaluated,
            "training": self.epochs * self.example_tokens,
        }


def seconds(tokens: Mapping[str, float], rates: Mapping[str, float]) -> dict[str, float | None]:
    """Seconds of a round by kind of work; None where no rate is known.

    Without a rate for ``scoring``, three times training's is assumed: a pass with gradient has three times the products
    of one without.
    """
    known = dict(rates)
    if "scoring" not in known and "training" in known:
        known["scoring"] = 3 * known["training"]
    return {name: 0.0 if not n else n / known[name] if name in known else None for name, n in tokens.items()}


def made_examples(config: RunConfig, prompts: int) -> int:
    """The most examples that a round can make of its groups."""
    sampled, n, pairing = min(config.prompts_per_round or prompts, prompts), config.sampling.n, config.pairing
    of_prompt = 1
    if not needs_of(config.loss).groups:
        match pairing.rule:
            case "all":
                of_prompt = min(comb(n, 2), pairing.max_pairs or comb(n, 2))
            case "median_split":
                of_prompt = n // 2
            case "marked":
                of_prompt = n
            case _:
                of_prompt = 1
    beside = 0.0 if config.replay is None else config.replay.share + config.replay.anchor
    return round(sampled * of_prompt / (1 - beside))
