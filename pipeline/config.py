"""The schema of a run: every setting, its range and what it means. Imports no torch, vllm or prefect.

Closed models: an unknown key is an error. A choice among things with different settings is a
union told apart by ``kind``; a choice among functions of one shape is a ``Literal``.
Reading files and overlays is in ``configfile``.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

# configs/ lies beside pipeline/ both in a checkout and in an installed package.
PRESETS = Path(__file__).parents[1] / "configs" / "loss"

# Settings that change how a result is reached and not the result: they may differ between a kill and its resume.
OPERATIONAL: dict[str, JsonValue] = {"operational": True}


class Closed(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen and must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result, as plain JSON: everything but the operational ones."""
        plain: dict[str, JsonValue] = {}
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == OPERATIONAL:
                continue
            value: object = self.__dict__[name]
            plain[name] = value.identity() if isinstance(value, Closed) else _plain(value)
        return plain


def _plain(value: object) -> JsonValue:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"no plain form for {type(value).__name__}")


# ---------------------------------------------------------------- the policy


class PretrainedPolicy(Closed):
    """A Hugging Face model folder (or hub name) with its tokenizer."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = Field(min_length=1, description="model folder, or a hub name")
    revision: str | None = Field(None, description="hub revision")
    trust_remote_code: bool = Field(False, description="run code that ships with this model")


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


Policy = Annotated[PretrainedPolicy | ScratchPolicy, Field(discriminator="kind")]


class Chat(Closed):
    """How messages become tokens."""

    template: Literal["auto", "model", "plain"] = Field(
        "auto",
        description="model: the tokenizer's template; plain: contents joined by a newline; auto: model if it has one",
    )
    max_prompt_tokens: int = Field(
        512, ge=1, description="longer prompts are refused by check and dropped with a count"
    )
    max_response_tokens: int = Field(
        512, ge=1, description="longer data-set responses are cut at the right and lose their end token"
    )


# ---------------------------------------------------------------- data


class Columns(Closed):
    """Names of the columns in the user's file."""

    prompt: str = Field("prompt", description="a string, or a list of {role, content}")
    chosen: str = "chosen"
    rejected: str = "rejected"
    response: str = Field("response", description="a reference response (warm start)")
    answer: str = Field("answer", description="what gold scorers compare with; may be absent")


class FileData(Closed):
    """A local JSONL, JSON, CSV or parquet file (.gz too for text), or a folder of them."""

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1)
    columns: Columns = Columns()


class RestaurantData(Closed):
    """The generated data-to-text task: meaning representation -> one sentence."""

    kind: Literal["restaurants"] = "restaurants"
    prompts: int = Field(1200, ge=8, le=20000, description="distinct meaning representations")
    references: int = Field(4, ge=1, le=16, description="sentences written for each in the warm-start set")
    wrong: float = Field(0.10, ge=0, le=1, description="share of slots realised with another value")
    missing: float = Field(0.10, ge=0, le=1, description="share of slots left out")
    extra: float = Field(0.10, ge=0, le=1, description="share of sentences that invent a slot")
    seed: int = Field(0, ge=0)


Data = Annotated[FileData | RestaurantData, Field(discriminator="kind")]


class HeldOut(Closed):
    """Prompts that no round trains on, split by prompt content, never by row."""

    prompts: int = Field(128, ge=1, description="how many prompts")
    seed: int = Field(0, ge=0, description="which ones; does not follow the run's seed")
    path: str | None = Field(
        None, description="take them from this file instead (same columns); must be disjoint from the training prompts"
    )


# ---------------------------------------------------------------- sampling


class SamplingSettings(Closed):
    """How responses are drawn."""

    n: int = Field(4, ge=1, le=1024, description="responses a prompt (K)")
    temperature: float = Field(1.0, ge=0, le=10, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: off")
    min_p: float = Field(0.0, ge=0, le=1)
    max_tokens: int = Field(128, ge=1)
    stop: tuple[str, ...] = Field((), description="strings that end a response")


class VllmSampler(Closed):
    """vLLM in a child process of the run."""

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="CUDA only", json_schema_extra=OPERATIONAL)
    cpu_kv_cache_gib: int = Field(1, ge=1, description="CPU only", json_schema_extra=OPERATIONAL)
    enforce_eager: bool = Field(True, description="no graph capture or compilation")
    max_num_seqs: int = Field(256, ge=1, description="sequences decoded together", json_schema_extra=OPERATIONAL)
    context: int | None = Field(
        None, ge=32, description="longest prompt + response in tokens; default: the model's own"
    )
    keep_warm: Literal["auto", "always", "never"] = Field(
        "auto",
        description="keep the engine's process between rounds; auto: on CPU yes, on CUDA no",
        json_schema_extra=OPERATIONAL,
    )
    start_timeout: float = Field(600, gt=0, description="seconds", json_schema_extra=OPERATIONAL)
    shard_timeout: float = Field(1800, gt=0, description="seconds for one shard", json_schema_extra=OPERATIONAL)
    retries: int = Field(
        1,
        ge=0,
        description="a failed shard is tried again this often, in a fresh engine",
        json_schema_extra=OPERATIONAL,
    )


class TransformersSampler(Closed):
    """transformers' generate, for machines without vLLM: slow, same results."""

    kind: Literal["transformers"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: int = Field(32, ge=1, json_schema_extra=OPERATIONAL)
    keep_warm: Literal["auto", "always", "never"] = Field("auto", json_schema_extra=OPERATIONAL)
    start_timeout: float = Field(600, gt=0, description="seconds", json_schema_extra=OPERATIONAL)
    shard_timeout: float = Field(3600, gt=0, description="seconds for one shard", json_schema_extra=OPERATIONAL)
    retries: int = Field(1, ge=0, json_schema_extra=OPERATIONAL)


class ServerSampler(Closed):
    """An OpenAI-compatible server (`vllm serve`).

    Without ``base_url`` prefloop starts `vllm serve` on 127.0.0.1 for every new checkpoint. With it
    the server is the user's: its weights cannot be changed from here, and the weight handshake
    refuses a round whose policy the server does not hold.
    """

    kind: Literal["server"] = "server"
    base_url: str | None = Field(None, description="such as http://127.0.0.1:8000/v1", json_schema_extra=OPERATIONAL)
    model: str | None = Field(None, description="served model name; default: the first that the server lists")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key", json_schema_extra=OPERATIONAL
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context: int | None = Field(
        None,
        ge=32,
        description="longest prompt + response in tokens, of a server started here; default: the model's own",
    )
    concurrency: int = Field(32, ge=1, description="requests under way at once", json_schema_extra=OPERATIONAL)
    start_timeout: float = Field(600, gt=0, description="seconds", json_schema_extra=OPERATIONAL)
    shard_timeout: float = Field(3600, gt=0, description="seconds for one shard", json_schema_extra=OPERATIONAL)
    retries: int = Field(1, ge=0, json_schema_extra=OPERATIONAL)
    keep_warm: Literal["auto", "always", "never"] = Field("auto", json_schema_extra=OPERATIONAL)


Sampler = Annotated[VllmSampler | TransformersSampler | ServerSampler, Field(discriminator="kind")]


# ---------------------------------------------------------------- labels and pairs


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


class Pairing(Closed):
    """How scored groups become pairs. Ties and responses with equal tokens never do."""

    rule: Literal["best_worst", "all", "random"] = "best_worst"
    min_margin: float = Field(0.0, ge=0, description="score differences at or below this are ties")
    drop_cut: bool = Field(False, description="drop responses that the length limit ended")


# ---------------------------------------------------------------- loss and training


class LossSettings(Closed):
    """A loss preset by name, with its settings; the presets are in configs/loss/."""

    preset: str = "dpo"
    beta: float | None = Field(None, gt=0, description="scale of the log-ratio margin; default: the preset's")
    nll: float | None = Field(
        None, ge=0, description="weight of the chosen response's negative log-likelihood per token"
    )

    @field_validator("preset")
    @classmethod
    def _known(cls, value: str) -> str:
        names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        if value not in names:
            raise ValueError(f"no such loss; one of {', '.join(names)}")
        return value


class Lora(Closed):
    """Low-rank adapters (peft); the adapter is merged into the policy that is saved."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Optimisation(Closed):
    """One training run: a round, or the warm start."""

    epochs: float = Field(1.0, gt=0, description="passes over the pairs (or texts)")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps")
    batch_size: int = Field(32, ge=1, description="pairs (or texts) an optimiser step, over all processes")
    micro_batch_size: int = Field(
        32,
        ge=1,
        description="pairs (or texts) a forward pass; gradients accumulate to batch_size",
        json_schema_extra=OPERATIONAL,
    )
    learning_rate: float = Field(1e-6, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward and backward pass; weights and loss stay float32"
    )
    gradient_checkpointing: bool = Field(False, json_schema_extra=OPERATIONAL)
    checkpoint_every: int = Field(
        0, ge=0, description="optimiser steps between mid-round checkpoints; 0: none", json_schema_extra=OPERATIONAL
    )
    stall_timeout: float = Field(1800, gt=0, description="seconds one step may take", json_schema_extra=OPERATIONAL)


class Training(Optimisation):
    """Preference training of a round."""

    lora: Lora | None = None
    optimiser_state: Literal["fresh", "carried"] = Field("fresh", description="AdamW state at the start of a round")
    reference: Literal["fixed", "previous", "ema", "every_n"] = Field(
        "previous",
        description="fixed: the start policy; previous: this round's starting policy; ema: a running average of "
        "policies; every_n: renewed every n-th round",
    )
    reference_every: int = Field(2, ge=1, description="n of every_n")
    reference_decay: float = Field(
        0.5, ge=0, lt=1, description="ema: weight of the old average at the end of each round"
    )

    @model_validator(mode="after")
    def _state_fits_the_parameters(self) -> "Training":
        if self.lora is not None and self.optimiser_state == "carried":
            raise ValueError("optimiser_state: with lora each round trains a new adapter, so its state is fresh")
        return self


class WarmStart(Optimisation):
    """Supervised training before round 1, on the prompt data's reference responses.

    The same trainer, with the likelihood term alone.
    """

    batch_size: int = Field(64, ge=1, description="texts an optimiser step")
    micro_batch_size: int = Field(64, ge=1, description="texts a forward pass", json_schema_extra=OPERATIONAL)
    learning_rate: float = Field(2e-3, gt=0)


class Evaluation(Closed):
    """What is measured on the held-out prompts after each round."""

    samples: int = Field(1, ge=1, description="responses a prompt at temperature 1, beside the greedy one")
    temperature: float = Field(1.0, gt=0)
    bootstrap: int = Field(1000, ge=100, description="resamples for the 95 % intervals")
    seed: int = Field(0, ge=0)


# ---------------------------------------------------------------- the run


class RunConfig(Closed):
    """A whole run. iterative: sample, label, pair and train each round; offline: the pairs come from ``pairs``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="folder name under runs/")
    mode: Literal["iterative", "offline"]
    rounds: int = Field(1, ge=1, le=1000, description="offline: slices of the pair data, one a round")
    seed: int = Field(0, ge=0)
    policy: Policy
    chat: Chat = Chat()
    prompts: Data | None = Field(
        None, description="iterative: what the policy answers (offline: held-out prompts, if other than the pairs')"
    )
    prompts_per_round: int | None = Field(
        None, ge=1, description="default: all of them every round; else the next slice, wrapping round"
    )
    pairs: FileData | None = Field(None, description="offline: prompt/chosen/rejected rows")
    held_out: HeldOut = HeldOut()
    warm_start: WarmStart | None = None
    sampler: Sampler = VllmSampler()
    sampling: SamplingSettings = SamplingSettings()
    shard_size: int = Field(256, ge=1, description="prompts sampled or labelled between two commits to disk")
    scorer: Scorer | None = None
    pairing: Pairing = Pairing()
    loss: LossSettings = LossSettings()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="before")
    @classmethod
    def _usual_kinds(cls, given: object) -> object:
        """A section written without ``kind`` is of the usual one."""
        if not isinstance(given, dict):
            return given
        usual = {"policy": "pretrained", "prompts": "file", "sampler": "vllm"}
        filled = {
            name: {"kind": kind, **given[name]} for name, kind in usual.items() if isinstance(given.get(name), dict)
        }
        return {**given, **filled}

    @field_validator("name")
    @classmethod
    def _no_dots(cls, value: str) -> str:
        if ".." in value:
            raise ValueError("must not contain '..'")
        return value

    @model_validator(mode="after")
    def _mode_has_its_parts(self) -> "RunConfig":
        if self.mode == "iterative":
            if self.prompts is None:
                raise ValueError("prompts: iterative mode needs prompts to answer")
            if self.scorer is None:
                raise ValueError("scorer: iterative mode needs a scorer to label responses")
            if self.sampling.n < 2:
                raise ValueError(f"sampling.n: {self.sampling.n} response a prompt makes no pair; at least 2")
            if self.sampling.temperature == 0:
                raise ValueError("sampling.temperature: 0 (greedy) makes all responses of a prompt equal; above 0")
        elif self.pairs is None:
            raise ValueError("pairs: offline mode needs a pair data set")
        if isinstance(self.policy, ScratchPolicy) and self.warm_start is None:
            raise ValueError("warm_start: a policy made from scratch needs one")
        if self.warm_start is not None and self.prompts is None:
            raise ValueError("prompts: the warm start trains on the prompt data's reference responses")
        return self
