"""What standard evaluations add to a round: answers, labels, calls to judges, and time where rates are known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import JudgeScorer, RunConfig, scorers_of
from pipeline.config.evaluation.suites import (
    ArenaHardSuite,
    IfevalSuite,
    LmEvalSuite,
    RewardBenchSuite,
    Suite,
    suite_judge,
    suite_name,
)
from pipeline.data.files.suite_rows import questions, suite_rows

# Both orders of two answers, or one question for each of two answers.
ASKED_OF_TWO = 2
Lengths = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class SuiteWork:
    """The work of a suite each time that it is measured.

    Attributes:
        name, every: of the suite; rounds between two measurements, from round 0.
        rows: questions to the policy, or pairs to a labeller; None: known only once the harness has loaded its tasks.
        sampled: tokens of the policy's answers, at most; ``read`` tokens of the questions before them.
        labelled: answers or pairs that labellers score; ``calls`` of them are asked of judges.
        tokens_labelled: tokens of these, with their questions, at most.
    """

    name: str
    every: int
    rows: int | None
    sampled: int | None = None
    read: int | None = None
    labelled: int = 0
    calls: int = 0
    tokens_labelled: int = 0

    def seconds(self, rates: Mapping[str, float]) -> float | None:
        """Seconds at ``rates``, in tokens a second by kind of work; None where one is not known."""
        work = {"sampling": self.sampled, "labelling": self.tokens_labelled}
        if self.rows is None or any(count is None or (count and kind not in rates) for kind, count in work.items()):
            return None
        return sum(count / rates[kind] for kind, count in work.items() if count)


def suite_works(config: RunConfig, length: Lengths) -> list[SuiteWork]:
    """The work of each suite of ``config``; ``length``: tokens of a text. Raises ``UserError`` for a file's faults."""
    return [_work(config, suite, length) for suite in config.evaluation.suites]


def suite_rows_shown(works: Sequence[SuiteWork], rates: Mapping[str, float] | None) -> list[list[str]]:
    """Cells for a table: suite, when, rows, tokens, labels, calls and, with ``rates``, seconds."""
    rows = []
    for work in works:
        cells = [
            f"suite: {work.name}",
            "each" if work.every == 1 else f"each {work.every}",
            _count(work.rows),
            _count(work.sampled),
            _count(work.labelled),
            _count(work.calls),
        ]
        if rates is not None:
            took = work.seconds(rates)
            cells.append("?" if took is None else f"{took:,.1f}")
        rows.append(cells)
    return rows


def _work(config: RunConfig, suite: Suite, length: Lengths) -> SuiteWork:
    name = suite_name(suite)
    if isinstance(suite, LmEvalSuite):
        # Loading tasks may read a hub, and takes minutes: a plan starts nothing.
        return SuiteWork(name, suite.every, None)
    judges = _judges(config, suite)
    if isinstance(suite, RewardBenchSuite):
        rows = [record.values for record in suite_rows(suite, suite.file)]
        tokens = sum(length(str(row.get(part, ""))) for row in rows for part in ("prompt", "chosen", "rejected"))
        calls = ASKED_OF_TWO * len(rows) * judges
        return SuiteWork(name, suite.every, len(rows), 0, 0, ASKED_OF_TWO * len(rows), calls, ASKED_OF_TWO * tokens)
    asked = [prompt.messages[-1].content for prompt in questions(suite)]
    most = config.sampling.max_tokens if suite.max_tokens is None else suite.max_tokens
    read, sampled = sum(map(length, asked)), most * len(asked)
    if isinstance(suite, IfevalSuite):
        return SuiteWork(name, suite.every, len(asked), sampled, read)
    labelled = ASKED_OF_TWO * len(asked)
    # The baseline's answers are taken to be as long as the longest that the policy may give.
    tokens = ASKED_OF_TWO * (read + ASKED_OF_TWO * sampled)
    return SuiteWork(name, suite.every, len(asked), sampled, read, labelled, labelled * judges, tokens)


def _judges(config: RunConfig, suite: Suite) -> int:
    """How many judges are asked each question of the suite: the members of an ensemble, each."""
    if isinstance(suite, ArenaHardSuite):
        return 1
    settings = suite_judge(suite) or (config.scorer if isinstance(suite, RewardBenchSuite) else None)
    return 0 if settings is None else sum(isinstance(one, JudgeScorer) for _, one in scorers_of(settings))


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
