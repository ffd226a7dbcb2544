"""A Hugging Face sequence-classification model as a reward: conversation in, logits out.

It takes messages, not the policy's tokens, and applies its own tokenizer and chat template. If the model's attention
allows it, a prompt is computed once for all of its responses, and nothing is padded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pipeline.config import ClassifierScorer, PairwiseScorer
from pipeline.errors import RunError, UserError
from pipeline.models.architectures import exact_attention
from pipeline.models.attention.packing import pack
from pipeline.models.attention.shared_prompts import TOLERANCE
from pipeline.models.classifier_scores import RowScores, embedding_count, padding_id
from pipeline.models.foreign import load_tokenizer, refused
from pipeline.models.rendering.template import Rendering
from pipeline.types import Group
from reward_models.local.conversations import Conversations, Ids, split_shared, without_end

T = TypeVar("T")
# Number of rows in the first call that are also scored one by one.
CHECKED = 4


@dataclass(frozen=True, slots=True)
class _Tree:
    """Rows with a common beginning: ``shared``, then one of ``rests``. ``places``: the indices of their scores."""

    shared: Ids
    rests: tuple[Ids, ...]
    places: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """The number of tokens, with shared ones counted once."""
        return len(self.shared) + sum(map(len, self.rests))


class ClassifierReward:
    """Score with one logit of the model, or a weighted sum of several."""

    def __init__(self, settings: ClassifierScorer, rendering: Rendering | None = None) -> None:
        """Load model and tokenizer, on the GPU if there is one. Raises ``UserError`` naming the path or the setting.

        ``rendering``: of the policy, for a model with its chat template.
        """
        tokenizer, model = load_classifier(settings)
        outputs: int = model.config.num_labels
        unknown = [output for output in settings.weights if output >= outputs]
        if unknown:
            raise UserError(f"scorer.outputs: {unknown[0]}, but {settings.path} has outputs 0 to {outputs - 1}")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        self._scores = RowScores(model, settings.weights, share_prompts=settings.packing)
        self._conversations = Conversations(tokenizer, settings.max_tokens, embedding_count(model), rendering)
        self._budget = settings.pass_tokens(self._device.type != "cpu")
        self._checked = False
        self._rows: list[Ids] = []
        self._parts: list[list[int] | list[_Tree]] = []

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Facts for a manifest: conversations that lost tokens on the left, or were broken; why rows were padded."""
        talks = self._conversations
        return {
            "truncated_conversations": talks.truncated,
            "broken_conversations": talks.broken,
            "padded_because": self._scores.padded_because,
        }

    @property
    def described(self) -> dict[str, JsonValue]:
        """What the version of its labels depends on: the day that its chat template writes, and what that is given."""
        talks = self._conversations
        # Earlier versions wrote the day of each run: their labels are not used again.
        return {**({} if talks.day is None else {"day": talks.day}), **talks.given}

    @torch.inference_mode()
    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return one number per response; None for a conversation without tokens.

        Raises:
            RunError: on the first call, if a row gets a different score when scored alone.
        """
        found: list[float | None] = [None] * sum(len(group.responses) for group in groups)
        for number in range(self.start(groups)):
            for place, reward in self._computed(self._parts[number]):
                found[place] = reward
        if not self._checked:
            self._check(found)
        given = iter(found)
        return [tuple(next(given) for _ in group.responses) for group in groups]

    def start(self, groups: Sequence[Group]) -> int:
        """Take up ``groups``; return the number of forward passes, the longest rows first."""
        self._rows = self._encoded(groups)
        self._parts = [*self._passes(groups, self._rows)]
        return len(self._parts)

    @torch.inference_mode()
    def part(self, number: int) -> list[tuple[int, float | None]]:
        """Compute one forward pass of the groups that ``start`` took up. Raises as ``score`` does."""
        made: list[tuple[int, float | None]] = [*self._computed(self._parts[number])]
        if not self._checked:
            found: list[float | None] = [None] * len(self._rows)
            for place, reward in made:
                found[place] = reward
            self._check(found)
        return made

    def _encoded(self, groups: Sequence[Group]) -> list[Ids]:
        asked = [(group.prompt.messages, response.text) for group in groups for response in group.responses]
        padding = padding_id(self._model)
        return [without_end(row, padding) for row in self._conversations.encode(asked)]

    def _passes(self, groups: Sequence[Group], rows: list[Ids]) -> Iterator[list[int] | list[_Tree]]:
        """Yield what is in each forward pass, longest rows first: the places of padded rows, or trees."""
        if self._scores.padded_because is not None:
            places = sorted((i for i, row in enumerate(rows) if row), key=lambda i: -len(rows[i]))
            yield from _cut(places, [len(rows[i]) for i in places], self._budget, padded=True)
            return
        trees = sorted(_trees(groups, rows, self._budget), key=lambda tree: -tree.tokens)
        yield from _cut(trees, [tree.tokens for tree in trees], self._budget, padded=False)

    def _computed(self, part: list[int] | list[_Tree]) -> Iterator[tuple[int, float]]:
        """Yield places and rewards of one forward pass."""
        trees = [one for one in part if isinstance(one, _Tree)]
        places = [one for one in part if isinstance(one, int)]
        if trees:
            packed = pack([(tree.shared, rest) for tree in trees for rest in tree.rests])
            places = [place for tree in trees for place in tree.places]
            rewards = self._scores.of_stream(packed.to(self._device))
        else:
            rewards = self._padded([self._rows[place] for place in places])
        yield from zip(places, rewards.tolist(), strict=True)

    def _padded(self, rows: list[Ids]) -> Tensor:
        width = max(map(len, rows))
        ids = torch.tensor([row + (0,) * (width - len(row)) for row in rows], device=self._device)
        return self._scores.of_rows(ids, torch.tensor([len(row) for row in rows], device=self._device))

    def _check(self, found: list[float | None]) -> None:
        """Compare a few scores with the model's own scores of the rows alone."""
        known = [(row, reward) for row, reward in zip(self._rows, found, strict=True) if row and reward is not None]
        self._checked = bool(known)
        for row, reward in known[:: max(1, len(known) // CHECKED)][:CHECKED]:
            logits = self._model(input_ids=torch.tensor([row], device=self._device)).logits[0].float()
            alone = sum(float(logits[output]) * weight for output, weight in self._scores.outputs.items())
            if not abs(reward - alone) <= TOLERANCE[self._model.dtype] * max(1.0, abs(alone)):
                raise RunError(
                    f"{type(self._model).__name__} gives a conversation the reward {alone:.6g} alone and {reward:.6g} "
                    "together with others; set scorer.packing to false for this model, or scorer.batch_tokens to 1"
                )


def load_classifier(settings: ClassifierScorer | PairwiseScorer, field: str = "scorer") -> tuple[Any, Any]:
    """Load tokenizer and model; ``field`` is their place in the config.

    Raises:
        UserError: the model cannot be loaded, or lacks trained weights.
    """
    tokenizer = load_tokenizer(settings.path, f"{field}.path: ", trust_remote_code=settings.trust_remote_code)
    with refused(f"{field}.path: {settings.path}: cannot be loaded"):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            settings.path,
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"{field}.path: {settings.path} is not a trained classifier: it lacks the weights {missing}")
    exact_attention(model)
    return tokenizer, model.requires_grad_(False)


def _trees(groups: Sequence[Group], rows: Sequence[Ids], budget: int) -> Iterator[_Tree]:
    """Yield trees of each group's rows; several if the rows share nothing or do not fit in one pass."""
    starts = accumulate((len(group.responses) for group in groups), initial=0)
    for start, group in zip(starts, groups, strict=False):
        places = [place for place in range(start, start + len(group.responses)) if rows[place]]
        shared, rests = split_shared([rows[place] for place in places])
        if not shared:
            yield from (_Tree(rows[place], ((),), (place,)) for place in places)
            continue
        numbers = range(len(places))
        for part in _cut(numbers, [len(rest) for rest in rests], budget - len(shared), padded=False):
            yield _Tree(shared, tuple(rests[i] for i in part), tuple(places[i] for i in part))


def _cut(items: Sequence[T], costs: Sequence[int], budget: int, *, padded: bool) -> Iterator[list[T]]:
    """Cut ``items`` into parts of at most ``budget``, or of one; ``padded``: each costs as much as its part's first."""
    start = 0
    while start < len(items):
        stop, total = start + 1, costs[start]
        while stop < len(items) and total + (cost := costs[start if padded else stop]) <= budget:
            stop, total = stop + 1, total + cost
        yield list(items[start:stop])
        start = stop
