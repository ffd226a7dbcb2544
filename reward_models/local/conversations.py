"""Tokens of whole conversations for a reward model, from its own tokenizer and template. Torch-free.

Scoring and training read the same tokens. Unlike ``chat``, which makes the policy's tokens, the answer is rendered with
the prompt, as in reward-model training, and ends as the template ends it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import JsonValue

from pipeline.errors import UserError
from pipeline.models.rendering.markup import Markup
from pipeline.models.rendering.template import ChatTemplate, Rendering
from pipeline.types import Message, content_hash

Ids = tuple[int, ...]
# The day that templates write: the one that Llama's write where they cannot ask for it. Any day would do, if training
# and scoring have the same one: with another, a response would get another score.
DAY = "2024-07-26"


class Conversations:
    """Turn messages into token ids.

    Contents stay text: control tokens and headers of the template that they spell are broken by a space, so that no
    response begins a turn, or ends one, in the reward model's conversation.

    Attributes:
        truncated: number of conversations so far that were longer than ``max_tokens`` and lost tokens on the left.
        broken: number of conversations so far whose contents spelled a control token or a header.
        day: what the template writes as today's date (ISO 8601), on every day; None if it writes none.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_tokens: int | None = None,
        embeddings: int | None = None,
        rendering: Rendering | None = None,
    ) -> None:
        """``tokenizer``: from transformers; without a chat template, contents are joined by newlines.

        ``max_tokens``: None means no conversation is cut. ``embeddings``: number of tokens that the model can read;
        None: unknown. ``rendering``: of the policy, for models with its template. Raises ``UserError`` for a template
        that cannot be read.
        """
        self._embeddings = embeddings
        self._tokenizer = tokenizer
        self._rendering = None if rendering is None or not rendering.fits(tokenizer) else rendering
        self._template = ChatTemplate(tokenizer, DAY) if tokenizer.chat_template else None
        if self._rendering is not None:
            self._template = self._rendering.template(tokenizer, DAY)
        self.day = DAY if self._template is not None and "strftime_now" in self._template.source else None
        self._markup = Markup(tokenizer, self._template)
        self._max_tokens = max_tokens
        self.truncated = 0
        self.broken = 0

    @property
    def given(self) -> dict[str, JsonValue]:
        """What the template is given besides conversations, for the version of what reads them; empty if nothing."""
        if self._rendering is None or self._template is None:
            return {}
        return {"template_kwargs": {**self._rendering.kwargs}, "template": content_hash(self._template.source)}

    def encode(self, asked: Sequence[tuple[Sequence[Message], str | Message]]) -> list[Ids]:
        """Return the ids of each prompt with its answer, a text or a turn: at most the last ``max_tokens``.

        Raises:
            UserError: the template refuses one of the conversations, or the model has no embedding for a token.
        """
        texts = [self._render([*messages, _turn(answer)]) for messages, answer in asked]
        if not texts:
            return []
        # A template writes its own special tokens; a second BOS would be unlike training.
        plain = self._template is None
        rows: list[list[int]] = self._tokenizer(texts, add_special_tokens=plain, verbose=False)["input_ids"]
        self._require_embeddings(rows)
        limit = self._max_tokens
        if limit is None:
            return [tuple(row) for row in rows]
        self.truncated += sum(len(row) > limit for row in rows)
        return [tuple(row[-limit:]) for row in rows]

    def _require_embeddings(self, rows: list[list[int]]) -> None:
        beyond = max((number for row in rows for number in row), default=0)
        if self._embeddings is not None and beyond >= self._embeddings:
            token = self._tokenizer.convert_ids_to_tokens(beyond)
            raise UserError(
                f"{self._tokenizer.name_or_path}: its tokenizer gives {token!r} the id {beyond}, but the model has "
                f"embeddings for {self._embeddings} tokens; add embeddings (resize_token_embeddings) or use its own "
                "tokenizer"
            )

    def _render(self, messages: Sequence[Message]) -> str:
        literal = [self._broken(message) for message in messages]
        self.broken += literal != list(messages)
        if self._template is None:
            return "\n".join(message.shown for message in literal)
        return self._template.render(literal, generation_prompt=False)

    def _broken(self, turn: Message) -> Message:
        content = self._markup.broken_json if turn.role == "tools" else self._markup.broken
        extra = self._markup.broken_json(turn.extra, turn.role)
        return replace(turn, content=content(turn.content, turn.role), extra=extra)


def _turn(answer: str | Message) -> Message:
    return Message("assistant", answer) if isinstance(answer, str) else answer


def split_shared(rows: Sequence[Ids]) -> tuple[Ids, list[Ids]]:
    """Return the longest common prefix of ``rows``, and the rest of each.

    >>> split_shared([(1, 2, 3), (1, 2, 4, 5)])
    ((1, 2), [(3,), (4, 5)])
    """
    # In sorted order, what the first and the last row share, all rows share.
    first, last = min(rows, default=()), max(rows, default=())
    alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:alike], [row[alike:] for row in rows]


def without_end(row: Ids, padding: int | None) -> Ids:
    """Cut trailing ``padding`` off ``row``, where models pool; keep at least the first token."""
    kept = len(row)
    while kept > 1 and row[kept - 1] == padding:
        kept -= 1
    return row[:kept]
