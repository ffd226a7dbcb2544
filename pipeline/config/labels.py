"""What scores responses."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import OPERATIONAL, Closed


class SlotScorer(Closed):
    """Gold reward of data-to-text: slots realised minus slots invented, minus a cost for running on.

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
    output: int = Field(0, ge=0, description="which logit is the reward")
    batch_size: int = Field(16, ge=1, json_schema_extra=OPERATIONAL)
    max_tokens: int = Field(
        2048, ge=8, description="longer conversations lose tokens at the left; the count is recorded"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False


Scorer = Annotated[SlotScorer | ExactMatchScorer | LengthScorer | ClassifierScorer, Field(discriminator="kind")]
