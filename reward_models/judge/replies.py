"""Replies of a chat server: the text of an answer and its tokens, read from as little as is needed. Torch-free."""

import json
import math
import re
from dataclasses import dataclass

from pydantic import JsonValue

from reward_models.judge.failures import FailedCallError, PassingError

# finish_reason of an answer that ended at its limit, and of one that a filter stopped.
CUT = frozenset(("length", "max_tokens", "model_length", "max_output_tokens", "model_context_window_exceeded"))
STOPPED = frozenset(("content_filter", "refusal", "safety", "prohibited_content", "blocklist", "recitation"))
# Thoughts in the text itself, where the server has no parser for them. Chat templates often write the opening mark
# into the question, so a closing mark alone ends them too.
_THOUGHT = r"(?:[a-z]{1,12}:)?(?:think(?:ing)?|thoughts?|reasoning|analysis|scratchpad)"
_CLOSED = re.compile(
    rf"</{_THOUGHT}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>\s*final\s*(?:<\|message\|>)?",
    re.IGNORECASE,
)
_OPENED = re.compile(
    rf"^[ \t]*(?:<{_THOUGHT}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>\s*analysis)",
    re.IGNORECASE | re.MULTILINE,
)
_LARGEST_LOGPROB = 0.01
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
    finish = str(choice.get("finish_reason") or "").lower()
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
    """Return the text after the model's thoughts, and whether it had any. Thoughts that do not end leave nothing."""
    start = max((closing.end() for closing in _CLOSED.finditer(text)), default=0)
    opening = _OPENED.search(text, start)
    return text[start : None if opening is None else opening.start()], start > 0 or opening is not None


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
    fits = isinstance(logprob, int | float) and not math.isnan(logprob) and logprob <= _LARGEST_LOGPROB
    if not isinstance(token, str) or not fits:
        raise PassingError("malformed_answer", billed=True)
    return Alternative(token, float(str(logprob)))


def _count(value: JsonValue) -> int | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == value // 1
    return int(str(value).removesuffix(".0")) if whole else None
