"""Failed calls: what a server's error says, and whether asking again can help. Torch-free."""

import json
import re
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from pipeline.safe_text import redacted, visible
from reward_models.answers.missing import Missing

LONGEST_SAID = 300  # characters

# Who must act on an error: the run stops for the first three; the others concern one question.
Kind = Literal["no_credit", "key", "address", "rate_limited", "server_error", "declined", "cut", "refused"]

_NO_CREDIT = frozenset(
    ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "exceeded_current_quota_error")
)
# Gemini says "exceeded your current quota" for limits per minute too, so that sentence alone does not count.
_NO_CREDIT_SAID = re.compile(
    r"credit balance is too low|insufficient[ _](?:account[ _])?(?:balance|credits?|funds)|out of credits"
    r"|used all (?:of )?(?:its |your )?(?:available )?credits|(?:does not|doesn't) have any credits",
    re.IGNORECASE,
)
_DECLINED = frozenset(
    ("content_filter", "content_policy_violation", "invalid_prompt", "responsibleaipolicyviolation",
     "moderation_blocked", "data_inspection_failed", "prohibited_content")
)  # fmt: skip
_TOO_LONG = re.compile(r"context (?:size|length|window).{0,80}exceed|exceed.{0,80}context (?:size|length|window)", re.I)
_UNFINISHED = re.compile(r"could not finish the message because max_tokens", re.IGNORECASE)
# Statuses that errors under status 200 stand for, where they name no number.
_STATUS_OF = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "too_many_requests": 429,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "invalid_request_error": 400,
    "bad_request_error": 400,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
}


@dataclass(frozen=True, slots=True)
class ServerError:
    """What a server said went wrong.

    Attributes:
        status: the HTTP status, or the one that an error under status 200 stands for.
        names: the codes and types that the error carries, in lower case.
        param: the parameter that the error is about, if it names one.
        sentence: its text, as the server wrote it; may hold the key.
        flagged: true if the error lists reasons of a moderation.
    """

    status: int
    names: frozenset[str]
    param: str
    sentence: str
    flagged: bool = False

    @property
    def kind(self) -> Kind:
        """Return what the error means for the run."""
        status, names, sentence = self.status, self.names, self.sentence
        if status == 402 or names & _NO_CREDIT:
            return "no_credit"
        if status in (400, 403, 429) and _NO_CREDIT_SAID.search(sentence):
            return "no_credit"
        if names & _DECLINED or (self.flagged and status in (400, 403)):
            return "declined"
        if status in (401, 403):
            return "key"
        if status in (404, 405, 410) or 300 <= status < 400:
            return "address"
        if status == 429:
            return "rate_limited"
        if "exceed_context_size_error" in names or (status >= 500 and _TOO_LONG.search(sentence)):
            return "refused"
        if status >= 500 or status in (408, 409, 425):
            return "server_error"
        return "cut" if _UNFINISHED.search(sentence) else "refused"


class FailedCallError(Exception):
    """A call without a usable answer.

    Attributes:
        said: what the server or the model said, to show to people.
        billed: true if the call may be charged.
        after: seconds that the server asks to wait.
        error: the server's error, if it sent one.
    """

    def __init__(
        self,
        cause: Missing,
        said: str = "",
        *,
        billed: bool = False,
        after: float | None = None,
        error: ServerError | None = None,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.said = said
        self.billed = billed
        self.after = after
        self.error = error


class PassingError(FailedCallError):
    """A failure that may pass: worth another try."""


def read_error(status: int, content: bytes) -> ServerError | None:
    """Read the error in a reply; None if ``status`` is 200 and the reply holds none."""
    try:
        plain: JsonValue = json.loads(content)
    except (ValueError, RecursionError):
        plain = None
    found = _error_in(plain)
    if status == 200:
        return None if found is None else _read(_stood_for(found), found, "")
    return _read(status, found, content.decode("utf-8", "replace"))


def shown(text: str, key: str | None) -> str:
    """Return ``text`` for people: without the key, cut to ``LONGEST_SAID``."""
    # Redact first: a cut could leave half a key.
    return visible(redacted(text, key), LONGEST_SAID).strip()


def plain_word(value: JsonValue) -> str:
    """Return a string or number of a reply as text; empty for anything else, which may be nested without end."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _error_in(plain: JsonValue) -> JsonValue:
    """Find the error in a reply: OpenAI's form and those of vLLM, Google, FastAPI, Anthropic, MiniMax, OpenRouter."""
    if isinstance(plain, list):
        plain = plain[0] if plain else None
    if not isinstance(plain, dict):
        return None
    if plain.get("error"):
        return plain["error"]
    if plain.get("object") == "error" or plain.get("success") is False:
        return plain
    base = plain.get("base_resp")
    if isinstance(base, dict) and base.get("status_code"):
        return {"message": base.get("status_msg"), "code": base.get("status_code")}
    choices = plain.get("choices")
    if isinstance(choices, list):
        first = choices[0] if choices else None
        return _of_choice(first) if isinstance(first, dict) else None
    said = [name for name in ("message", "detail", "errors", "error_message") if plain.get(name)]
    return plain if said else None


def _of_choice(choice: dict[str, JsonValue]) -> JsonValue:
    if choice.get("error"):
        return choice["error"]
    return {"message": "finish_reason: error"} if choice.get("finish_reason") == "error" else None


def _read(status: int, found: JsonValue, raw: str) -> ServerError:
    error = found if isinstance(found, dict) else {}
    metadata, inner = error.get("metadata"), error.get("innererror", error.get("inner_error"))
    carriers = [error, *(part for part in (metadata, inner) if isinstance(part, dict))]
    names = {plain_word(part.get(name)).lower() for part in carriers for name in ("code", "type", "status")} - {""}
    behind = metadata.get("raw") if isinstance(metadata, dict) else None
    said = [_sentence(found) or raw, behind if isinstance(behind, str) else ""]
    return ServerError(
        status,
        frozenset(names),
        plain_word(error.get("param")),
        " ".join(part for part in said if part),
        isinstance(metadata, dict) and bool(metadata.get("reasons") or metadata.get("flagged_input")),
    )


def _sentence(found: JsonValue, depth: int = 4) -> str:
    """Return the error's text. Validation errors name their places; what they quote of the request is left out."""
    match found:
        case str():
            return found
        case list() if depth:
            return "; ".join(filter(None, (_sentence(one, depth - 1) for one in found[:3])))
        case dict() if depth:
            for name in ("message", "msg", "detail", "error", "errors", "error_message"):
                said = _sentence(found.get(name), depth - 1)
                if said:
                    place = found.get("loc")
                    return f"{'.'.join(map(plain_word, place[:8]))}: {said}" if isinstance(place, list) else said
    return ""


def _stood_for(found: JsonValue) -> int:
    """Return the HTTP status that an error under status 200 stands for; 500 if it does not say."""
    if not isinstance(found, dict):
        return 500
    for name in ("code", "status", "type"):
        value = found.get(name)
        if isinstance(value, str) and len(value) == 3 and value.isdecimal():
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
        if isinstance(value, str) and value.lower() in _STATUS_OF:
            return _STATUS_OF[value.lower()]
    return 500
