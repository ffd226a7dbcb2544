"""Where the answer begins in a response that may open with a thought. Torch-free.

A thought stands between two marks of the chat template, such as ``<think>`` and ``</think>``; the template may open it
itself, at the end of the prompt. Marks come from what the template writes around ``reasoning_content``, where it does,
else from a table. A response in channels (gpt-oss) has its answer in the final one. All is counted in tokens, so a mark
must have ends that no tokenizer merges with its neighbours.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import RefusedTurnsError, UserError
from pipeline.models.rendering.channels import FINAL_CHANNEL, Channels
from pipeline.models.rendering.template import ChatTemplate
from pipeline.types import FinishReason, Message, Response

# Marks of current models: Qwen, DeepSeek, GLM and most others; MiniMax M3; Seed; Command; Magistral; Gemma 4; K2.
_TABLE = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<mm:think>", "</mm:think>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>", "<channel|>"),
    ("<ifm|think>", "</ifm|think>"),
    ("<ifm|think_fast>", "</ifm|think_fast>"),
    ("<ifm|think_faster>", "</ifm|think_faster>"),
)
_THOUGHT, _ANSWER = "prefloopthought", "prefloopanswer"
_ASKED = Message("user", "x")
# Names under which templates read a thought.
_FIELDS = ("reasoning_content", "reasoning", "thinking")
_SPACES = "\r\n\t "

Shown = Literal["hide", "keep", "earlier"]
_Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ResponseParts:
    """The parts of a response.

    Attributes:
        start, end: the places of the answer in its ids.
        thinking: tokens before the answer, the marks of the thought among them; 0 without a thought.
        ended: false if the thought has no end; then the answer is empty.
    """

    start: int
    end: int
    thinking: int
    ended: bool = True


@dataclass(frozen=True, slots=True)
class _Mark:
    """The ids that open a thought and those that close it, and the texts of both."""

    opening: _Ids
    closing: _Ids
    opening_text: str
    closing_text: str


class Thoughts:
    """Finds thoughts in sampled ids, and says what labellers see.

    Attributes:
        expected: whether the template writes, opens or removes thoughts, or has channels; where only the vocabulary has
            the marks, responses may think, but need not.
        possible: whether a thought could be told from an answer at all.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: ChatTemplate | None,
        shown: Shown,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        """``template``: None for a format without one; ``decode``: from ids to text without special tokens.

        Raises:
            UserError: ``shown`` is hide, and the tokenizer has no token for the closing mark of the template.
        """
        self._tokenizer = tokenizer
        self._decode = decode
        self._shown = shown
        self._added = {token.content: int(number) for number, token in tokenizer.added_tokens_decoder.items()}
        self._numbers = frozenset(self._added.values())
        self._channels = Channels(tokenizer, template)
        written = [] if template is None or self._channels.written else _written_marks(template, self._added)
        self._marks: list[_Mark] = []
        for opening, closing in written:
            self._add(opening, closing, strict=True)
        self.expected = bool(written) or self._channels.written
        for opening, closing in _TABLE:
            if closing in self._added:
                self._add(opening, closing, strict=False)
        self.possible = bool(self._marks) or self._channels.written
        self._last: tuple[_Ids, _Mark | None] | None = None

    def parts(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> ResponseParts:
        """Return where the answer is. It begins after the thought with which the response, or its prompt, opens.

        Another thought right after the first belongs to it. Without a thought all is answer.
        """
        if self._channels.in_them(ids):
            start, end, name = self._channels.place(ids, self._decode)
            thinking = 0 if self._channels.only_final(ids, start) and name == FINAL_CHANNEL else start
            # A call of a tool, in another channel, is no thought.
            return ResponseParts(start, end, thinking, ended=name not in ("analysis", ""))
        inside = self._open_in(tuple(prompt_ids))
        at = start = 0
        while True:
            if inside is None:
                at = self._after_spaces(ids, at)
                inside = next((mark for mark in self._marks if _stands(mark.opening, ids, at)), None)
                if inside is None:
                    return ResponseParts(start, len(ids), start)
                at += len(inside.opening)
            place = _find(inside.closing, ids, at)
            if place is None:
                return ResponseParts(len(ids), len(ids), len(ids), ended=False)
            at = start = place + len(inside.closing)
            inside = None

    def answer(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
        """Return the answer's text, without special tokens and without line breaks after a thought."""
        parts = self.parts(prompt_ids, ids)
        text = self._decode(ids[parts.start : parts.end])
        return text.lstrip("\r\n") if parts.thinking else text

    def response(
        self,
        prompt_ids: Sequence[int],
        ids: Sequence[int],
        logprobs: Sequence[float],
        finish_reason: FinishReason,
        given: Message | None = None,
    ) -> Response:
        """Return the record of a response, with the text that labellers see; ``given``: as a data set has it."""
        parts = self.parts(prompt_ids, ids)
        hides = self._shown == "hide"
        if given is not None:
            text = self._without_thought(given, parts) if hides else given.shown
        elif hides or (self._shown == "earlier" and self._channels.in_them(ids)):
            text = self.answer(prompt_ids, ids)
        else:
            text = self._decode(ids)
        return Response(
            text,
            tuple(ids),
            tuple(logprobs),
            finish_reason,
            thinking_tokens=parts.thinking,
            hidden_tokens=parts.thinking if hides else 0,
            # Run folders begun before the setting go on to drop nothing for it.
            in_thought=not parts.ended and self._shown != "earlier",
        )

    def _without_thought(self, turn: Message, parts: ResponseParts) -> str:
        """Return the turn's text for readers, without its reasoning and without a thought in its content."""
        if not parts.ended:
            return ""
        extra = json.loads(turn.extra) if turn.extra else {}
        rest = {name: value for name, value in extra.items() if name not in _FIELDS}
        # A thought in a field of its own leaves the content to the answer, which may speak of marks.
        content = self._answer_in(turn.content, inside=rest == extra) if parts.thinking else turn.content
        return Message(turn.role, content, json.dumps(rest, ensure_ascii=False) if rest else "").shown

    def _answer_in(self, content: str, *, inside: bool) -> str:
        """Return what follows the thoughts with which ``content`` opens; ``inside``: it may begin inside of one."""
        while True:
            opened = [mark for mark in self._marks if content.lstrip().startswith(mark.opening_text)]
            cuts = [(content.find(mark.closing_text), mark.closing_text) for mark in opened or self._marks]
            at, closing = min(((at, closing) for at, closing in cuts if at >= 0), default=(-1, ""))
            if at < 0 or not (opened or inside):
                return content
            content, inside = content[at + len(closing) :].lstrip("\r\n"), False

    def _add(self, opening: str, closing: str, *, strict: bool) -> None:
        ids = self._encoded(closing)
        if strict and self._shown == "hide" and not self._bounded(closing):
            name = str(self._tokenizer.name_or_path or "the tokenizer")
            raise UserError(
                f"chat.thinking: hide: {name}: the chat template ends thoughts with {closing!r}, which is "
                f"{len(ids)} tokens of its tokenizer and none of its own, so thought and answer share tokens; allowed: "
                "chat.thinking: keep, or a tokenizer with a token for it"
            )
        mark = _Mark(self._encoded(opening), ids, opening, closing)
        if self._bounded(closing) and mark not in self._marks:
            self._marks.append(mark)

    def _bounded(self, mark: str) -> bool:
        """Whether the mark begins and ends with added tokens, which merge with nothing."""
        return any(map(mark.startswith, self._added)) and any(map(mark.endswith, self._added))

    def _encoded(self, text: str) -> _Ids:
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _open_in(self, prompt_ids: _Ids) -> _Mark | None:
        """Return the mark of the thought that the prompt leaves open: no control token follows it."""
        if self._last is None or self._last[0] != prompt_ids:
            end = len(prompt_ids)
            last = next((at for at in range(end - 1, -1, -1) if prompt_ids[at] in self._numbers), -1)
            begins = ((mark, last + 1 - len(mark.opening)) for mark in self._marks)
            # A user's text may hold an opening mark, too, but a header follows it.
            found = [mark for mark, at in begins if at >= 0 and _stands(mark.opening, prompt_ids, at)]
            self._last = prompt_ids, next(iter(found), None)
        return self._last[1]

    def _after_spaces(self, ids: Sequence[int], at: int) -> int:
        while at < len(ids) and ids[at] not in self._numbers and not self._decode(ids[at : at + 1]).strip():
            at += 1
        return at


def _stands(mark: _Ids, ids: Sequence[int], at: int) -> bool:
    return bool(mark) and tuple(ids[at : at + len(mark)]) == mark


def _find(mark: _Ids, ids: Sequence[int], at: int) -> int | None:
    """Return the first place from ``at`` where ``mark`` stands."""
    return next((i for i in range(at, len(ids) - len(mark) + 1) if ids[i] == mark[0] and _stands(mark, ids, i)), None)


def _written_marks(template: ChatTemplate, added: dict[str, int]) -> list[tuple[str, str]]:
    """Return the marks that the template writes around reasoning, opens a prompt's answer with, or cuts thoughts at."""
    prompt = _rendered(template, [_ASKED], asks=True)
    found: dict[tuple[str, str], None] = {}
    for field in _FIELDS:
        turn = Message("assistant", _ANSWER, json.dumps({field: _THOUGHT}))
        around = _around(prompt, _rendered(template, [_ASKED, turn], asks=False), added)
        if around is not None:
            found[around] = None
    for opening, closing in _TABLE:
        if closing in {known for _, known in found}:
            continue
        said = Message("assistant", f"{opening}{_THOUGHT}{closing}{_ANSWER}")
        later = _rendered(template, [_ASKED, said, _ASKED], asks=True)
        cuts = _ANSWER in later and _THOUGHT not in later
        # In the prompt: a thought is opened, or asked for in words.
        if cuts or prompt.rstrip(_SPACES).endswith(opening) or closing in prompt:
            found[opening, closing] = None
    return [*found]


def _around(prompt: str, whole: str, added: dict[str, int]) -> tuple[str, str] | None:
    """Return what stands before and after the thought in ``whole``; None if the thought is not written."""
    if _THOUGHT not in whole or _ANSWER not in whole.partition(_THOUGHT)[2]:
        return None
    before, _, rest = whole.partition(_THOUGHT)
    opening = _first(before[_shared(prompt.rstrip(_SPACES), before) :].strip(_SPACES), added)
    closing = _first(rest.partition(_ANSWER)[0].strip(_SPACES), added)
    if not closing:
        return None
    # The whole opening may be part of the prompt.
    known = {end: start for start, end in _TABLE}
    return opening or known.get(closing) or _last_word(prompt), closing


def _first(mark: str, added: dict[str, int]) -> str:
    """Return the first token of a mark that is a token alone, or several; a mark with words between them whole."""
    begins = max((token for token in added if token and mark.startswith(token)), key=len, default=None)
    rest = mark
    for token in sorted(filter(None, added), key=len, reverse=True):
        rest = rest.replace(token, "")
    return begins if begins is not None and not rest.strip(_SPACES) else mark


def _shared(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _last_word(text: str) -> str:
    return text.split()[-1] if text.split() else ""


def _rendered(template: ChatTemplate, messages: Sequence[Message], *, asks: bool) -> str:
    try:
        return template.render(messages, asks)
    except RefusedTurnsError:
        return ""
