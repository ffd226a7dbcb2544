"""Standard evaluations of a round's policy: what each suite asks, who judges, and every how many rounds."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import LATER, OPERATIONAL, Closed
from pipeline.config.labellers.judge import JudgeScorer
from pipeline.config.labellers.scorers import ScorerSettings

_NAME = r"^[a-z][a-z0-9_]{0,39}$"
_CATEGORY = "column of file by whose values the win rate is told apart too; default: {}, if rows have it"
_FILE = "its rows in the published form: .jsonl, or .json with a list"


class SuiteSettings(Closed):
    """What all suites have."""

    name: str | None = Field(None, pattern=_NAME, description="its name in metrics and gate.suites; default: its kind")
    every: int = Field(
        1, ge=1, description="rounds between two measurements, from round 0", json_schema_extra=OPERATIONAL
    )
    limit: int | None = Field(None, ge=1, description="only the first so many rows (of each task); default: all")
    on_leak: Literal["refuse", "warn"] = Field(
        "refuse",
        description="what prompts of the suite that are training prompts too do: stop the run, or are named and "
        "counted",
        json_schema_extra=OPERATIONAL,
    )


class IfevalSuite(SuiteSettings):
    """Verifiable instructions (IFEval, arXiv:2311.07911), by the checks of lm-evaluation-harness."""

    kind: Literal["ifeval"] = "ifeval"
    file: str = Field(min_length=1, description=f"key, prompt, instruction_id_list and kwargs; {_FILE}")
    max_tokens: int | None = Field(None, ge=1, description="longest answer; default: sampling.max_tokens")


class LmEvalSuite(SuiteSettings):
    """Tasks of lm-evaluation-harness, answered by the run's own engine."""

    kind: Literal["lm_eval"] = "lm_eval"
    tasks: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = Field(
        description="names of tasks or groups"
    )
    include: str | None = Field(
        None,
        min_length=1,
        description="folder with tasks of your own (YAML); code that they name runs, so use only folders that you "
        "trust",
    )
    metric: str | None = Field(
        None, min_length=1, description="what the gate compares, such as acc_norm; default: each task's first metric"
    )
    fewshot: int | None = Field(None, ge=0, description="examples before each question; default: the task's own")
    chat: bool = Field(False, description="put each question into the policy's chat template")
    context: int | None = Field(
        None,
        ge=32,
        description="longest question with its answer in tokens, beyond which the beginning is cut off; default: the "
        "sampler's context",
    )


class AlpacaEvalSuite(SuiteSettings):
    """Win rate over another model's answers, also length-controlled (AlpacaEval 2, arXiv:2404.04475)."""

    kind: Literal["alpaca_eval"] = "alpaca_eval"
    file: str = Field(min_length=1, description=f"answers of the baseline: instruction, output, generator; {_FILE}")
    judge: ScorerSettings = Field(description="compares, or scores, answers; its budget is its own")
    difficulty: str | None = Field(
        None,
        min_length=1,
        description="the published df_gamed.csv of the same instructions, in their order; default: the published "
        "regression without instruction difficulty (length_controlled_minimal)",
    )
    category: str | None = Field(None, min_length=1, description=_CATEGORY.format("dataset"), json_schema_extra=LATER)
    max_tokens: int | None = Field(None, ge=1, description="longest answer; default: sampling.max_tokens")


class ArenaHardSuite(SuiteSettings):
    """Win rate over another model's answers by verdicts of five grades (Arena-Hard, arXiv:2406.11939)."""

    kind: Literal["arena_hard"] = "arena_hard"
    file: str = Field(min_length=1, description=f"questions: uid or question_id, and prompt or turns; {_FILE}")
    baseline: str = Field(min_length=1, description="the published file of another model's answers to them")
    judge: JudgeScorer = Field(description="with verdict: graded; its budget is its own")
    weight: int = Field(3, ge=1, description="wins that a verdict of >> or << counts for")
    category: str | None = Field(None, min_length=1, description=_CATEGORY.format("category"), json_schema_extra=LATER)
    max_tokens: int | None = Field(None, ge=1, description="longest answer; default: sampling.max_tokens")


class RewardBenchSuite(SuiteSettings):
    """Share of pairs that the run's labellers, or another one, rank as published (RewardBench, arXiv:2403.13787)."""

    kind: Literal["reward_bench"] = "reward_bench"
    file: str = Field(min_length=1, description=f"prompt, chosen, rejected and subset; {_FILE}")
    judge: ScorerSettings | None = Field(
        None, description="the labeller to rate; default: the section scorer, and the round's discriminator"
    )


Suite = Annotated[
    IfevalSuite | LmEvalSuite | AlpacaEvalSuite | ArenaHardSuite | RewardBenchSuite, Field(discriminator="kind")
]


class SuiteRule(Closed):
    """A rule of the gate: how a suite may change from the round that rules compare with."""

    min_change: float = Field(
        0.0, ge=-1, le=1, description="change of the suite's main metric that must not be surely missed, such as -0.02"
    )


def suite_name(suite: Suite) -> str:
    """The suite's name in metrics and rules."""
    return suite.name or suite.kind


def answers(suite: Suite) -> bool:
    """Whether the policy answers the suite; False if it rates labellers."""
    return not isinstance(suite, RewardBenchSuite)


def suite_judge(suite: Suite) -> ScorerSettings | None:
    """The labeller that the suite names."""
    return None if isinstance(suite, IfevalSuite | LmEvalSuite) else suite.judge


def due(suites: tuple[Suite, ...], round_: int) -> list[Suite]:
    """The suites that are measured in ``round_``: round 0, and every ``every`` rounds after it."""
    return [suite for suite in suites if round_ % suite.every == 0]


def longest_sequence(suites: tuple[Suite, ...], prompt: int, usual: int) -> int:
    """The most tokens of a question with its answer; ``prompt``: of a prompt, ``usual``: of other samples."""
    given = [one.max_tokens for one in suites if isinstance(one, IfevalSuite | AlpacaEvalSuite | ArenaHardSuite)]
    contexts = [one.context - 1 for one in suites if isinstance(one, LmEvalSuite) and one.context is not None]
    return max([prompt + max([usual, *(tokens for tokens in given if tokens is not None)]), *contexts])


def require_suites(suites: tuple[Suite, ...], rules: dict[str, SuiteRule], modality: str, labelled: bool) -> None:
    """Refuse suites and rules that do not fit together, or the run. Raises ``ValueError``.

    ``labelled``: whether the run has a scorer.
    """
    if suites and modality == "image":
        raise ValueError("evaluation.suites: they ask for text, but modality: image; allowed: none, or modality: text")
    names = [suite_name(suite) for suite in suites]
    for index, suite in enumerate(suites):
        place = f"evaluation.suites.{index}"
        if names[index] in names[:index]:
            raise ValueError(
                f"{place}.name: {names[index]} is the name of an earlier suite; allowed: a name of its own"
            )
        if isinstance(suite, RewardBenchSuite) and suite.judge is None and not labelled:
            raise ValueError(f"{place}.judge: must be given, since the run has no section scorer to rate")
        if isinstance(suite, ArenaHardSuite) and (suite.judge.mode, suite.judge.verdict) != ("pairwise", "graded"):
            raise ValueError(
                f"{place}.judge.verdict: {suite.judge.verdict} in mode {suite.judge.mode}; arena_hard counts verdicts "
                "of five grades, so allowed: graded, in mode pairwise"
            )
    for name in rules:
        if name not in names:
            known = ", ".join(names) or "none"
            raise ValueError(f"gate.suites: {name} is no suite; evaluation.suites has {known}")
