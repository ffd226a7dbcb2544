"""Chat completions from an OpenAI-compatible server: concurrent, rate-limited, with retries. Torch-free.

The key goes from the environment into a header and nowhere else.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx
from pydantic import BaseModel, Field, JsonValue, ValidationError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_any
from tenacity.stop import stop_when_event_set
from tenacity.wait import wait_random_exponential

from pipeline.config import Endpoint
from pipeline.errors import UserError
from pipeline.safe_text import redacted, visible
from reward_models.answers.missing import Missing
from reward_models.judge.budget import BudgetMeter

LONGEST_ANSWER = 16 * 1024 * 1024  # bytes


class Alternative(BaseModel):
    """A possible token at one position, and its natural-log probability."""

    token: str
    logprob: float = Field(le=0.01, allow_inf_nan=False)


class _Place(BaseModel):
    top_logprobs: list[Alternative] = Field(min_length=1)


class _Logprobs(BaseModel):
    content: list[_Place] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class ChatReply(BaseModel):
    """The model's answer: the text, and the alternatives to its first token if requested and returned."""

    text: str
    first: list[Alternative] = []


class FailedCallError(Exception):
    """A call without a usable answer. ``after``: seconds the server asks to wait; ``billed``: maybe charged."""

    def __init__(self, cause: Missing, billed: bool = False, after: float | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.billed = billed
        self.after = after


class _PassingError(FailedCallError):
    """A failure that may pass: worth another try."""


class ChatEndpoint:
    """A chat server. Many threads call ``ask`` while ``connected``; ``stop`` ends their waiting.

    Raises ``UserError`` if the variable that ``api_key_env`` names is not set.
    """

    def __init__(self, settings: Endpoint, budget: BudgetMeter, field: str) -> None:
        self._settings = settings
        self._budget = budget
        self._field = field
        self._key = api_key(settings, field)
        self._stopped = threading.Event()
        self._pace = threading.Lock()
        self._next = 0.0
        self._lost = 0
        self._backoff = wait_random_exponential(multiplier=settings.backoff, max=settings.max_wait)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Hold connections for the calls inside the block."""
        settings = self._settings
        local = httpx.URL(settings.base_url).host in ("127.0.0.1", "localhost", "::1")
        with httpx.Client(
            base_url=settings.base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(settings.timeout, pool=None),
            limits=httpx.Limits(max_connections=settings.concurrency),
            # A proxy must not be used for ports of this machine.
            trust_env=not local,
        ) as self._client:
            yield

    def ask(self, body: Mapping[str, JsonValue], text: str, max_tokens: int) -> ChatReply:
        """Ask one question; ``text`` is its whole text, from which the highest possible cost is computed.

        Raises:
            FailedCallError: no answer after all attempts, or a failure that retrying cannot fix.
            UserError: the server refuses the key, or does not know the model or address.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_any(stop_after_attempt(self._settings.attempts), stop_when_event_set(self._stopped)),
            wait=self._wait,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            reply: ChatReply = retrying(self._once, body, self._budget.highest_cost(text, max_tokens))
        except _PassingError as failure:
            self._lost += 1
            if self._lost >= self._settings.give_up_after:
                self._stopped.set()
            raise failure from None
        self._lost = 0
        return reply

    def stop(self) -> None:
        """Make no more calls."""
        self._stopped.set()

    def _wait(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome is not None else None
        jittered = self._backoff(state)
        if not isinstance(failure, FailedCallError) or failure.after is None:
            return jittered
        # Add jitter, so that calls rejected together do not come back together.
        return min(failure.after + min(jittered, 1.0), self._settings.max_wait)

    def _sleep(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _once(self, body: Mapping[str, JsonValue], highest: float) -> ChatReply:
        self._take_turn()
        if self._stopped.is_set():
            raise FailedCallError("unreachable")
        call = self._budget.reserve(highest)
        if call is None:
            raise FailedCallError("budget")
        outcome, tokens, billed = "interrupted", None, True
        try:
            completion = self._post(body)
            usage = completion.usage
            tokens = None if usage is None else (usage.prompt_tokens, usage.completion_tokens)
            reply = _reply(completion)
            outcome = "ok"
        except FailedCallError as failure:
            outcome, billed = failure.cause, failure.billed
            raise
        except UserError:
            self._stopped.set()
            outcome, billed = "refused", False
            raise
        finally:
            self._budget.settle(call, outcome, tokens, billed)
        return reply

    def _take_turn(self) -> None:
        rate = self._settings.requests_per_minute
        if rate is None:
            return
        with self._pace:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60 / rate
        self._sleep(turn - now)

    def _post(self, body: Mapping[str, JsonValue]) -> _Completion:
        deadline = time.monotonic() + self._settings.timeout
        content = bytearray()
        try:
            with self._client.stream("POST", "chat/completions", json=body) as answer:
                for part in answer.iter_bytes():
                    content += part
                    if time.monotonic() > deadline:
                        raise _PassingError("timeout", billed=True)
                    if len(content) > LONGEST_ANSWER:
                        raise _PassingError("malformed_answer", billed=True)
        except httpx.TimeoutException:
            raise _PassingError("timeout", billed=True) from None
        except httpx.ConnectError:
            raise _PassingError("connection") from None
        except httpx.HTTPError:
            # The connection broke, or the reply is not HTTP: the answer may have been made, and charged.
            raise _PassingError("connection", billed=True) from None
        if answer.status_code != httpx.codes.OK:
            self._turned_away(answer, bytes(content))
        try:
            return _Completion.model_validate_json(bytes(content))
        except ValidationError:
            raise _PassingError("malformed_answer", billed=True) from None

    def _turned_away(self, answer: httpx.Response, content: bytes) -> None:
        code = answer.status_code
        after = retry_after(answer.headers.get("Retry-After"))
        if code == httpx.codes.TOO_MANY_REQUESTS:
            raise _PassingError("rate_limited", after=after)
        if code >= 500 or code in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.CONFLICT):
            raise _PassingError("server_error", after=after)
        # Redact first: a cut could leave half a key.
        said = visible(redacted(content.decode("utf-8", "replace"), self._key), 300)
        where = f"{self._settings.base_url} (status {code}): {said}"
        if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            named = self._settings.api_key_env
            key = f"the key in {named}" if named else "a request without a key; name its variable there"
            raise UserError(f"{self._field}.api_key_env: the server refuses {key}: {where}")
        if code == httpx.codes.NOT_FOUND or 300 <= code < 400:
            raise UserError(f"{self._field}: no model {self._settings.model!r} at this address: {where}")
        raise FailedCallError("refused")


def api_key(settings: Endpoint, field: str) -> str | None:
    """Return the key if the settings name its variable. Raises ``UserError`` if the variable is not set."""
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise UserError(f"{field}.api_key_env: the environment variable {settings.api_key_env} is not set")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{field}.api_key_env: the value of {settings.api_key_env} is not a key (not plain ASCII)")
    return key


def retry_after(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; None for its other form, a date, which is left to the back-off."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _reply(completion: _Completion) -> ChatReply:
    if not completion.choices:
        raise _PassingError("empty_answer", billed=True)
    choice = completion.choices[0]
    places = choice.logprobs.content if choice.logprobs is not None else None
    text = choice.message.content or ""
    if not text.strip() and not places:
        raise _PassingError("empty_answer", billed=True)
    return ChatReply(text=text, first=places[0].top_logprobs if places else [])
