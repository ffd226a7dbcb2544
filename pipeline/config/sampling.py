"""Sampling of responses, and the engines that do it."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from pipeline.config.base import LATER, OPERATIONAL, Closed, ServerAddress

# Arguments of vLLM that change its speed or its memory, and its results at most by rounding: no part of keys.
SPEED_ARGS = frozenset(
    {
        "async_scheduling",
        "block_size",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "distributed_executor_backend",
        "distributed_timeout_seconds",
        "download_dir",
        "enable_expert_parallel",
        "enable_sleep_mode",
        "kv_cache_memory_bytes",
        "long_prefill_token_threshold",
        "max_cudagraph_capture_size",
        "max_num_batched_tokens",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "numa_bind",
        "safetensors_load_strategy",
        "safetensors_prefetch_num_threads",
        "scheduling_policy",
        "stream_interval",
        "use_tqdm_on_load",
    }
)
EngineSettings = dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], JsonValue]
_ARGS = (
    "further arguments of vLLM's engine, as vLLM names them, such as {kv_cache_dtype: fp8, block_size: 32}; "
    "those that only change speed are no part of keys"
)
_EAGER = "no graph capture or compilation; default: on CPU yes, on an accelerator no, where graphs are much faster"

_TENSORS = "cards that compute each layer together"
_STAGES = "groups of cards that hold the layers one after the other"
_ENGINES = "engines side by side, each with its own cards; auto: as many as there are cards for; on a CPU one"
Engines = Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]


class HandshakeLimits(Closed):
    """The largest and the mean difference, in nats a token, that rounding may cause between engine and trainer."""

    largest: float = Field(gt=0)
    mean: float = Field(gt=0)


_LIMITS = "limits of the weight handshake; default: by dtype, others for quantised engines and mixtures of experts"


def _identity(plain: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Leave out engine arguments that only change speed."""
    args = plain.get("engine_args")
    if not isinstance(args, dict):
        return plain
    kept: dict[str, JsonValue] = {name: value for name, value in args.items() if name not in SPEED_ARGS}
    others = {name: value for name, value in plain.items() if name != "engine_args"}
    return others | {"engine_args": kept} if kept else others


# Names of the run's own policies that sampling may be mixed with.
OWN_POLICIES = ("start", "previous")
_OTHER = (
    "μ: start: the policy of round 0; previous: the one that the sampled policy was trained from; or a model folder or "
    "hub name with the policy's tokenizer"
)


class SamplingMixture(Closed):
    """Responses come from a geometric mixture with another model, π^(1 − weight) μ^weight (IPO-MD, arXiv:2403.08635).

    transformers draws each token from the two next-token distributions, mixed and normalised. vLLM draws whole
    responses from the policy, and keeps some of them at random, with weights (μ / π)^weight.
    """

    reference: str = Field("start", min_length=1, description=_OTHER)
    weight: float = Field(0.125, gt=0, lt=1, description="of μ in the exponent")
    proposals: int = Field(4, ge=2, le=64, description="vllm, server: responses drawn for each one that is kept")

    @property
    def path(self) -> str | None:
        """The model that is none of the run's own policies."""
        return None if self.reference in OWN_POLICIES else self.reference


class SamplingSettings(Closed):
    """Settings of sampling."""

    n: int = Field(4, ge=1, le=1024, description="responses a prompt (K)")
    temperature: float = Field(1.0, ge=0, le=10, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: off")
    min_p: float = Field(0.0, ge=0, le=1)
    max_tokens: int = Field(128, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), description="strings that end a response")
    mixture: SamplingMixture | None = Field(
        None, description="draw the responses to train on from a mixture with another model", json_schema_extra=LATER
    )

    @property
    def plain(self) -> bool:
        """Whether responses are drawn from all of the policy's distribution as it is."""
        return (self.temperature, self.top_p, self.top_k, self.min_p) == (1.0, 1.0, 0, 0.0)


class VllmSampler(Closed):
    """vLLM in child processes of the run."""

    kind: Literal["vllm"] = "vllm"
    engines: Engines = Field("auto", description=_ENGINES, json_schema_extra=OPERATIONAL)
    tensor_parallel_size: int = Field(1, ge=1, le=1024, description=_TENSORS, json_schema_extra=LATER)
    pipeline_parallel_size: int = Field(1, ge=1, le=1024, description=_STAGES, json_schema_extra=OPERATIONAL)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="CUDA only", json_schema_extra=OPERATIONAL)
    cpu_kv_cache_gib: int = Field(1, ge=1, description="CPU only", json_schema_extra=OPERATIONAL)
    enforce_eager: bool | None = Field(None, description=_EAGER)
    engine_args: EngineSettings = Field({}, description=_ARGS, json_schema_extra=LATER)
    handshake: HandshakeLimits | None = Field(None, description=_LIMITS, json_schema_extra=OPERATIONAL)
    max_num_seqs: int = Field(256, ge=1, description="sequences decoded together", json_schema_extra=OPERATIONAL)
    context: int | None = Field(
        None,
        ge=32,
        description="longest prompt + response in tokens, at most the model's own; default: "
        "chat.max_prompt_tokens + sampling.max_tokens + 1",
    )
    keep_warm: Literal["auto", "always", "never"] = Field(
        "auto",
        description="keep the engine's process between rounds; auto: on CPU yes, on CUDA no",
        json_schema_extra=OPERATIONAL,
    )
    start_timeout: float = Field(
        600, gt=0, description="seconds to start the engine or to swap its weights", json_schema_extra=OPERATIONAL
    )
    shard_timeout: float = Field(1800, gt=0, description="seconds without an answer", json_schema_extra=OPERATIONAL)
    retries: int = Field(
        1,
        ge=0,
        description="times in a row that unanswered prompts are asked again, in a fresh engine",
        json_schema_extra=OPERATIONAL,
    )

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result."""
        return _identity(super().identity())


class TransformersSampler(Closed):
    """transformers' generate, for machines without vLLM: slow, same results."""

    kind: Literal["transformers"] = "transformers"
    engines: Engines = Field("auto", description=_ENGINES, json_schema_extra=OPERATIONAL)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    handshake: HandshakeLimits | None = Field(None, description=_LIMITS, json_schema_extra=OPERATIONAL)
    batch_size: int = Field(32, ge=1, json_schema_extra=OPERATIONAL)
    keep_warm: Literal["auto", "always", "never"] = Field("auto", json_schema_extra=OPERATIONAL)
    start_timeout: float = Field(
        600, gt=0, description="seconds to start the engine or to swap its weights", json_schema_extra=OPERATIONAL
    )
    shard_timeout: float = Field(3600, gt=0, description="seconds without an answer", json_schema_extra=OPERATIONAL)
    retries: int = Field(1, ge=0, json_schema_extra=OPERATIONAL)


class ServerSampler(Closed):
    """An OpenAI-compatible server (`vllm serve`).

    Without ``base_url``, prefloop starts `vllm serve` on 127.0.0.1 for every new checkpoint. With it,
    the server is the user's: prefloop cannot change its weights, and the weight handshake refuses a
    round whose policy the server does not have.
    """

    kind: Literal["server"] = "server"
    engines: Engines = Field(
        "auto", description=f"servers started here: {_ENGINES}; with base_url: auto or 1", json_schema_extra=OPERATIONAL
    )
    tensor_parallel_size: int = Field(
        1, ge=1, le=1024, description=f"of a server started here: {_TENSORS}", json_schema_extra=LATER
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, le=1024, description=f"of a server started here: {_STAGES}", json_schema_extra=OPERATIONAL
    )
    base_url: ServerAddress | None = Field(
        None, description="such as http://127.0.0.1:8000/v1", json_schema_extra=OPERATIONAL
    )
    model: str | None = Field(None, description="served model name; default: the first that the server lists")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key", json_schema_extra=OPERATIONAL
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context: int | None = Field(
        None,
        ge=32,
        description="longest prompt + response in tokens, of a server started here, at most the model's own; default: "
        "chat.max_prompt_tokens + sampling.max_tokens + 1",
    )
    enforce_eager: bool | None = Field(None, description=f"of a server started here: {_EAGER}", json_schema_extra=LATER)
    engine_args: EngineSettings = Field({}, description=f"of a server started here: {_ARGS}", json_schema_extra=LATER)
    handshake: HandshakeLimits | None = Field(None, description=_LIMITS, json_schema_extra=OPERATIONAL)
    concurrency: int = Field(32, ge=1, description="concurrent requests", json_schema_extra=OPERATIONAL)
    start_timeout: float = Field(
        600, gt=0, description="seconds to start the engine or to swap its weights", json_schema_extra=OPERATIONAL
    )
    shard_timeout: float = Field(3600, gt=0, description="seconds without an answer", json_schema_extra=OPERATIONAL)
    retries: int = Field(1, ge=0, json_schema_extra=OPERATIONAL)
    keep_warm: Literal["auto", "always", "never"] = Field("auto", json_schema_extra=OPERATIONAL)

    @model_validator(mode="after")
    def _user_s_server_is_one(self) -> "ServerSampler":
        if self.base_url is None:
            return self
        if self.engines not in ("auto", 1):
            raise ValueError(
                f"engines: {self.engines}: with base_url the server is the user's, and it decides how many engines it "
                "has; allowed: auto or 1"
            )
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            if name in self.changed:
                raise ValueError(
                    f"{name}: {getattr(self, name)}: with base_url the server is the user's, and was started with its "
                    "own; allowed: 1"
                )
        return self

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result."""
        return _identity(super().identity())


class DiffusersSampler(Closed):
    """Diffusion and flow-matching models on diffusers' schedulers: images, each from a random generator of its own."""

    kind: Literal["diffusers"] = "diffusers"
    engines: Engines = Field("auto", description=_ENGINES, json_schema_extra=OPERATIONAL)
    steps: int = Field(50, ge=1, le=1000, description="of the sampler, for each image")
    guidance: float = Field(1.0, ge=0, le=100, description="classifier-free guidance; 1: none")
    scheduler: Literal["auto", "ddim", "ddpm", "euler", "dpm", "flow"] = Field(
        "auto",
        description="on the noise schedule of the policy's own; auto: ddim, and flow (Euler steps) for flow matching",
    )
    eta: float = Field(0.0, ge=0, le=1, description="of ddim: share of fresh noise in each step")
    batch: int = Field(
        32, ge=1, le=4096, description="images computed together; smaller batches are filled up, so that bits stay"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    handshake: HandshakeLimits | None = Field(None, description=_LIMITS, json_schema_extra=OPERATIONAL)
    keep_warm: Literal["auto", "always", "never"] = Field("auto", json_schema_extra=OPERATIONAL)
    start_timeout: float = Field(
        600, gt=0, description="seconds to start the engine or to swap its weights", json_schema_extra=OPERATIONAL
    )
    shard_timeout: float = Field(3600, gt=0, description="seconds without an answer", json_schema_extra=OPERATIONAL)
    retries: int = Field(1, ge=0, json_schema_extra=OPERATIONAL)

    @model_validator(mode="after")
    def _reads_eta(self) -> "DiffusersSampler":
        if self.eta and self.scheduler not in ("auto", "ddim"):
            raise ValueError(
                f"eta: {self.eta:g}, but scheduler: {self.scheduler} does not read it; allowed: 0, or ddim"
            )
        return self


SamplerSettings = Annotated[
    VllmSampler | TransformersSampler | ServerSampler | DiffusersSampler, Field(discriminator="kind")
]


def require_mixture(mode: str, sampler: SamplerSettings, sampling: SamplingSettings, *, trusted: bool) -> None:
    """Raise ``ValueError`` if the engine cannot sample from the mixture; ``trusted``: it runs code in model folders."""
    mixture = sampling.mixture
    if mixture is None:
        return
    if mode == "offline":
        raise ValueError("sampling.mixture: offline mode samples no responses to train on; only iterative mode does")
    if isinstance(sampler, ServerSampler) and sampler.base_url is not None:
        raise ValueError(
            "sampling.mixture: needs the log-probabilities of both models, but with sampler.base_url the server holds "
            "one; allowed: sampler.kind: transformers, vllm, or server without base_url"
        )
    if not isinstance(sampler, TransformersSampler) and not sampling.plain:
        raise ValueError(
            f"sampling.mixture: sampler.kind: {sampler.kind} resamples whole responses of the policy as it is, so "
            "temperature must be 1, top_p 1, top_k 0 and min_p 0; any are allowed with sampler.kind: transformers"
        )
    if trusted and mixture.path is not None:
        raise ValueError(
            f"sampling.mixture.reference: {mixture.path}: with policy.trust_remote_code the engine would run this "
            "model's code too; allowed: start or previous"
        )
