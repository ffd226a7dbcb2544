"""Token examples for training: a prompt with one or more responses, and other values that a loss may need."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.config.loss.needs import ExampleKind, Needs
from pipeline.errors import UserError
from pipeline.types import TurnRow

# One natural-log probability per response token.
Logps = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Continuation:
    """A response to the example's prompt.

    Attributes:
        ids: its tokens.
        references: for each reference model, the natural-log probability of every token.
        weights: the weight of each token, if given.
        prior: log ζ of the whole response, in nats, if given.
        reward: score of a reward model.
        win_probability: probability that it beats the policy's average answer.
        advantages, returns: of each token, if they are estimated (APA).
        rows: of several turns of the assistant, the rows in which models read them; ``ids`` are then all trained
            tokens, in order, and every value of a token belongs to one of them. Empty: ``ids`` follow the prompt.
    """

    ids: tuple[int, ...]
    references: tuple[Logps, ...] = ()
    weights: tuple[float, ...] | None = None
    prior: float | None = None
    reward: float | None = None
    win_probability: float | None = None
    advantages: tuple[float, ...] | None = None
    returns: tuple[float, ...] | None = None
    rows: tuple[TurnRow, ...] = ()

    def read(self, prompt_ids: tuple[int, ...]) -> tuple[TurnRow, ...]:
        """Return the rows in which models read it after ``prompt_ids``."""
        return self.rows or (TurnRow(prompt_ids, self.ids, (True,) * len(self.ids)),)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with its responses. All continuations follow the same prompt.

    Attributes:
        id: unique in a run.
        prompt_ids: at least one token.
        kind: what ``responses`` are.
        responses: of a pair, chosen and rejected; of a text or an unpaired response, one; of a group, K ≥ 2.
        soft_label: probability that chosen is the better of a pair.
        desirable: whether an unpaired response is a good one.
        dispersion: d = −log φ(x) of the prompt (MallowsPO).
        calibration: a response of the calibration policy (VPO, XPO).
        mismatched: the response to another prompt (KTO).
    """

    id: str
    prompt_ids: tuple[int, ...]
    kind: ExampleKind
    responses: tuple[Continuation, ...]
    soft_label: float = 1.0
    desirable: bool | None = None
    dispersion: float | None = None
    calibration: Continuation | None = None
    mismatched: Continuation | None = None

    @classmethod
    def text(cls, id: str, prompt_ids: tuple[int, ...], ids: tuple[int, ...]) -> "Example":
        """A single response to imitate."""
        return cls(id, prompt_ids, "text", (Continuation(ids),))

    @classmethod
    def pair(
        cls,
        id: str,
        prompt_ids: tuple[int, ...],
        chosen_ids: tuple[int, ...],
        rejected_ids: tuple[int, ...],
        soft_label: float = 1.0,
    ) -> "Example":
        """Two responses, the preferred one first."""
        return cls(id, prompt_ids, "pair", (Continuation(chosen_ids), Continuation(rejected_ids)), soft_label)

    @classmethod
    def unpaired(cls, id: str, prompt_ids: tuple[int, ...], ids: tuple[int, ...], desirable: bool) -> "Example":
        """A single response that is marked good or bad."""
        return cls(id, prompt_ids, "unpaired", (Continuation(ids),), desirable=desirable)

    @classmethod
    def group(
        cls, id: str, prompt_ids: tuple[int, ...], responses: Sequence[tuple[int, ...]], rewards: Sequence[float]
    ) -> "Example":
        """K responses, each with its reward."""
        scored = (Continuation(ids, reward=reward) for ids, reward in zip(responses, rewards, strict=True))
        return cls(id, prompt_ids, "group", tuple(scored))

    @property
    def continuations(self) -> tuple[Continuation, ...]:
        """All continuations of the prompt: the responses, then the calibration and the mismatched one if they exist."""
        beside = (self.calibration, self.mismatched)
        return (*self.responses, *(extra for extra in beside if extra is not None))

    def with_continuations(self, continuations: Sequence[Continuation]) -> "Example":
        """Return a copy with other ``continuations``, in the same order."""
        if len(continuations) != len(self.continuations):
            raise ValueError(f"{len(continuations)} continuations for the {len(self.continuations)} of {self.id}")
        rest = list(continuations)
        responses = tuple(rest.pop(0) for _ in self.responses)
        calibration = None if self.calibration is None else rest.pop(0)
        mismatched = None if self.mismatched is None else rest.pop(0)
        return replace(self, responses=responses, calibration=calibration, mismatched=mismatched)

    @property
    def length(self) -> int:
        """Tokens of its longest row."""
        return max((len(row.prompt_ids) + len(row.ids) for row in self.read), default=len(self.prompt_ids))

    @property
    def read(self) -> list[TurnRow]:
        """All rows that models read, continuation by continuation."""
        return [row for c in self.continuations for row in c.read(self.prompt_ids)]

    @property
    def response_tokens(self) -> int:
        """Trained tokens of all its continuations."""
        return sum(len(c.ids) for c in self.continuations)

    @property
    def distinct_tokens(self) -> int:
        """Tokens of its prompt (of each, if turns have others), once, and of all rows: the size of a packed pass."""
        if not any(c.rows for c in self.continuations):
            return len(self.prompt_ids) + self.response_tokens
        prompts = {row.prompt_ids for row in self.read}
        return sum(map(len, prompts)) + sum(len(row.ids) for row in self.read)

    @property
    def tokens(self) -> int:
        """Tokens of all its rows."""
        return sum(len(row.prompt_ids) + len(row.ids) for row in self.read)


@dataclass(frozen=True, slots=True)
class Survey:
    """Sizes of E examples for planning, without the examples.

    Attributes:
        lengths: [E] tokens of each example's longest row, 4 bytes each.
        tokens: [E] tokens of each example's packed pass, 4 bytes each.
        rows: [E] rows that models read of each example, 4 bytes each.
        row_tokens: tokens of all rows of all examples.
        digest: hash of ids and lengths in order.
    """

    lengths: Sequence[int]
    tokens: Sequence[int]
    rows: Sequence[int]
    row_tokens: int
    digest: str


def check_examples(examples: Sequence[Example], name: str, needs: Needs) -> Survey:
    """Refuse, before anything runs, examples for which the loss cannot be computed.

    Reads them once, one at a time, so they need not fit into memory.

    Args:
        examples: all of one kind.
        name: of the loss, for messages.
        needs: of the loss.

    Raises:
        UserError: names the example and what it lacks.
    """
    if not examples:
        raise UserError("training: no examples")
    lengths, tokens, rows, digest = array("i"), array("i"), array("i"), hashlib.sha256()
    row_tokens = 0
    kind: ExampleKind | None = None
    for e in examples:
        kind = kind or e.kind
        if e.kind != kind:
            both = " and ".join(sorted((kind, e.kind)))
            raise UserError(f"training: examples of kinds {both} in one run; all must be of one kind")
        for fault in _faults(e, name, needs):
            raise UserError(f"training: example {e.id}: {fault}")
        lengths.append(e.length)
        tokens.append(e.distinct_tokens)
        rows.append(len(e.read))
        row_tokens += e.tokens
        digest.update(f"{e.id}\n{e.length}\n".encode())
    return Survey(lengths, tokens, rows, row_tokens, digest.hexdigest())


def _faults(example: Example, name: str, needs: Needs) -> Iterator[str]:
    if not example.prompt_ids:
        yield "no prompt tokens, so the first response token follows nothing"
    if not example.responses or any(not c.ids for c in example.continuations):
        yield "a response without tokens"
    yield from _faults_of_kind(example, name, needs)
    yield from _faults_of_parts(example, name, needs)
    for place, continuation in _read(example, needs):
        for lack in _lacking(place, continuation, needs):
            yield f"loss {name} needs {lack}"


def _faults_of_kind(example: Example, name: str, needs: Needs) -> Iterator[str]:
    count = len(example.responses)
    match example.kind:
        case "text":
            if not needs.only_chosen:
                yield f"loss {name} needs a rejected response; this is a single text"
        case "pair":
            if count != 2:
                yield f"a pair of {count} responses"
            if example.soft_label != 1 and needs.one_sided:
                yield f"soft label {example.soft_label:g}; loss {name} has one-sided terms, which need 1"
        case "unpaired":
            if not needs.unpaired:
                yield f"loss {name} compares responses; it cannot use single ones that are marked good or bad"
            if example.desirable is None:
                yield "neither marked good nor bad (desirable)"
        case "group":
            if not needs.groups:
                yield f"loss {name} compares two responses; it cannot use groups"
            if count < 2:
                yield f"a group of {count} response; loss {name} compares at least 2 (K ≥ 2)"


def _faults_of_parts(example: Example, name: str, needs: Needs) -> Iterator[str]:
    if "dispersion" in needs and example.dispersion is None:
        yield f"loss {name} needs the dispersion of the prompt (dispersion)"
    if "calibration" in needs and example.calibration is None:
        yield f"loss {name} needs a response of the calibration policy (calibration)"
    if needs.mismatched(example.kind) and example.mismatched is None:
        yield f"loss {name} needs a response to another prompt (mismatched)"
    if "win_probability" in needs and example.responses[0].win_probability is None:
        yield f"loss {name} needs the probability that chosen wins (win_probability)"


def _read(example: Example, needs: Needs) -> Iterator[tuple[str, Continuation]]:
    """Yield the continuations that the loss reads, by name."""
    names = ("chosen", "rejected") if example.kind == "pair" else ()
    for index, response in enumerate(example.responses):
        yield names[index] if index < len(names) else f"response {index + 1}", response
    if "calibration" in needs and example.calibration is not None:
        yield "calibration", example.calibration
    if needs.mismatched(example.kind) and example.mismatched is not None:
        yield "mismatched", example.mismatched


def _lacking(place: str, continuation: Continuation, needs: Needs) -> Iterator[str]:
    """Yield what the response at ``place`` lacks, as the object of a sentence."""
    tokens, count = len(continuation.ids), needs.references
    if "reference" in needs:
        found = continuation.references
        if len(found) < count or any(len(logps) != tokens for logps in found):
            models = "" if count == 1 else f" under each of {count} references"
            yield f"one reference log-probability per response token{models} ({place})"
    if place in ("calibration", "mismatched"):
        return
    weights = continuation.weights
    if needs.contrast and (weights is None or len(weights) != tokens):
        yield f"one weight per response token (weights of {place})"
    if needs.given_prior and continuation.prior is None:
        yield f"the log-prior of each response (prior of {place})"
    estimated = (continuation.advantages, continuation.returns)
    if needs.advantages and any(values is None or len(values) != tokens for values in estimated):
        yield f"one advantage and one return per response token (advantages and returns of {place})"
    # In groups, only rewards decide which response is better.
    rewarded = "reward_chosen" in needs or (place.startswith("response ") and needs.groups)
    if rewarded and continuation.reward is None:
        yield f"a reward for each response (reward of {place})"
