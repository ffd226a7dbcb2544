"""Chat completions from an OpenAI-compatible server: concurrent, rate-limited, with retries. Torch-free.

The key goes from the environment into a header and nowhere else.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx
from pydantic import JsonValue
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_any
from tenacity.stop import stop_when_event_set
from tenacity.wait import wait_random_exponential

from pipeline.config import Endpoint
from pipeline.errors import UserError
from reward_models.answers.missing import FINAL
from reward_models.judge.budget import BudgetMeter
from reward_models.judge.failures import FailedCallError, PassingError, ServerError, read_error, shown
from reward_models.judge.habits import Habits
from reward_models.judge.replies import ChatReply, beginning, parsed, read_reply, tokens_used

# A server may refuse single questions, such as long ones; one that has refused all so far refuses the rest too.
_LIKE_ALL = ("refused", "event_stream")
LONGEST_ANSWER = 16 * 1024 * 1024  # bytes


class ChatEndpoint:
    """A chat server. Many threads call ``ask`` while ``connected``; ``stop`` ends their waiting.

    Raises ``UserError`` if the variable that ``api_key_env`` names is not set.
    """

    def __init__(self, settings: Endpoint, budget: BudgetMeter, field: str, *, logprobs: bool = False) -> None:
        """``field``: the position of ``settings`` in the config; ``logprobs``: read log-probabilities."""
        self._settings = settings
        self._budget = budget
        self._field = field
        self._logprobs = logprobs
        self._habits = Habits(field.removesuffix(".server"))
        self.key = api_key(settings, field)
        self._stopped = threading.Event()
        self._pace = threading.Lock()
        self._next = 0.0
        self._lost = 0
        self._answered = False
        self._backoff = wait_random_exponential(multiplier=settings.backoff, max=settings.max_wait)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Hold connections for the calls inside the block."""
        settings = self._settings
        local = httpx.URL(settings.base_url).host in ("127.0.0.1", "localhost", "::1")
        with httpx.Client(
            base_url=settings.base_url.rstrip("/") + "/",
            headers=_key_headers(settings, self.key),
            params=dict(settings.query),
            timeout=httpx.Timeout(settings.timeout, pool=None),
            limits=httpx.Limits(max_connections=settings.concurrency),
            # A proxy must not be used for ports of this machine.
            trust_env=not local,
        ) as self._client:
            yield

    def ask(self, body: Mapping[str, JsonValue], text: str, max_tokens: int, more_tokens: int = 0) -> ChatReply:
        """Ask one question; ``text`` is its whole text, from which the highest possible cost is computed.

        ``more_tokens``: the most that what is no text, such as images, has.

        Raises:
            FailedCallError: no answer after all attempts, or a failure that retrying cannot fix.
            UserError: the server refuses the key, wants money, or does not know the model or address.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_any(stop_after_attempt(self._settings.attempts), stop_when_event_set(self._stopped)),
            wait=self._wait,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            reply: ChatReply = retrying(self._once, body, self._budget.highest_cost(text, max_tokens, more_tokens))
        except FailedCallError as failure:
            self._count(failure)
            raise failure from None
        self._lost = 0
        self._answered = True
        return reply

    def _count(self, failure: FailedCallError) -> None:
        """Stop asking after many questions in a row without an answer."""
        if failure.cause in FINAL:
            self._lost = 0
            self._answered = True
        elif isinstance(failure, PassingError) or (failure.cause in _LIKE_ALL and not self._answered):
            self._lost += 1
            if self._lost >= self._settings.give_up_after:
                self._stopped.set()

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
        while True:
            sent = self._habits.applied(body)
            try:
                return self._call(sent, highest)
            except FailedCallError as failure:
                if failure.error is None or not self._habits.learn(body, sent, failure.error):
                    raise

    def _call(self, body: Mapping[str, JsonValue], highest: float) -> ChatReply:
        self._take_turn()
        if self._stopped.is_set():
            raise FailedCallError("unreachable")
        call = self._budget.reserve(highest)
        if call is None:
            raise FailedCallError("budget")
        outcome, tokens, billed = "interrupted", None, True
        content = b""
        try:
            content, media = self._post(body)
            plain = parsed(content, media)
            tokens = tokens_used(plain)
            reply = read_reply(plain, logprobs=self._logprobs)
            outcome = "ok"
        except FailedCallError as failure:
            said = beginning(content) if failure.cause == "malformed_answer" else failure.said
            failure.said = shown(said, self.key)
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

    def _post(self, body: Mapping[str, JsonValue]) -> tuple[bytes, str]:
        """Return a reply without an error, and its Content-Type."""
        deadline = time.monotonic() + self._settings.timeout
        content = bytearray()
        try:
            with self._client.stream("POST", "chat/completions", json=body) as answer:
                for part in answer.iter_bytes():
                    content += part
                    if time.monotonic() > deadline:
                        raise PassingError("timeout", billed=True)
                    if len(content) > LONGEST_ANSWER:
                        raise PassingError("malformed_answer", billed=True)
        except httpx.TimeoutException:
            raise PassingError("timeout", billed=True) from None
        except httpx.ConnectError:
            raise PassingError("connection") from None
        except httpx.HTTPError:
            # The connection broke, or the reply is not HTTP: the answer may have been made, and charged.
            raise PassingError("connection", billed=True) from None
        error = read_error(answer.status_code, bytes(content))
        if error is not None:
            self._turned_away(error, retry_after(answer.headers), charged=answer.status_code == httpx.codes.OK)
        return bytes(content), answer.headers.get("Content-Type", "")

    def _turned_away(self, error: ServerError, after: float | None, *, charged: bool) -> None:
        """Raise what ``error`` means; ``charged``: it came under status 200, so the model may have been at work."""
        said, settings = error.sentence, self._settings
        where = f"{settings.base_url} (status {error.status}): {shown(said, self.key)}"
        match error.kind:
            case "no_credit":
                raise UserError(
                    f"{self._field}: the account has no credit left: {where}. All labels so far are kept; "
                    "the same command asks for the rest"
                )
            case "key":
                named = settings.api_key_env
                key = f"the key in {named}" if named else "a request without a key; name its variable there"
                raise UserError(f"{self._field}.api_key_env: the server refuses {key}: {where}")
            case "address":
                raise UserError(f"{self._field}: no model {settings.model!r} at this address: {where}")
            case "rate_limited" | "server_error" as cause:
                raise PassingError(cause, said, billed=charged, after=after, error=error)
            case "cut" | "declined" | "refused" as cause:
                # What was cut is charged: the model wrote up to its limit.
                raise FailedCallError(cause, said, billed=charged or cause == "cut", error=error)


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


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the server asks to wait; None for a date, which is left to the back-off."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name) or "") * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _key_headers(settings: Endpoint, key: str | None) -> dict[str, str]:
    if not key:
        return {}
    bearer = settings.key_header.lower() == "authorization"
    return {settings.key_header: f"Bearer {key}" if bearer else key}
