"""What labellers are asked: how good one response is, or which of two is better. Torch-free.

Every answer is kept by content, so that nothing is paid for twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from pipeline.types import Group, Prompt, Response, content_hash
from reward_models.answers.accounts import Accounts
from reward_models.answers.missing import FINAL, Answer
from reward_models.labeller import Scorer


@dataclass(frozen=True, slots=True)
class Question:
    """About one response: how good is it? About two, in the order in which they are shown: is the first better?"""

    prompt: Prompt
    responses: tuple[Response, ...]

    def key(self, version: str) -> str:
        """Hash of the labeller's version and of all that it may read, the order included."""
        prompt = [[[m.role, m.content] for m in self.prompt.messages], self.prompt.answer]
        shown = [[response.text, response.finish_reason] for response in self.responses]
        return content_hash([version, prompt, shown], length=32)


OnAnswer = Callable[[int, Answer], None]


class AnswerSource(Protocol):
    """Where answers come from. ``version`` is a hash of all that decides them, but for the question."""

    @property
    def version(self) -> str:
        """Part of the key of every answer."""
        ...

    def answer(self, questions: Sequence[Question], done: OnAnswer) -> None:
        """Call ``done(index, answer)`` once for each question, as soon as its answer is there, from this thread."""
        ...


def ask(questions: Sequence[Question], source: AnswerSource, accounts: Accounts) -> list[Answer]:
    """Answers in the order of ``questions``; only those are asked of ``source`` that nobody asked before."""
    keys = [question.key(source.version) for question in questions]
    answers = {key: Answer(value, missing) for key, (value, missing) in accounts.cache.read(keys).items()}
    accounts.counts.update(questions=len(questions), cached=sum(key in answers for key in keys))
    unknown = {key: question for key, question in zip(keys, questions, strict=True) if key not in answers}
    asked = [*unknown]

    def done(index: int, answer: Answer) -> None:
        answers[asked[index]] = answer
        if answer.missing is None or answer.missing in FINAL:
            accounts.cache.write(asked[index], answer.value, answer.missing)
        accounts.counts["answered"] += 1
        accounts.changed()

    if asked:
        source.answer([*unknown.values()], done)
    given = [answers[key] for key in keys]
    accounts.missing.update(answer.missing for answer in given if answer.missing is not None)
    return given


class ScoredBy:
    """A scorer as a source of answers about single responses."""

    def __init__(self, scorer: Scorer, version: str) -> None:
        self._scorer = scorer
        self._version = version

    @property
    def version(self) -> str:
        """As it was given."""
        return self._version

    def answer(self, questions: Sequence[Question], done: OnAnswer) -> None:
        """All in one call of the scorer, neighbours with one prompt as one group."""
        groups = [*_groups(questions)]
        scores = (score for given in self._scorer.score(groups) for score in given)
        for index, score in enumerate(scores):
            done(index, Answer(score, "abstained" if score is None else None))


def _groups(questions: Sequence[Question]) -> Iterator[Group]:
    for _, neighbours in groupby(questions, key=lambda question: (question.prompt.id, question.prompt.answer)):
        same = [*neighbours]
        yield Group(same[0].prompt, (), tuple(question.responses[0] for question in same))
