"""The policy to train, its adapter, and how messages become its tokens."""

import datetime
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, field_validator, model_validator

from pipeline.config.base import LATER, Closed
from pipeline.config.images.policies import DiffusionPolicy, ScratchDiffusion


def _written(value: object) -> object:
    # YAML reads a bare date as one.
    return value.isoformat() if isinstance(value, datetime.date) else value


def _is_day(value: str) -> str:
    return datetime.date.fromisoformat(value).isoformat()


Day = Annotated[str, BeforeValidator(_written), AfterValidator(_is_day)]


class Quantisation(Closed):
    """Frozen linear layers in 4 or 8 bits (bitsandbytes; QLoRA, arXiv:2305.14314); the output head keeps its 16 bits.

    Made from the model's own files as they are loaded; nothing is ever merged into quantised weights, nor are they
    saved.
    """

    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4"] = Field("nf4", description="of 4 bits")
    double: bool = Field(True, description="of 4 bits: quantise the blocks' scales too")
    compute_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="of 4 bits: of matrix products with the weights; 8 bits: as the passes are"
    )


class PretrainedModel(Closed):
    """A Hugging Face model folder (or hub name) with its tokenizer."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = Field(min_length=1, description="model folder, or a hub name")
    revision: str | None = Field(None, description="hub revision")
    trust_remote_code: bool = Field(False, description="run code that ships with this model")


class PretrainedPolicy(PretrainedModel):
    """A pretrained model that a run starts from, and how its weights are held."""

    adapter: str | None = Field(
        None,
        min_length=1,
        description="folder of a LoRA adapter (adapter_config.json, adapter_model.safetensors) of this model to start "
        "from; its shape takes the place of training.lora's",
        json_schema_extra=LATER,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of weights that are not trained, and of saved policies; auto: that of the model's files, or "
        "float32 for full training whose passes are computed in float32. Weights held in 16 bits are computed with in "
        "bfloat16, whatever training.dtype says",
        json_schema_extra=LATER,
    )
    quantisation: Quantisation | None = Field(
        None,
        description="hold the weights under an adapter in 4 or 8 bits (needs bitsandbytes)",
        json_schema_extra=LATER,
    )

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result; keys made before there was a ``dtype`` mean float32."""
        plain = {**super().identity(), "dtype": self.dtype}
        return {name: value for name, value in plain.items() if (name, value) != ("dtype", "float32")}


class ScratchPolicy(Closed):
    """A small Llama-architecture model and a byte-level-BPE tokenizer, made from the warm-start texts."""

    kind: Literal["scratch"] = "scratch"
    vocab_size: int = Field(1000, ge=300, le=2000, description="tokens, special ones included")
    hidden_size: int = Field(160, ge=32, description="a multiple of head_size")
    head_size: Literal[32, 64, 80, 96, 112, 128] = Field(32, description="sizes that vLLM runs on CPU")
    layers: int = Field(4, ge=1, le=16)
    context: int = Field(256, ge=32, le=4096, description="longest prompt + response in tokens")
    tied_embeddings: bool = Field(False, description="share input and output embeddings")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ScratchPolicy":
        if self.hidden_size % self.head_size:
            raise ValueError(f"hidden_size must be a multiple of head_size ({self.head_size})")
        return self


Policy = Annotated[PretrainedPolicy | ScratchPolicy | DiffusionPolicy | ScratchDiffusion, Field(discriminator="kind")]


EARLIER = "earlier"
# Variables of chat templates that are not set by name: the conversation itself, and how it is asked for.
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize")


class TemplateSettings(Closed):
    """What a model's chat template is given, or replaced by."""

    template_kwargs: dict[str, JsonValue] = Field(
        {},
        description="values for the chat template's variables, such as enable_thinking: false or "
        "reasoning_effort: low; a row's own chat_template_kwargs come first",
        json_schema_extra=LATER,
    )
    template_file: str | None = Field(
        None,
        min_length=1,
        description="a Jinja file that takes the place of the model's chat template",
        json_schema_extra=LATER,
    )

    @property
    def rerendered(self) -> bool:
        """Whether the model's chat template is replaced, or gets values."""
        return bool(self.template_kwargs) or self.template_file is not None

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result; of the template file, keys hold the content, not the place."""
        return {name: value for name, value in super().identity().items() if name != "template_file"}

    @model_validator(mode="after")
    def _are_variables(self) -> "TemplateSettings":
        own = next((name for name in RESERVED if name in self.template_kwargs), None)
        if own is not None:
            raise ValueError(f"template_kwargs: {own} is no variable to set; the data and the run decide it")
        return self


class ChatSettings(TemplateSettings):
    """How messages become tokens."""

    template: Literal["auto", "model", "plain"] = Field(
        "auto",
        description="model: the tokenizer's template; plain: contents joined by a newline; auto: model if it has one",
    )
    max_prompt_tokens: int = Field(
        512, ge=1, description="longer prompts are dropped and counted; check shows how many"
    )
    max_response_tokens: int = Field(
        512, ge=1, description="longer data-set responses are cut at the end and lose their end token"
    )
    bos: Literal["written", "always", "earlier"] = Field(
        "written",
        description="before a prompt. written: a beginning-of-sequence token only if the chat template writes it (or, "
        "without a template, the tokenizer adds it); always: one, if the tokenizer has it; earlier: the same, for run "
        "folders of 0.1.0, which go on with their prompts",
        json_schema_extra=LATER,
    )
    thinking: Literal["hide", "keep", "earlier"] = Field(
        "hide",
        description="thoughts before an answer, such as <think>...</think>. hide: labellers, people, filters and "
        "measures of length see the answer alone; keep: all of it; earlier: all of it, but of several channels the "
        "final one, for run folders begun before this setting. The loss trains on all sampled tokens",
        json_schema_extra=LATER,
    )
    date: Day | None = Field(
        None,
        description="the day, such as 2026-01-31, that a chat template writes as today's; default: the one on which "
        "the run was begun, if its template writes one",
        json_schema_extra=LATER,
    )

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result; ``earlier`` is no part of keys, which were made without the setting."""
        return {name: value for name, value in super().identity().items() if value != EARLIER}

    @model_validator(mode="after")
    def _a_template_reads_them(self) -> "ChatSettings":
        if self.template == "plain" and self.rerendered:
            name = "template_file" if self.template_file is not None else "template_kwargs"
            raise ValueError(f"{name}: template: plain reads no chat template; use auto or model")
        return self


class Lora(Closed):
    """Low-rank adapters (peft): LoRA (arXiv:2106.09685), rsLoRA (arXiv:2312.03732), DoRA (arXiv:2402.09353)."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | str = Field(
        "all-linear",
        description="names of layers, a regular expression for whole names, or all-linear: every linear layer but the "
        "output head",
    )
    rslora: bool = Field(
        False, description="scale the adapter by alpha / sqrt(rank), not alpha / rank", json_schema_extra=LATER
    )
    dora: bool = Field(False, description="train the weights' magnitudes too", json_schema_extra=LATER)
    modules_to_save: tuple[str, ...] = Field(
        (),
        description="names of modules that are trained whole, in float32, and saved with the adapter",
        json_schema_extra=LATER,
    )
    lifetime: Literal["run", "round"] = Field(
        "run",
        description="run: one adapter is trained on over all rounds, and saved alone; round: each round trains a new "
        "one, merges it into the weights and saves the whole model",
        json_schema_extra=LATER,
    )

    @field_validator("target_modules")
    @classmethod
    def _is_pattern(cls, value: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not value:
            raise ValueError("names no layer; at least one name, a regular expression, or all-linear")
        if isinstance(value, str) and value != "all-linear":
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression ({error}); a list names layers") from None
        return value

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result; keys made before there was a ``lifetime`` mean round."""
        plain = {**super().identity(), "lifetime": self.lifetime}
        return {name: value for name, value in plain.items() if (name, value) != ("lifetime", "round")}
