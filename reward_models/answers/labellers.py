"""Labels of groups from answers: one question per response, or every pair in both orders. Torch-free."""

from collections.abc import Iterator, Sequence

from pipeline.types import Group
from reward_models.answers.accounts import Accounts
from reward_models.answers.missing import Answer
from reward_models.answers.questions import AnswerSource, Question, ask
from reward_models.labeller import Labels, Scorer

Both = tuple[Answer, Answer]


class Uncached:
    """A scorer so cheap that computing a label takes no longer than looking it up."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """Return labels with scores only."""
        return [Labels(scores) for scores in self._scorer.score(groups)]


class OneByOne:
    """Score each response by itself."""

    def __init__(self, source: AnswerSource, accounts: Accounts) -> None:
        self._source = source
        self._accounts = accounts

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """Return labels with scores only."""
        questions = [Question(group.prompt, (response,)) for group in groups for response in group.responses]
        answers = iter(ask(questions, self._source, self._accounts))
        return [Labels(tuple(next(answers).value for _ in group.responses)) for group in groups]


class TwoByTwo:
    """Compare every two responses in both orders; P(better) is the mean, so position does not matter.

    If one order has no answer, the comparison is missing: the other order alone would carry the judge's position bias
    (MT-bench, arXiv:2306.05685, section 3.3). A response's score is its win rate: the mean P(better) over the responses
    that it was compared with. Equal texts are a tie and are not asked about.
    """

    def __init__(self, source: AnswerSource, accounts: Accounts, pairs_per_prompt: int | None) -> None:
        self._source = source
        self._accounts = accounts
        self._limit = pairs_per_prompt

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """Return win matrices, and scores from 0 to 1."""
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
        return [labels_of_wins(matrix) for matrix in wins]

    def _pairs(self, group: Group) -> Iterator[tuple[int, int]]:
        """Return index pairs: ring neighbours first, then those two apart, so that few pairs connect all responses."""
        count = len(group.responses)
        ring = [
            (one, (one + step) % count)
            for step in range(1, count // 2 + 1)
            # Halfway round, each pair would come twice.
            for one in range(count // 2 if 2 * step == count else count)
        ]
        return iter(ring if self._limit is None else ring[: self._limit])

    def _mean(self, both: Both) -> float | None:
        """Return P(the first is better), the mean over both orders."""
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
    """Return the win matrix before any question: 1/2 between equal texts, else None."""
    places = range(len(group.responses))
    return [[0.5 if _alike(group, one, other) else None for other in places] for one in places]


def labels_of_wins(matrix: list[list[float | None]]) -> Labels:
    """Return a win matrix, and as scores the mean of each row's other cells."""
    scores = []
    for place, row in enumerate(matrix):
        met = [p for column, p in enumerate(row) if column != place and p is not None]
        scores.append(sum(met) / len(met) if met else None)
    return Labels(tuple(scores), tuple(tuple(row) for row in matrix))
