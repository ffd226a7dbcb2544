"""Labels of groups from answers: one question a response, or every two responses in both orders. Torch-free."""

from collections.abc import Iterator, Sequence

from pipeline.types import Group
from reward_models.answers.accounts import Accounts
from reward_models.answers.missing import Answer
from reward_models.answers.questions import AnswerSource, Question, ask
from reward_models.labeller import Labels, Scorer

Both = tuple[Answer, Answer]


class Uncached:
    """A scorer that costs nothing: labels are computed anew, since looking them up takes as long."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """Scores alone."""
        return [Labels(scores) for scores in self._scorer.score(groups)]


class OneByOne:
    """Each response is scored by itself."""

    def __init__(self, source: AnswerSource, accounts: Accounts) -> None:
        self._source = source
        self._accounts = accounts

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """Scores alone."""
        questions = [Question(group.prompt, (response,)) for group in groups for response in group.responses]
        answers = iter(ask(questions, self._source, self._accounts))
        return [Labels(tuple(next(answers).value for _ in group.responses)) for group in groups]


class TwoByTwo:
    """Every two responses are compared in both orders, and P(better) is the mean: neither place is worth anything.

    A comparison of which one order has no answer is missing: the other order alone would carry the judge's liking for
    a place (MT-bench, arXiv:2306.05685, section 3.3). A response's score is its mean P(better) over those it was
    compared with, the win rate. Equal texts are a tie that nobody is asked about.
    """

    def __init__(self, source: AnswerSource, accounts: Accounts, pairs_per_prompt: int | None) -> None:
        self._source = source
        self._accounts = accounts
        self._limit = pairs_per_prompt

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """Win matrices, and scores from 0 to 1."""
        places = [
            (number, one, other)
            for number, group in enumerate(groups)
            for one, other in self._pairs(group)
            if not _alike(group, one, other)
        ]
        questions = [
            Question(groups[number].prompt, (groups[number].responses[first], groups[number].responses[second]))
            for number, one, other in places
            for first, second in ((one, other), (other, one))
        ]
        answers = ask(questions, self._source, self._accounts)
        wins = [_unasked(group) for group in groups]
        for place, (number, one, other) in enumerate(places):
            better = self._mean((answers[2 * place], answers[2 * place + 1]))
            wins[number][one][other] = better
            wins[number][other][one] = None if better is None else 1.0 - better
        return [_labels(matrix) for matrix in wins]

    def _pairs(self, group: Group) -> Iterator[tuple[int, int]]:
        """Pairs of places: neighbours in a ring first, then those two apart, so that a few connect all responses."""
        count = len(group.responses)
        ring = [
            (one, (one + step) % count)
            for step in range(1, count // 2 + 1)
            # Half way round, each pair would come twice.
            for one in range(count // 2 if 2 * step == count else count)
        ]
        return iter(ring if self._limit is None else ring[: self._limit])

    def _mean(self, both: Both) -> float | None:
        """P(the first of the pair is better) over both orders."""
        one, other = both[0].value, both[1].value
        if one is None or other is None:
            return None
        forward, backward = one, 1.0 - other
        self._accounts.counts["compared"] += 1
        if (forward - 0.5) * (backward - 0.5) < 0:
            self._accounts.counts["contradicted"] += 1
        return (forward + backward) / 2


def _alike(group: Group, one: int, other: int) -> bool:
    first, second = group.responses[one], group.responses[other]
    return (first.text, first.finish_reason) == (second.text, second.finish_reason)


def _unasked(group: Group) -> list[list[float | None]]:
    """Wins before anybody is asked: 1/2 between equal texts."""
    places = range(len(group.responses))
    return [[0.5 if _alike(group, one, other) else None for other in places] for one in places]


def _labels(matrix: list[list[float | None]]) -> Labels:
    scores = []
    for place, row in enumerate(matrix):
        met = [p for column, p in enumerate(row) if column != place and p is not None]
        scores.append(sum(met) / len(met) if met else None)
    return Labels(tuple(scores), tuple(tuple(row) for row in matrix))
