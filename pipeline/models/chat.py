"""Conversion of messages to token ids, the only one, for sampler, trainer and data sets.

Knows templates, BOS and end tokens; knows no engine and no loss. Departs from
``apply_chat_template(tokenize=True)`` in three ways: a BOS that tokenizer or template double is
there once; a response is tokenised after its prompt, so the prompt's ids are always a prefix
of prompt + response; and an end token is added only where the model (or author) stopped.
"""

from collections.abc import Sequence
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.errors import RefusedTurnsError, UserError
from pipeline.models.foreign import added_before, backend_of, encoded_by, load_tokenizer, model_end_ids, refused
from pipeline.models.rendering.calls import end_of_calls
from pipeline.models.rendering.markup import Markup
from pipeline.models.rendering.pieces import THOUGHT, after, answer_start, asks_alike, ends_thought
from pipeline.models.rendering.template import ChatTemplate, chosen_template, own_template
from pipeline.models.rendering.thoughts import Thoughts
from pipeline.models.rendering.unread import LeftOut, Unread
from pipeline.types import Message, content_hash

_MARK = "prefloopresponse"


class Chat:
    """Converter from messages to prompt ids, from response texts to ids, and from ids to text.

    Attributes:
        end_ids: every id that ends an assistant turn: the tokenizer's EOS, those of the model's
            generation config, the template's end-of-turn token.
        end_id: the one of ``end_ids`` that this chat's format puts after an assistant turn.
        special_ids: every id that does not represent text.
        own_template: the tokenizer's own template, also where a file takes its place; empty if it has none.
        bos_id: the tokenizer's BOS, if it has one; a prompt begins with it only if the template writes it or, without
            a template, the tokenizer adds it.
        thoughts: where the answer begins in a response, and what labellers see of it.
        template_hash: changes whenever the same messages could give different ids.
    """

    def __init__(self, tokenizer: Any, settings: config.ChatSettings, model_end_ids: Sequence[int] = ()) -> None:
        """``model_end_ids``: the end tokens of the model's own config files.

        Raises:
            UserError: as ``chosen_template``, a template that cannot render one user and one
                assistant turn, or no end token anywhere.
        """
        self._tokenizer = tokenizer
        self._backend = backend_of(tokenizer)
        self._added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._settings = settings
        self._template = chosen_template(tokenizer, settings)
        self.uses_template = self._template is not None
        self.own_template = own_template(tokenizer)
        self._markup = Markup(tokenizer, self._template)
        self.thoughts = Thoughts(tokenizer, self._template, settings.thinking, self.decode)
        self._unread = Unread(self._template)
        self._before = () if self.uses_template else added_before(tokenizer)
        self._last: tuple[tuple[Message, ...], list[str]] | None = None
        self._last_ids: tuple[tuple[Message, ...], tuple[int, ...]] | None = None
        self._last_answered: tuple[list[Message], list[str]] | None = None
        stops = [str(tokenizer.convert_ids_to_tokens(i)) for i in model_end_ids if i < len(tokenizer)]
        self._lead, self._after, turn_end = self._probe_template(stops) if self.uses_template else ("", "", None)
        called = None if self._template is None else end_of_calls(self._template.render, tokenizer, stops)
        # What a finished answer has before its end token, such as a line break.
        ending = "" if turn_end is None else str(tokenizer.convert_ids_to_tokens(turn_end))
        self._gap = self._after.partition(ending)[0] if ending in self._after and ending else ""
        known = [i for i in (turn_end, tokenizer.eos_token_id, *model_end_ids, called) if i is not None]
        if not known:
            raise UserError(f"{_name(tokenizer)}: neither tokenizer nor template has an end token (eos_token)")
        self.end_id: int = known[0]
        self._call_end = self.end_id if called is None else called
        self.end_ids: frozenset[int] = frozenset(known)
        self.special_ids: frozenset[int] = frozenset(tokenizer.all_special_ids) | self.end_ids
        self._ends = {str(tokenizer.convert_ids_to_tokens(i)): i for i in known if i < len(tokenizer)}
        self.bos_id: int | None = tokenizer.bos_token_id
        self.vocab_size: int = len(tokenizer)
        self.template_hash: str = content_hash(
            [
                self._template is not None and self._template.source,
                self._lead,
                self._gap,
                settings.date,
                self.end_id,
                sorted(self.end_ids),
                tokenizer.bos_token_id,
                self._before,
                *([] if settings.bos == "written" else ["bos"]),
                *([{**settings.template_kwargs}] if settings.template_kwargs else []),
                content_hash(sorted(tokenizer.get_vocab().items())),
            ]
        )

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids up to the start of the assistant's turn.

        With a template they are those of its text, and of a BOS that it doubles one stays; without one they begin as
        the tokenizer begins any text.

        Control tokens spelled out in a message stay text. Raises ``UserError`` if the template refuses these messages.
        """
        asked = tuple(messages)
        if self._last_ids is None or self._last_ids[0] != asked:
            ids = self._encode(*self._prompt_pieces(asked), literal=self._template is None)
            self._last_ids = asked, self._with_one_bos(ids)
        return self._last_ids[1]

    def prompt_ids_if_written(self, messages: Sequence[Message]) -> tuple[int, ...] | None:
        """``prompt_ids``, or None if the template refuses these messages."""
        try:
            return self.prompt_ids(messages)
        except RefusedTurnsError:
            return None

    def response_ids(
        self, messages: Sequence[Message], text: str, finished: bool = True, extra: str = ""
    ) -> tuple[int, ...]:
        """Ids of ``text`` as the assistant's answer to ``messages``, with a final end token if ``finished``.

        They are those of the template's own text for the whole conversation, minus the prompt: it may write a part of
        the answer itself (tool calls, of ``extra``; an empty thought), or move one. Special tokens spelled out in
        ``text`` stay text. Ids beyond ``max_response_tokens`` are cut, and the end token with them.

        Raises:
            UserError: the template refuses these messages.
        """
        plain, tail = self._template is None, self._prompt_tail(messages)
        answer, gap, end = self._answer(messages, text, extra)
        if finished:
            answer = [*answer[:-1], answer[-1] + gap]
        before = self._literal(tail)
        joined = self._literal(tail + text) if plain else self._encode(tail + answer[0], *answer[1:])
        # If the tokenizer merges across the border, the prefix differs; then the answer is encoded by itself.
        together = joined[: len(before)] == before
        content = joined[len(before) :] if together else self._encode(*answer, literal=plain)
        ids = content + ([end] if finished else [])
        return tuple(ids[: self._settings.max_response_tokens])

    def left_out(self, messages: Sequence[Message], answers: Sequence[Message]) -> LeftOut:
        """Parts of the conversation that the format leaves out."""
        return self._unread.of(messages, answers)

    def spell(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` with special tokens as their names."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def continues(self, messages: Sequence[Message], text: str, extra: str = "") -> bool:
        """Whether the ids of prompt and response, rendered together, begin with the prompt's ids.

        False if the template renders an answered prompt differently, or if the tokenizer merges the prompt's last
        characters with the response's first. A part before the last turn may be left out, as Mistral Nemo's system
        text is once its turn is answered: the policy is always asked with it. So may the thought that a prompt opens.
        """
        if self._template is not None:
            pieces = self._answered_pieces(self._template, messages, text, extra)
            asked, answered = "".join(self._prompt_pieces(messages)), "".join(pieces)
            if not answered.startswith(asked) and not extra:
                said = (text, self._lead + text, self._lead + text.strip())
                return ends_thought(asked, text) or any(
                    asks_alike(asked, answered, messages[-1].content, one + self._after) for one in said
                )
            whole = self._encode(*pieces)
        else:
            whole = self._literal(_plain_text(messages) + text)
        prompt = self.prompt_ids(messages)
        return self._with_one_bos(whole)[: len(prompt)] == prompt

    def spelled(self, text: str, role: str = "assistant") -> list[tuple[str, int | None]]:
        """Control tokens that a turn's ``text`` spells out, with their ids, and headers (``Markup``)."""
        return self._markup.found(text, role)

    def token(self, number: int) -> str:
        """The text of one token, special or not."""
        return str(self._tokenizer.convert_ids_to_tokens(number))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _probe_template(self, stops: Sequence[str]) -> tuple[str, str, int | None]:
        """Return the template's text before and after an assistant's text, and the token that ends it.

        It is the special token after the text, or that of ``stops`` with which the next turn begins, as in GLM.
        """
        turn = [Message("user", "x")]
        assert self._template is not None, "asked only of a chat with a template"
        prompt = self._template.render(turn, True)
        whole = self._template.render([*turn, Message("assistant", _MARK)], False)
        before, mark, after = whole.partition(_MARK)
        if not mark:
            raise UserError(f"{_name(self._tokenizer)}: the chat template drops the assistant's text")
        lead = before[len(prompt) :] if before.startswith(prompt) else ""
        known = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        special = [i for i in self._encode(after) if i in known]
        if not special and stops:
            answered = [*turn, Message("assistant", _MARK), Message("user", "x")]
            rest = self._template.render(answered, False).partition(_MARK)[2].removeprefix(after)
            special = [self._tokenizer.convert_tokens_to_ids(token) for token in stops if rest.startswith(token)]
        return lead, after, (special[0] if special else None)

    def _prompt_pieces(self, messages: Sequence[Message]) -> list[str]:
        """The prompt's text in pieces, to be encoded one by one."""
        if self._template is None:
            return self._markup.pieces(_plain_text(messages))
        asked = tuple(messages)
        if self._last is None or self._last[0] != asked:
            # Every response to a prompt needs its text.
            self._last = asked, self._markup.render(self._template, asked, True)
        return self._last[1]

    def _answered_pieces(self, template: ChatTemplate, messages: Sequence[Message], text: str, extra: str) -> list[str]:
        """The text of prompt and answer in pieces, to be encoded one by one."""
        said = [*messages, Message("assistant", text, extra)]
        if self._last_answered is None or self._last_answered[0] != said:
            # Its ids and whether they continue the prompt's are both asked of each answer.
            self._last_answered = said, self._markup.render(template, said, False)
        return self._last_answered[1]

    def _answer(self, messages: Sequence[Message], text: str, extra: str) -> tuple[list[str], str, int]:
        """Return the format's text of an answer in pieces, what stands before its end token, and that token's id."""
        if self._template is None:
            return self._markup.pieces(text), "", self.end_id
        prompt = "".join(self._prompt_pieces(messages))
        pieces = self._answered_pieces(self._template, messages, text, extra)
        whole = "".join(pieces)
        if whole.startswith(prompt):
            return self._without_end(after(pieces, len(prompt)), extra)
        if extra:
            return self._without_end(after(pieces, answer_start(prompt, whole, self._added)), extra)
        # The template writes an answered prompt otherwise: the answer as it stands. A thought that the prompt has
        # opened is not opened again.
        opened = THOUGHT.search(prompt)
        if opened is not None and text.lstrip().startswith(opened[1]):
            return self._markup.pieces(text.lstrip().removeprefix(opened[1]).lstrip("\n")), self._gap, self.end_id
        first, *rest = self._markup.pieces(text)
        thinks = "<think>" in self._lead and ("<think>" in text or prompt.rstrip().endswith("</think>"))
        return [first if thinks else self._lead + first, *rest], self._gap, self.end_id

    def _without_end(self, pieces: list[str], extra: str) -> tuple[list[str], str, int]:
        *before, last = pieces
        if self._after and last.endswith(self._after):
            return [*before, last.removesuffix(self._after)], self._gap, self.end_id
        end = next((token for token in self._ends if last.rstrip().endswith(token)), None)
        if end is None:
            return pieces, "", self._call_end if '"tool_calls"' in extra else self.end_id
        return [*before, last.rstrip().removesuffix(end)], "", self._ends[end]

    def _prompt_tail(self, messages: Sequence[Message]) -> str:
        """The prompt's text after its last special token, on which the response's first token may depend."""
        if self._template is None:
            return _plain_text(messages)
        text = self._prompt_pieces(messages)[-1]
        return text[max((text.rfind(s) + len(s) for s in self._added if s in text), default=0) :]

    def _encode(self, *pieces: str, literal: bool = False) -> list[int]:
        """Ids of ``pieces``, nothing added; ``literal``: special tokens spelled out in them stay text."""
        texts = [text for text in pieces if text]
        if self._backend is not None:
            return encoded_by(self._backend, texts, literal)
        encoded = (
            self._tokenizer(text, add_special_tokens=False, split_special_tokens=literal, verbose=False)["input_ids"]
            for text in texts
        )
        return list(chain.from_iterable(encoded))

    def _literal(self, text: str) -> list[int]:
        """Ids of ``text`` as text, whatever it spells."""
        return self._encode(*self._markup.pieces(text), literal=True)

    def _with_one_bos(self, ids: list[int]) -> tuple[int, ...]:
        """``ids`` after what the tokenizer adds before a text, with one of several BOS at their start; see ``bos``."""
        whole = (*self._before, *ids)
        own = tuple(dropwhile(lambda number: number == self.bos_id, whole))
        # Something must predict the first token of the answer.
        begins = len(own) < len(whole) or not whole or self._settings.bos != "written"
        return (self.bos_id, *own) if begins and self.bos_id is not None else whole


def _plain_text(messages: Sequence[Message]) -> str:
    return "\n".join(message.content for message in messages if message.is_turn)


def load_chat(path: str, settings: config.ChatSettings, trust_remote_code: bool = False) -> Chat:
    """The chat of the model folder (or hub name) ``path``.

    Raises:
        UserError: no tokenizer files there, or a tokenizer that cannot be read.
    """
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    ends = model_end_ids(Path(path))
    with refused(f"{path}: cannot read the tokenizer"):
        return Chat(tokenizer, settings, ends)


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or "the tokenizer")
