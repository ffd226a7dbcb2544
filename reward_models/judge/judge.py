"""A language model as a judge: questions in, verdicts out. Torch-free.

MT-bench (arXiv:2306.05685) for verdicts in words, G-Eval (arXiv:2303.16634, section 2) for the mean over a scale's
tokens. Unlike both, an answer without a verdict is a missing label: neither a tie nor a random draw.
"""

import math
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from pipeline.config import JudgeScorer
from pipeline.errors import UserError
from pipeline.types import content_hash
from reward_models.answers.accounts import Accounts
from reward_models.answers.missing import Answer
from reward_models.answers.questions import OnAnswer, Question
from reward_models.judge.budget import BudgetMeter
from reward_models.judge.endpoint import ChatEndpoint
from reward_models.judge.failures import FailedCallError, shown
from reward_models.judge.prompt import JudgePrompt
from reward_models.judge.replies import ChatReply
from reward_models.judge.verdicts import read_verdict

TICK_SECONDS = 5.0
_SHOWN = 3


class QuestionForm(Protocol):
    """A way to put a question to a chat server.

    Attributes:
        source: the template's text, which is part of the labels' version.
    """

    source: str

    def render(self, question: Question) -> str:
        """Return the question's text."""
        ...

    def content(self, question: Question, text: str) -> JsonValue:
        """Return the content of the message that asks ``question``, whose text is ``text``."""
        ...

    def more_tokens(self, question: Question) -> int:
        """Return the most tokens that the content has besides the text's."""
        ...


@dataclass(frozen=True)
class Heard:
    """A question as the server got it, what it said to it (the error, if it failed), and what that means."""

    text: str
    reply: str
    answer: Answer


class Judge:
    """An answer source that asks a server."""

    def __init__(
        self, settings: JudgeScorer, accounts: Accounts, field: str = "scorer", form: QuestionForm | None = None
    ) -> None:
        """Raises ``UserError`` for a template that cannot be used or a key that is not set.

        ``form``: default: texts alone.
        """
        self._settings = settings
        self._accounts = accounts
        self._prompt: QuestionForm = JudgePrompt(settings, field) if form is None else form
        plain = {**settings.identity(), "template": self._prompt.source}
        # The number of pairs asked changes no answer.
        plain.pop("pairs_per_prompt")
        self._version = content_hash(["judge", 1, plain])
        self._endpoint = ChatEndpoint(
            settings.server,
            BudgetMeter(settings.server, self._version, accounts),
            f"{field}.server",
            logprobs=settings.verdict == "logprobs",
        )

    @property
    def version(self) -> str:
        """Hash of model, model version, template and settings, but not of the server's address."""
        return self._version

    def answer(self, questions: Sequence[Question], done: OnAnswer) -> None:
        """Ask many questions at once; hand over each answer as it arrives."""
        with self._endpoint.connected(), ThreadPoolExecutor(self._settings.server.concurrency) as pool:
            pending: dict[Future[Answer], int] = {
                pool.submit(self._judge, question): index for index, question in enumerate(questions)
            }
            settled = 0
            try:
                while pending:
                    finished, _ = wait(pending, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done(pending.pop(future), future.result())
                    calls = self._accounts.ledger.finished
                    if finished or calls != settled:
                        # A caller that watches for stalls must see it when nothing finishes.
                        self._accounts.changed()
                    settled = calls
            except (UserError, OSError):
                # The server refuses us, or a call cannot be written down. Answers that are paid for are kept, also
                # those without a verdict.
                self._endpoint.stop()
                pool.shutdown(cancel_futures=True)
                for future, index in pending.items():
                    if not future.cancelled() and future.exception() is None and future.result().is_final:
                        done(index, future.result())
                raise
            except BaseException:
                # Whatever ended this, pay for nothing more.
                self._endpoint.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def hear(self, question: Question) -> Heard:
        """Ask one question alone; return what was sent and what came back. Raises ``UserError`` if refused."""
        with self._endpoint.connected():
            return self._heard(question)

    def _judge(self, question: Question) -> Answer:
        return self._heard(question).answer

    def _heard(self, question: Question) -> Heard:
        text = self._prompt.render(question)
        max_tokens = 1 if self._settings.verdict == "logprobs" else self._settings.max_tokens
        try:
            body = self._body(self._prompt.content(question, text), max_tokens)
            reply = self._endpoint.ask(body, text, max_tokens, self._prompt.more_tokens(question))
        except FailedCallError as failure:
            if failure.said:
                self._accounts.said.setdefault(failure.cause, failure.said)
            return Heard(text, failure.said, Answer(None, failure.cause))
        answer = read_verdict(reply, self._settings)
        if answer.missing == "unparsed" and len(self._accounts.unparsed) < _SHOWN:
            self._accounts.unparsed.append(shown(reply.text[-200:], self._endpoint.key))
        return Heard(text, _shown_reply(reply), answer)

    def _body(self, content: JsonValue, max_tokens: int) -> dict[str, JsonValue]:
        settings = self._settings
        body: dict[str, JsonValue] = {
            "model": settings.server.model,
            "messages": [{"role": "user", "content": content}],
            "stream": False,
            settings.max_tokens_field: max_tokens,
        }
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        if settings.verdict == "logprobs":
            body |= {"logprobs": True, "top_logprobs": settings.top_logprobs}
        return body


def _shown_reply(reply: ChatReply) -> str:
    likely = ", ".join(f"{one.token!r} {math.exp(one.logprob):.3g}" for one in reply.first[:_SHOWN])
    return reply.text + (f"  [likely: {likely}]" if likely else "")
