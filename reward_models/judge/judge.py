"""A language model as a judge: questions in, verdicts out. Torch-free.

MT-bench (arXiv:2306.05685) for verdicts in words, G-Eval (arXiv:2303.16634, section 2) for the mean over a scale's
tokens. Unlike both, an answer without a verdict is a missing label: neither a tie nor a random draw.
"""

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pydantic import JsonValue

from pipeline.config import JudgeScorer
from pipeline.errors import UserError
from pipeline.types import content_hash
from reward_models.answers.accounts import Accounts
from reward_models.answers.missing import Answer
from reward_models.answers.questions import OnAnswer, Question
from reward_models.judge.budget import BudgetMeter
from reward_models.judge.endpoint import ChatEndpoint, ChatReply, FailedCallError
from reward_models.judge.prompt import JudgePrompt

TICK_SECONDS = 5.0
_SHOWN = 3
# The last line that holds a verdict counts. Decoration around the word is allowed, other words are not.
_DECORATION = r"[ \t\r*_`\"'\[\]().:#-]*"
_VERDICT = re.compile(rf"^{_DECORATION}verdict{_DECORATION}\b(a|b|tie|none)\b{_DECORATION}$", re.IGNORECASE | re.M)
_NUMBER = r"-?\d+(?:\.\d+)?"
_SCORE = re.compile(
    rf"^{_DECORATION}score[ \t*_`\"'\[(:]*(?:({_NUMBER})(?: */ *\d+)?|none)[ \t\r*_`\"'\]).]*$", re.IGNORECASE | re.M
)
_WINS: Mapping[str, float | None] = {"a": 1.0, "b": 0.0, "tie": 0.5, "none": None}


class Judge:
    """An answer source that asks a server."""

    def __init__(self, settings: JudgeScorer, accounts: Accounts, field: str = "scorer") -> None:
        """Raises ``UserError`` for a template that cannot be used or a key that is not set."""
        self._settings = settings
        self._accounts = accounts
        self._prompt = JudgePrompt(settings, field)
        plain = {**settings.identity(), "template": self._prompt.source}
        # The number of pairs asked changes no answer.
        plain.pop("pairs_per_prompt")
        self._version = content_hash(["judge", 1, plain])
        self._endpoint = ChatEndpoint(
            settings.server, BudgetMeter(settings.server, self._version, accounts), f"{field}.server"
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
                    calls = len(self._accounts.ledger.calls)
                    if finished or calls != settled:
                        # A caller that watches for stalls must see it when nothing finishes.
                        self._accounts.changed()
                    settled = calls
            except UserError:
                # The server refuses us; keep the answers that are already paid for.
                self._endpoint.stop()
                pool.shutdown(cancel_futures=True)
                for future, index in pending.items():
                    if not future.cancelled() and future.exception() is None and not future.result().missing:
                        done(index, future.result())
                raise
            except BaseException:
                # Whatever ended this, pay for nothing more.
                self._endpoint.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _judge(self, question: Question) -> Answer:
        text = self._prompt.render(question)
        max_tokens = 1 if self._settings.verdict == "logprobs" else self._settings.max_tokens
        try:
            reply = self._endpoint.ask(self._body(text, max_tokens), text, max_tokens)
        except FailedCallError as failure:
            return Answer(None, failure.cause)
        answer = _verdict(reply, self._settings)
        if answer.missing == "unparsed" and len(self._accounts.unparsed) < _SHOWN:
            self._accounts.unparsed.append(reply.text[-200:])
        return answer

    def _body(self, text: str, max_tokens: int) -> dict[str, JsonValue]:
        settings = self._settings
        body: dict[str, JsonValue] = {
            "model": settings.server.model,
            "messages": [{"role": "user", "content": text}],
            settings.max_tokens_field: max_tokens,
        }
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        if settings.verdict == "logprobs":
            body |= {"logprobs": True, "top_logprobs": settings.top_logprobs}
        return body


def _verdict(reply: ChatReply, settings: JudgeScorer) -> Answer:
    """Read ``reply`` as P(the first is better) or as a score on the scale; else the answer is missing."""
    if settings.verdict == "logprobs":
        if not reply.first:
            return Answer(None, "no_logprobs")
        return _pairwise_mass(reply) if settings.mode == "pairwise" else _mean_digit(reply, settings.scale)
    return _pairwise_words(reply.text) if settings.mode == "pairwise" else _marked(reply.text, settings.scale)


def _pairwise_words(text: str) -> Answer:
    said = [found[1].lower() for found in _VERDICT.finditer(text)]
    if not said:
        return Answer(None, "unparsed")
    value = _WINS[said[-1]]
    return Answer(value, "abstained" if value is None else None)


def _marked(text: str, scale: tuple[int, int]) -> Answer:
    said = [found[1] for found in _SCORE.finditer(text)]
    if not said:
        return Answer(None, "unparsed")
    if said[-1] is None:
        return Answer(None, "abstained")
    value = float(said[-1])
    return Answer(value) if scale[0] <= value <= scale[1] else Answer(None, "unparsed")


def _pairwise_mass(reply: ChatReply) -> Answer:
    first, second = _mass(reply, "A"), _mass(reply, "B")
    return Answer(first / (first + second)) if first + second > 0 else Answer(None, "unparsed")


def _mean_digit(reply: ChatReply, scale: tuple[int, int]) -> Answer:
    masses = {value: _mass(reply, str(value)) for value in range(scale[0], scale[1] + 1)}
    total = sum(masses.values())
    if total <= 0:
        return Answer(None, "unparsed")
    return Answer(sum(value * mass for value, mass in masses.items()) / total)


def _mass(reply: ChatReply, word: str) -> float:
    """Sum the probability of all alternatives that read as ``word``, with or without a space."""
    return math.fsum(math.exp(option.logprob) for option in reply.first if option.token.strip() == word)
