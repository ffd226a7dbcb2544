"""Labellers of responses, and the settings that apply to all of them."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from pipeline.config.base import OPERATIONAL, Closed
from pipeline.config.labellers.image_scorers import ClipScorer, DotsScorer, ImageClassifierScorer, PeopleScorer
from pipeline.config.labellers.judge import JudgeScorer
from pipeline.config.sampling import Engines


class SlotScorer(Closed):
    """Gold reward of data-to-text: slots realised minus slots invented, minus costs for excess length and cut-offs.

    ``answer`` of each prompt is the meaning representation `slot[value], slot[value]`.
    """

    kind: Literal["slots"] = "slots"
    length_cost: float = Field(0.01, ge=0, description="per word beyond free_words")
    free_words: int = Field(40, ge=1)
    cut_cost: float = Field(1.0, ge=0, description="for a response that did not end by itself")


class ExactMatchScorer(Closed):
    """1 if the response holds the prompt's answer, else 0."""

    kind: Literal["match"] = "match"
    ignore_case: bool = True
    pattern: str | None = Field(
        None, description="regular expression; group 1 of its last match is compared with the answer"
    )


class LengthScorer(Closed):
    """Minus the distance of the response's length from ``target_words``, in words."""

    kind: Literal["length"] = "length"
    target_words: int = Field(30, ge=0)


class ClassifierScorer(Closed):
    """A Hugging Face sequence-classification reward model; it applies its own chat template."""

    kind: Literal["classifier"] = "classifier"
    path: str = Field(min_length=1)
    outputs: Annotated[dict[Annotated[int, Field(ge=0)], float], Field(min_length=1)] | None = Field(
        None,
        description="the reward is the sum of these logits, each times its weight: {0: 0.7, 3: 0.3} mixes two heads, "
        "{0: -1, 1: 1} are the log-odds of a model that tells bad (0) from good (1); default: {0: 1}, of a model with "
        "one output",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="most tokens of a forward pass, unless one prompt with a response alone has more; default: "
        "2,048 on CPU, else 16,384",
        json_schema_extra=OPERATIONAL,
    )
    packing: bool = Field(
        True,
        description="compute each prompt once for all its responses, without padding, if the model's attention can",
        json_schema_extra=OPERATIONAL,
    )
    max_tokens: int = Field(
        2048, ge=8, description="longer conversations lose tokens at the left; the count is recorded"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of its weights and matrix products; auto: that of the model's files"
    )
    trust_remote_code: bool = False

    @property
    def weights(self) -> Mapping[int, float]:
        """The weight of each logit in the reward."""
        return {0: 1.0} if self.outputs is None else self.outputs

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result; keys hold the weights, whether they were given or not."""
        return {**super().identity(), "outputs": {str(output): weight for output, weight in self.weights.items()}}

    def pass_tokens(self, accelerator: bool) -> int:
        """Most tokens of a forward pass, unless one row alone has more."""
        return self.batch_tokens or (16384 if accelerator else 2048)


class NumberScorer(Closed):
    """1 if the final number of the response equals that of the prompt's answer, else 0 (GSM8K and similar).

    The final number is the one after the last `####`, or in the last `\\boxed{}`, or the last of the text.
    """

    kind: Literal["number"] = "number"
    tolerance: float = Field(1e-6, ge=0, lt=1, description="relative, and absolute near 0")


class MathScorer(Closed):
    """1 if the final answer of the response equals the prompt's answer as mathematics, else 0; by math-verify.

    Formulas in LaTeX, numbers, sets, intervals, equations and percentages; units do not count. The final answer is the
    one after the last `####`, or in the last `\\boxed{}`, or the last formula or number. A response that cannot be
    read, or takes too long, is wrong. Where the prompt's answer cannot be read, the label is missing. Needs the extra
    `math`.
    """

    kind: Literal["math"] = "math"
    seconds: int = Field(5, ge=1, le=300, description="longest CPU time of one comparison")


class RegexScorer(Closed):
    """``found`` if the pattern is anywhere in the response, else ``absent``."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)
    found: float = 1.0
    absent: float = 0.0

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return value


class KeywordScorer(Closed):
    """Number of keywords in the response, as whole words, or their share."""

    kind: Literal["keywords"] = "keywords"
    words: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        (), description="words or phrases; default: those of each prompt's answer, separated by commas or lines"
    )
    count: bool = Field(False, description="score their number; else their share, 0 to 1")
    ignore_case: bool = True


class FunctionScorer(Closed):
    """A function of your own: ``def reward(prompt, response, answer)`` -> number, or None for no label.

    ``prompt`` is a list of {role, content}, ``response`` a text, ``answer`` a text or None; of images ``prompt`` is a
    text and ``response`` an array of uint8, [height, width, 3]. Its code runs in the run's own process, so name only
    files that you trust.
    """

    kind: Literal["function"] = "function"
    file: str = Field(min_length=1, description="a Python file; its content is part of the labels' version")
    name: str = Field("reward", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the function")


class PairwiseScorer(Closed):
    """A sequence classifier over a prompt and two responses: P(the first is better), as in PairRM (arXiv:2306.02561).

    One logit goes through a sigmoid; two (first, second) or three (first, second, tie) go through a softmax. Both
    orders are scored and averaged.
    """

    kind: Literal["pairwise"] = "pairwise"
    path: str = Field(min_length=1)
    markers: tuple[str, str, str] = Field(
        ("<|source|>", "<|candidate1|>", "<|candidate2|>"),
        description="markers before prompt, first and second response in the model's input",
    )
    max_prompt_tokens: int = Field(1224, ge=1, description="longer prompts lose their beginning; the count is recorded")
    max_response_tokens: int = Field(412, ge=1, description="longer responses lose their end; the count is recorded")
    batch_size: int = Field(16, ge=1, json_schema_extra=OPERATIONAL)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of its weights and matrix products; auto: that of the model's files"
    )
    trust_remote_code: bool = False
    pairs_per_prompt: Annotated[int, Field(ge=1)] | None = Field(
        None, description="compare this many of the K (K - 1) / 2 pairs; default: all"
    )


SingleScorer = Annotated[
    SlotScorer
    | ExactMatchScorer
    | NumberScorer
    | MathScorer
    | RegexScorer
    | KeywordScorer
    | LengthScorer
    | FunctionScorer
    | ClassifierScorer
    | PairwiseScorer
    | JudgeScorer
    | DotsScorer
    | ImageClassifierScorer
    | ClipScorer
    | PeopleScorer,
    Field(discriminator="kind"),
]


class Member(Closed):
    """One labeller of an ensemble; its scores count as ``(score - offset) / scale``."""

    scorer: SingleScorer
    weight: float = Field(1.0, gt=0)
    offset: float = 0.0
    scale: float = Field(1.0, gt=0, description="brings the members' scores to a common size")


class EnsembleScorer(Closed):
    """Several labellers; the standard deviation of their scores for a response is kept as its disagreement."""

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[Member, ...] = Field(min_length=2)
    combine: Literal["mean", "min", "penalised"] = Field(
        "mean", description="weighted mean; the lowest; weighted mean minus penalty times the disagreement"
    )
    penalty: float = Field(1.0, ge=0, description="penalised: λ")
    quorum: int | None = Field(
        None, ge=1, description="members that must have labelled a response, else its label is missing; default: all"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "EnsembleScorer":
        if any(isinstance(member.scorer, PeopleScorer) for member in self.members):
            raise ValueError("members: people label a whole round, and alone; allowed: other kinds")
        if self.quorum is not None and self.quorum > len(self.members):
            raise ValueError(f"quorum: {self.quorum}, but there are {len(self.members)} members")
        if self.combine != "penalised" and self.penalty != 1:
            raise ValueError(f"penalty: combine {self.combine} does not read it")
        return self


ScorerSettings = Annotated[
    SlotScorer
    | ExactMatchScorer
    | NumberScorer
    | MathScorer
    | RegexScorer
    | KeywordScorer
    | LengthScorer
    | FunctionScorer
    | ClassifierScorer
    | PairwiseScorer
    | JudgeScorer
    | DotsScorer
    | ImageClassifierScorer
    | ClipScorer
    | PeopleScorer
    | EnsembleScorer,
    Field(discriminator="kind"),
]


def scorers_of(settings: ScorerSettings, field: str = "scorer") -> list[tuple[str, SingleScorer]]:
    """``settings``, or the members of an ensemble, each with the name of its place in the config."""
    if not isinstance(settings, EnsembleScorer):
        return [(field, settings)]
    return [(f"{field}.members.{index}.scorer", member.scorer) for index, member in enumerate(settings.members)]


def compares(settings: ScorerSettings) -> bool:
    """Whether labels come from comparisons alone, so that a single response has no score."""
    return all(
        isinstance(scorer, PairwiseScorer) or (isinstance(scorer, JudgeScorer) and scorer.mode == "pairwise")
        for _, scorer in scorers_of(settings)
    )


class Labelling(Closed):
    """Settings that apply to every labeller."""

    cache: str | None = Field(
        None,
        min_length=1,
        description="file of the labels that were paid for, which runs may share; default: labels.sqlite next to the "
        "run folder. Labels from rules are recomputed, not kept",
        json_schema_extra=OPERATIONAL,
    )
    engines: Engines = Field(
        "auto",
        description="engines side by side for each reward model that runs here, each with its own cards; auto: as many "
        "as there are cards; on a CPU one, in the trainer's process, or on a cluster an actor",
        json_schema_extra=OPERATIONAL,
    )
    engine_timeout: float = Field(
        1800,
        gt=0,
        description="seconds that an engine may take for one forward pass; then another takes its place",
        json_schema_extra=OPERATIONAL,
    )
    min_yield: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of responses that must get a score; below it the run stops, and asks for the missing scores "
        "when it is started again",
        json_schema_extra=OPERATIONAL,
    )
