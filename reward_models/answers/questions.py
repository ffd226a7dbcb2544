"""Questions to labellers: how good is one response, or which of two is better? Torch-free.

Answers are cached by content, so nothing is paid for twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from pipeline.types import Group, Prompt, Response, content_hash
from reward_models.answers.accounts import Accounts
from reward_models.answers.missing import Answer
from reward_models.labeller import Scorer


@dataclass(frozen=True, slots=True)
class Question:
    """With one response: how good is it? With two, in the order shown: is the first better?"""

    prompt: Prompt
    responses: tuple[Response, ...]

    def key(self, version: str) -> str:
        """Hash the labeller's version and everything that it may read, including the order."""
        prompt = [[m.parts for m in self.prompt.messages], self.prompt.answer]
        shown = [[response.text, response.finish_reason] for response in self.responses]
        criterion = [self.prompt.criterion] if self.prompt.criterion else []
        return content_hash([version, prompt, shown, *criterion], length=32)


OnAnswer = Callable[[int, Answer], None]


class AnswerSource(Protocol):
    """Anything that answers questions. ``version`` hashes everything but the question that decides an answer."""

    @property
    def version(self) -> str:
        """The labeller's part of every answer's key."""
        ...

    def answer(self, questions: Sequence[Question], done: OnAnswer) -> None:
        """Call ``done(index, answer)`` once per question, from this thread, as soon as its answer arrives."""
        ...


def ask(questions: Sequence[Question], source: AnswerSource, accounts: Accounts) -> list[Answer]:
    """Return answers in the order of ``questions``; ask ``source`` only what is not in the cache."""
    keys = [question.key(source.version) for question in questions]
    answers = {key: Answer(value, missing) for key, (value, missing) in accounts.cache.read(keys).items()}
    accounts.counts.update(questions=len(questions), cached=sum(key in answers for key in keys))
    unknown = {key: question for key, question in zip(keys, questions, strict=True) if key not in answers}
    asked = [*unknown]

    def done(index: int, answer: Answer) -> None:
        answers[asked[index]] = answer
        if answer.is_final:
            accounts.cache.write(asked[index], answer.value, answer.missing)
        accounts.counts["answered"] += 1
        accounts.changed()

    if asked:
        source.answer([*unknown.values()], done)
    given = [answers[key] for key in keys]
    accounts.missing.update(answer.missing for answer in given if answer.missing is not None)
    return given


class ScoredBy:
    """A scorer as an answer source for single responses."""

    def __init__(self, scorer: Scorer, version: str) -> None:
        self._scorer = scorer
        self._version = version

    @property
    def version(self) -> str:
        """The version given to the constructor."""
        return self._version

    def answer(self, questions: Sequence[Question], done: OnAnswer) -> None:
        """Score all in one call; neighbours with the same prompt form one group."""
        groups = [*_groups(questions)]
        scores = (score for given in self._scorer.score(groups) for score in given)
        for index, score in enumerate(scores):
            done(index, Answer(score, "abstained" if score is None else None))


def _groups(questions: Sequence[Question]) -> Iterator[Group]:
    for _, neighbours in groupby(questions, key=lambda question: (question.prompt.id, question.prompt.answer)):
        same = [*neighbours]
        yield Group(same[0].prompt, (), tuple(question.responses[0] for question in same))
