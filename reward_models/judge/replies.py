"""Replies of a chat server: the text of an answer and its tokens, read from as little as is needed. Torch-free."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import JsonValue

from reward_models.judge.failures import FailedCallError, PassingError, plain_word

# finish_reason of an answer that ended at its limit, and of one that a filter stopped.
CUT = frozenset(("length", "max_tokens", "model_length", "max_output_tokens", "model_context_window_exceeded"))
STOPPED = frozenset(("content_filter", "refusal", "safety", "prohibited_content", "blocklist", "recitation"))
_TAG_NAMES = ("think", "thinking", "thought", "thoughts", "reasoning", "analysis", "scratchpad")
_PREFIX = "(?:[a-z]{1,12}:)?"
# The marks that open and close thoughts in the text itself, where the server has no parser for them.
_MARKS = (
    *((f"<{_PREFIX}{name}>", f"</{_PREFIX}{name}>") for name in _TAG_NAMES),
    (r"\[THINK\]", r"\[/THINK\]"),
    ("◁think▷", "◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|channel\|>\s*analysis", r"<\|channel\|>\s*final\s*(?:<\|message\|>)?"),
)
_KINDS = tuple(
    re.compile(f"(?P<opening>{opening})|(?P<closing>{closing})", re.IGNORECASE) for opening, closing in _MARKS
)
_SPACES = re.compile(r"\s*")
_QUOTES = frozenset("`\"'“”‘’«»")
_LARGEST_LOGPROB = 0.01
_LOWEST_LOGPROB = -1e9  # stands for all below it, of which some fit into no float
_MOST_TOKENS = 10**9  # of one call; more is no count
_TAIL = 200


@dataclass(frozen=True, slots=True)
class Alternative:
    """A possible token at one position, and its natural-log probability."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The model's answer: its text without thoughts, and the alternatives to its first token if they were read."""

    text: str
    first: tuple[Alternative, ...] = ()


def parsed(content: bytes, media: str) -> dict[str, JsonValue]:
    """Return a reply's JSON; ``media`` is its Content-Type. Raises ``FailedCallError`` if it is not an object."""
    if media.lower().startswith("text/event-stream") or content.lstrip()[:6].startswith((b"data:", b"event:")):
        raise FailedCallError("event_stream", beginning(content), billed=True)
    try:
        plain = json.loads(content)
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict):
        raise PassingError("malformed_answer", billed=True)
    return plain


def beginning(content: bytes) -> str:
    """Return the first characters of a reply, to show what it is."""
    return content[:_TAIL].decode("utf-8", "replace")


def tokens_used(plain: dict[str, JsonValue]) -> tuple[int, int] | None:
    """Return the tokens of question and answer; None if the reply does not say."""
    usage = plain.get("usage")
    if not isinstance(usage, dict):
        return None
    question = _count(usage.get("prompt_tokens", usage.get("input_tokens")))
    answer = _count(usage.get("completion_tokens", usage.get("output_tokens")))
    if question is None or answer is None:
        return None
    # Some servers count thoughts in the total alone, and charge them as part of the answer.
    return question, max(answer, (_count(usage.get("total_tokens")) or 0) - question)


def read_reply(plain: dict[str, JsonValue], *, logprobs: bool) -> ChatReply:
    """Read the first answer; log-probabilities only if ``logprobs``. Raises ``FailedCallError`` with the cause."""
    choices = plain.get("choices")
    if not isinstance(choices, list) or (choices and not isinstance(choices[0], dict)):
        raise PassingError("malformed_answer", billed=True)
    if not choices:
        raise PassingError("empty_answer", billed=True)
    choice = choices[0]
    assert isinstance(choice, dict)
    message = choice.get("message") or {}
    if not isinstance(message, dict):
        raise PassingError("malformed_answer", billed=True)
    text, refusal = _text(message.get("content")), _text(message.get("refusal")) or _refused(message.get("content"))
    finish = plain_word(choice.get("finish_reason")).lower()
    if finish in STOPPED or (refusal.strip() and not text.strip()):
        raise FailedCallError("declined", refusal or f"finish_reason: {finish}", billed=True)
    first = _first(choice.get("logprobs")) if logprobs else ()
    if logprobs and (first or text.strip()):
        return ChatReply(text, first)
    return ChatReply(_answer(text, finish, _thoughts(message)))


def _answer(text: str, finish: str, thoughts: str) -> str:
    """Return the text after its thoughts, if it is whole."""
    answer, thought = without_thoughts(text)
    if finish in CUT:
        # What looks like a verdict may be a draft.
        raise FailedCallError("cut", (text or thoughts)[-_TAIL:], billed=True)
    if answer.strip():
        return answer
    if thought or thoughts.strip():
        raise FailedCallError("reasoning_only", (text or thoughts)[-_TAIL:], billed=True)
    raise PassingError("empty_answer", billed=True)


def without_thoughts(text: str) -> tuple[str, bool]:
    """Return the text after the model's thoughts, and whether it had any. Thoughts that do not end leave nothing.

    Only what ``text`` begins with is a thought; marks further on are quoted from the responses that it is about.
    """
    start = 0
    while (kind := _opened(text, start)) is not None:
        end = _end(text, start, kind)
        if end is None:
            return "", True
        start = end
    if start == 0:
        # Chat templates often write the opening mark into the question, so the first mark may close a thought.
        firsts = (next(_marks(text, kind), None) for kind in _KINDS)
        first = min((mark for mark in firsts if mark is not None), key=re.Match.start, default=None)
        if first is not None and first["closing"]:
            start = first.end()
    return text[start:], start > 0


def _opened(text: str, start: int) -> re.Pattern[str] | None:
    """Return the kind of the thought that begins at ``start``, after spaces; None if none does."""
    spaces = _SPACES.match(text, start)
    begin = start if spaces is None else spaces.end()
    found = ((kind, kind.match(text, begin)) for kind in _KINDS)
    return next((kind for kind, mark in found if mark is not None and mark["opening"]), None)


def _end(text: str, start: int, kind: re.Pattern[str]) -> int | None:
    """Return the end of the thought that begins at ``start``, with thoughts inside it; None if it is not closed."""
    depth, end, last = 0, None, None
    for mark in _marks(text, kind, start):
        if mark["closing"]:
            depth, last = depth - 1, mark.end()
            end = end or last
            if depth == 0:
                return last
        elif depth == 0 or not _is_word(text, mark):
            depth, end = depth + 1, None
    # An opening mark that the thought only mentions is never closed, and the answer may quote closing ones.
    return end or last


def _is_word(text: str, mark: re.Match[str]) -> bool:
    """Return whether a mark stands between two spaces, as a word of a sentence."""
    return text[mark.start() - 1 : mark.start()] == text[mark.end() : mark.end() + 1] == " "


def _marks(text: str, kind: re.Pattern[str], start: int = 0) -> Iterator[re.Match[str]]:
    """Yield the marks of one kind, without those in quotation marks or backticks."""
    for mark in kind.finditer(text, start):
        around = (text[mark.start() - 1 : mark.start()], text[mark.end() : mark.end() + 1])
        if not _QUOTES.issuperset(around):
            yield mark


def _text(content: JsonValue) -> str:
    """Return the text of a content: a string, or parts of which only text counts."""
    return "".join(map(_part, content if isinstance(content, list) else [content]))


def _part(part: JsonValue) -> str:
    if isinstance(part, dict) and part.get("type") in (None, "text", "output_text"):
        part = part.get("text")
    return part if isinstance(part, str) else ""


def _refused(content: JsonValue) -> str:
    parts = content if isinstance(content, list) else []
    said = [part.get("refusal") for part in parts if isinstance(part, dict) and part.get("type") == "refusal"]
    return " ".join(part for part in said if isinstance(part, str))


def _thoughts(message: dict[str, JsonValue]) -> str:
    """Return thoughts that a server hands over apart from the text; a note where they are not plain text."""
    content = message.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    apart = [message.get(name) for name in ("reasoning_content", "reasoning", "thinking", "reasoning_details")]
    apart += [part.get("thinking", True) for part in parts if part.get("type") in ("thinking", "reasoning")]
    thoughts = next((value for value in apart if value), "")
    return thoughts if isinstance(thoughts, str) else "thoughts apart from the text"


def _first(logprobs: JsonValue) -> tuple[Alternative, ...]:
    """Return the alternatives to the first token; empty if there are none."""
    if not isinstance(logprobs, dict):
        return ()
    places = logprobs.get("content")
    if isinstance(places, list):
        place = places[0] if places else None
        top = place.get("top_logprobs") if isinstance(place, dict) else None
    else:
        # The form of the older completions: a mapping for each token.
        older = logprobs.get("top_logprobs")
        mapping = older[0] if isinstance(older, list) and older else None
        pairs = mapping.items() if isinstance(mapping, dict) else ()
        top = [{"token": token, "logprob": logprob} for token, logprob in pairs]
    return tuple(map(_alternative, top if isinstance(top, list) else ()))


def _alternative(plain: JsonValue) -> Alternative:
    token, logprob = (plain.get("token"), plain.get("logprob")) if isinstance(plain, dict) else (None, None)
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise PassingError("malformed_answer", billed=True)
    # No comparison is true of NaN.
    if not logprob <= _LARGEST_LOGPROB:
        raise PassingError("malformed_answer", billed=True)
    return Alternative(token, float(max(logprob, _LOWEST_LOGPROB)))


def _count(value: JsonValue) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_TOKENS:
        return None
    return int(value) if value == int(value) else None
