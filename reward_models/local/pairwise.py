"""A sequence classifier that reads a prompt and two responses, in the form of PairRM (LLM-Blender, arXiv:2306.02561).

Departs from its published model, which ranks with a custom head: this accepts any Hugging Face sequence classifier with
one, two or three logits (the third for a tie).
"""

from collections.abc import Sequence

from pydantic import JsonValue

from pipeline.config import PairwiseScorer
from pipeline.errors import UserError
from pipeline.models.rendering.markup import Markup
from pipeline.types import Group, Message, Prompt, Response
from reward_models.answers.accounts import Accounts
from reward_models.answers.missing import Answer
from reward_models.answers.questions import OnAnswer, Question
from reward_models.local.classifier import load_classifier


class PairwiseModel:
    """An answer source for P(the first is better)."""

    def __init__(self, settings: PairwiseScorer, version: str, accounts: Accounts, field: str = "scorer") -> None:
        """Load model and tokenizer, on the GPU if there is one. Raises ``UserError`` naming the path."""
        import torch

        self._settings = settings
        self._version = version
        self._accounts = accounts
        self._tokenizer, self._model = load_classifier(settings, field)
        self._markup = Markup(self._tokenizer, None, all_added=True)
        outputs: int = self._model.config.num_labels
        if outputs not in (1, 2, 3):
            raise UserError(f"{field}.path: {settings.path} has {outputs} outputs; a pairwise model has 1, 2 or 3")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device).eval()
        # Decoder classifiers pool at the last non-padding token; without a padding token they take one row at a time.
        self._padding: int | None = self._model.config.get_text_config().pad_token_id
        self._size = 1 if self._padding is None else settings.batch_size
        self._rows: list[list[int]] = []
        self._order: list[int] = []

    @property
    def version(self) -> str:
        """The version given to the constructor."""
        return self._version

    @property
    def described(self) -> dict[str, JsonValue]:
        """Nothing: the version says everything."""
        return {}

    @property
    def facts(self) -> dict[str, JsonValue]:
        """The numbers of texts so far that were cut, and that spelled control tokens."""
        return {name: self._accounts.counts[name] for name in ("truncated", "broken")}

    def answer(self, questions: Sequence[Question], done: OnAnswer) -> None:
        """Answer in batches of inputs of similar length."""
        for number in range(self.start([Group(one.prompt, (), one.responses) for one in questions])):
            for index, value in self.part(number):
                done(index, Answer(value))

    def start(self, groups: Sequence[Group]) -> int:
        """Take up comparisons, each a group of two responses; return the number of batches."""
        texts = [self._text(group.prompt, group.responses) for group in groups]
        self._rows = self._tokenizer(texts, verbose=False)["input_ids"] if texts else []
        self._order = sorted(range(len(self._rows)), key=lambda index: len(self._rows[index]))
        return -(-len(self._order) // self._size)

    def part(self, number: int) -> list[tuple[int, float | None]]:
        """Compute one batch: places and P(the first is better)."""
        batch = self._order[number * self._size : (number + 1) * self._size]
        return [*zip(batch, self._probabilities([self._rows[i] for i in batch], self._padding), strict=True)]

    def _probabilities(self, rows: list[list[int]], padding: int | None) -> list[float]:
        import torch

        width = max(map(len, rows))
        ids = torch.tensor([row + [padding or 0] * (width - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self._device)
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask).logits.float()
        if logits.shape[1] == 1:
            found: list[float] = logits[:, 0].sigmoid().tolist()
            return found
        shares = logits.softmax(-1)
        ties = shares[:, 2] if logits.shape[1] == 3 else torch.zeros_like(shares[:, 0])
        found = (shares[:, 0] + ties / 2).tolist()
        return found

    def _text(self, prompt: Prompt, responses: Sequence[Response]) -> str:
        """Join prompt and both responses, each after its marker, which no text can hold."""
        limits = (self._settings.max_prompt_tokens, *[self._settings.max_response_tokens] * 2)
        shown = [self._clean(response.text) for response in responses]
        texts = (self._clean(_turns(prompt.shown)), *shown)
        parts = []
        for place, (marker, text, limit) in enumerate(zip(self._settings.markers, texts, limits, strict=True)):
            parts.append(marker + self._cut(text, limit, keep_end=place == 0))
        return "".join(parts)

    def _clean(self, text: str) -> str:
        """Return ``text`` without markers, which may be any text, and with its control tokens broken by a space."""
        clean = text
        for marker in self._settings.markers:
            if marker:
                clean = clean.replace(marker, " ")
        clean = self._markup.broken(clean, "user")
        self._accounts.counts["broken"] += clean != text
        return clean

    def _cut(self, text: str, limit: int, keep_end: bool) -> str:
        places = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        if len(places) <= limit:
            return text
        self._accounts.counts["truncated"] += 1
        return text[places[-limit][0] :] if keep_end else text[: places[limit - 1][1]]


def _turns(messages: Sequence[Message]) -> str:
    """Return the prompt's text, with role names if there are several turns."""
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.shown}" for message in messages)
