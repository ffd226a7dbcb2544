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
    outputs: dict[Annotated[int, Field(ge=0)], float] = Field(
        {0: 1.0},
        min_length=1,
        description="the reward is the sum of these logits, each times its weight: {0: 0.7, 3: 0.3} mixes two heads, "
        "{0: -1, 1: 1} are the log-odds of a model that tells bad (0) from good (1)",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens that a forward pass computes at most, unless one prompt with a response has more; default: "
        "2,048 on CPU, else 16,384",
        json_schema_extra=OPERATIONAL,
    )
    packing: bool = Field(
        True,
        description="each prompt once for all its responses, nothing padded, where the model's attention allows that",
        json_schema_extra=OPERATIONAL,
    )
    max_tokens: int = Field(
        2048, ge=8, description="longer conversations lose tokens at the left; the count is recorded"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False

    def pass_tokens(self, accelerator: bool) -> int:
        """Tokens that a forward pass computes at most, unless one row alone has more."""
        return self.batch_tokens or (16384 if accelerator else 2048)


Scorer = Annotated[SlotScorer | ExactMatchScorer | LengthScorer | ClassifierScorer, Field(discriminator="kind")]
