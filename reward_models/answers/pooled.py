"""Labels by the engines of a reward model, each in a process of its own. Torch-free."""

from collections.abc import Sequence

from pipeline.types import Group
from reward_models.answers.accounts import Accounts
from reward_models.answers.missing import Answer
from reward_models.answers.parts import EnginePool
from reward_models.answers.questions import OnAnswer, Question


class PooledScores:
    """A scorer by engines of a classifier."""

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return one number per response; None for a conversation without tokens."""
        given = iter(self._pool.values(groups))
        return [tuple(next(given) for _ in group.responses) for group in groups]


class PooledComparisons:
    """An answer source by engines of a pairwise model."""

    def __init__(self, pool: EnginePool, version: str, accounts: Accounts) -> None:
        self._pool = pool
        self._version = version
        self._accounts = accounts

    @property
    def version(self) -> str:
        """The version given to the constructor."""
        return self._version

    def answer(self, questions: Sequence[Question], done: OnAnswer) -> None:
        """Answer each question as soon as an engine has computed it."""
        before = {**self._pool.facts}
        groups = [Group(question.prompt, (), question.responses) for question in questions]
        self._pool.values(groups, lambda place, value: done(place, Answer(value)))
        for name, value in self._pool.facts.items():
            self._accounts.counts[name] += int(str(value)) - int(str(before.get(name, 0)))
