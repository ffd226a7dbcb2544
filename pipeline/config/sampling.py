"""Sampling of responses, and the engines that do it."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import OPERATIONAL, Closed, ServerAddress


class SamplingSettings(Closed):
    """Settings of sampling."""

    n: int = Field(4, ge=1, le=1024, description="responses a prompt (K)")
    temperature: float = Field(1.0, ge=0, le=10, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: off")
    min_p: float = Field(0.0, ge=0, le=1)
    max_tokens: int = Field(128, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), description="strings that end a response")


class VllmSampler(Closed):
    """vLLM in a child process of the run."""

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="CUDA only", json_schema_extra=OPERATIONAL)
    cpu_kv_cache_gib: int = Field(1, ge=1, description="CPU only", json_schema_extra=OPERATIONAL)
    enforce_eager: bool = Field(True, description="no graph capture or compilation")
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


class TransformersSampler(Closed):
    """transformers' generate, for machines without vLLM: slow, same results."""

    kind: Literal["transformers"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
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
    concurrency: int = Field(32, ge=1, description="concurrent requests", json_schema_extra=OPERATIONAL)
    start_timeout: float = Field(
        600, gt=0, description="seconds to start the engine or to swap its weights", json_schema_extra=OPERATIONAL
    )
    shard_timeout: float = Field(3600, gt=0, description="seconds without an answer", json_schema_extra=OPERATIONAL)
    retries: int = Field(1, ge=0, json_schema_extra=OPERATIONAL)
    keep_warm: Literal["auto", "always", "never"] = Field("auto", json_schema_extra=OPERATIONAL)


SamplerSettings = Annotated[VllmSampler | TransformersSampler | ServerSampler, Field(discriminator="kind")]
