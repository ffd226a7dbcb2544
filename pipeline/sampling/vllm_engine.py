"""Sampling with vLLM, in the process that creates the engine. The only file that imports vLLM.

Departs from vLLM's defaults: prompts are token ids, each sample has its own seed, text is decoded
by ``chat`` and never by the engine (unless stop strings need it), and the model folder's
generation config is ignored.
"""

import gc
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.config import SamplingSettings, VllmSampler
from pipeline.errors import RunError
from pipeline.models.chat import Chat
from pipeline.models.weights.adapter_folder import base_of, is_adapter
from pipeline.sampling.engine_args import formats_of
from pipeline.sampling.ports import loopback_only
from pipeline.sampling.sampler import (
    EngineOptions,
    RequestFeed,
    SampleRequest,
    Swap,
    check_length,
    eager,
    engine_context,
    engine_dtype,
    engine_stops,
    feed_of,
    make_response,
    room_for,
    sample_seeds,
)
from pipeline.sampling.served_adapters import Reserved, reserved_for
from pipeline.types import Response


def engine_environment(settings: VllmSampler) -> dict[str, str]:
    """Return the variables to set before importing vLLM: in-process engine, off the network, no telemetry."""
    return {
        **loopback_only(),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_kv_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


class VllmEngine:
    """A vLLM engine in this process.

    It binds OpenMP threads to cores and holds a large share of the memory, so it belongs in a child
    process (``flows.workers.sampler_service``).
    """

    def __init__(self, path: str, chat: Chat, settings: VllmSampler, options: EngineOptions | None = None) -> None:
        """Start an engine on the model folder ``path``, or on the weights under an adapter's, with the adapter.

        Raises ``RunError`` if it does not start.
        """
        self._chat = chat
        self._settings = settings
        self._options = options or EngineOptions()
        self._llm: Any = None
        self._base = ""
        # Room for adapters; None until the first one: then the engine starts again, once.
        self._reserved: Reserved | None = None
        # vLLM's request for the adapter; its name and number are never used again, or keys and values that it cached
        # under an earlier adapter could be read.
        self._adapter: Any = None
        self._numbers = itertools.count(1)
        self._start(path)

    @property
    def dtype(self) -> str:
        """The precision of the engine's weights."""
        return str(self._llm.llm_engine.model_config.dtype).removeprefix("torch.")

    @property
    def context(self) -> int:
        """Longest prompt + response, in tokens."""
        return int(self._llm.llm_engine.model_config.max_model_len)

    def sample(
        self, requests: RequestFeed | Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        """See ``Sampler.sample``; each sample is a separate request, and prefix caching shares the prompt.

        The engine's queue holds as many samples as it decodes at once, so that its batch stays full to the end.
        """
        responses = self._in_order(feed_of(requests), settings)
        while group := tuple(itertools.islice(responses, settings.n)):
            yield group

    def _in_order(self, feed: RequestFeed, settings: SamplingSettings) -> Iterator[Response]:
        """Yield the response to each sample of the requests in ``feed`` once it and all earlier ones are done."""
        engine, numbers = self._llm.llm_engine, itertools.count()
        waiting: deque[tuple[tuple[int, ...], Any]] = deque()
        under_way: dict[str, tuple[int, ...]] = {}
        done: dict[int, Response] = {}
        given = 0
        try:
            while True:
                room = 2 * self._settings.max_num_seqs - len(under_way)
                wanted = -(-(room - len(waiting)) // settings.n)
                for request in feed.take(wanted, idle=not under_way and not waiting):
                    most = room_for(request.prompt_ids, settings.max_tokens, self.context)
                    for seed in sample_seeds(request, settings.n):
                        waiting.append((request.prompt_ids, self._params(settings, most, seed)))
                for _ in range(min(room, len(waiting))):
                    ids, params = waiting.popleft()
                    number = str(next(numbers))
                    under_way[number] = ids
                    prompt = {"prompt_token_ids": list(ids)}
                    engine.add_request(number, prompt, params, lora_request=self._adapter)
                if not under_way:
                    return
                for output in engine.step():
                    asked, sampled = under_way.pop(output.request_id), output.outputs[0]
                    # Only each sampled token's own log-probability: no others were requested.
                    logprobs = sampled.logprobs.logprobs
                    response = make_response(self._chat, asked, sampled.token_ids, logprobs, settings.stop)
                    done[int(output.request_id)] = response
                while given in done:
                    yield done.pop(given)
                    given += 1
        except GeneratorExit:
            engine.abort_request(list(under_way))
            raise

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``Sampler.score``."""
        return [[logprob for logprob, _ in row] for row in self.ranked(sequences)]

    def ranked(self, sequences: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """See ``Ranking.ranked``."""
        prompts: list[Any] = []
        params: list[Any] = []
        for ids in sequences:
            check_length(ids, self.context)
            # The engine keeps room for one new token. If a sequence is as long as the context, its last
            # token is forced instead of given; the raw log-probability is the same.
            full = len(ids) == self.context
            prompts.append({"prompt_token_ids": list(ids[:-1] if full else ids)})
            params.append(self._scoring_params(ids[-1] if full else None))
        outputs = self._generate(prompts, params)
        return [_prompt_logprobs(ids, output) for ids, output in zip(sequences, outputs, strict=True)]

    def load(self, path: str, fresh: bool = False) -> Swap:
        """See ``Sampler.load``: give it the new adapter, swap weights with ``reload_weights``, or start a new engine.

        The swap of weights leaves some models stale (the output head of tied embeddings in 0.32.0).
        """
        if not fresh and (self._adapt(path) if self._fits(path) else self._reload(path)):
            return "reload"
        self.close()
        self._start(path)
        return "restart"

    def close(self) -> None:
        """Drop the engine and everything it left in this process."""
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()
        cleanup_dist_env_and_memory()

    def _start(self, path: str) -> None:
        os.environ.update(engine_environment(self._settings))
        from vllm import LLM
        from vllm.platforms import current_platform

        self._base, self._reserved, self._adapter = base_of(path), reserved_for(path), None
        further: dict[str, Any] = {**self._settings.engine_args, **formats_of(self._base)}
        try:
            self._llm = LLM(
                model=self._base,
                **_room_for_adapters(self._reserved),
                trust_remote_code=self._options.trust_remote_code,
                dtype=engine_dtype(self._settings.dtype, self._base, accelerator=not current_platform.is_cpu()),
                max_model_len=engine_context(self._settings.context, self._base),
                enforce_eager=eager(self._settings.enforce_eager, accelerator=not current_platform.is_cpu()),
                gpu_memory_utilization=self._settings.gpu_memory_utilization,
                max_num_seqs=self._settings.max_num_seqs,
                tensor_parallel_size=self._settings.tensor_parallel_size,
                pipeline_parallel_size=self._settings.pipeline_parallel_size,
                enable_prefix_caching=True,
                # On CPU, a seeded request with a prompt split over two steps kills vLLM 0.32.0
                # ("CPU Generator does not use offset").
                enable_chunked_prefill=False if current_platform.is_cpu() else None,
                generation_config="vllm",
                logprobs_mode="raw_logprobs",
                seed=0,
                **further,
            )
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise RunError(f"vLLM did not start on {path}: {error}") from error
        if self._reserved is not None and not self._adapt(path):
            raise RunError(f"vLLM did not load the adapter in {path}")

    def _fits(self, path: str) -> bool:
        """Return whether the engine was started for adapters of the same base, such as the one in ``path``, or it."""
        wanted, room = reserved_for(path), self._reserved
        return room is not None and base_of(path) == self._base and (wanted is None or room.holds(wanted))

    def _adapt(self, path: str) -> bool:
        """Give the engine the adapter in ``path``, or none if it is the base; return False if it is refused."""
        from vllm.lora.request import LoRARequest

        engine, before, self._adapter = self._llm.llm_engine, self._adapter, None
        if before is not None:
            engine.remove_lora(before.lora_int_id)
        if is_adapter(path):
            number = next(self._numbers)
            request = LoRARequest(lora_name=f"policy-{number}", lora_int_id=number, lora_path=path)
            try:
                if not engine.add_lora(request):
                    return False
            except (RuntimeError, ValueError, KeyError, OSError) as error:
                raise RunError(f"vLLM did not load the adapter in {path}: {error}") from error
            self._adapter = request
        return bool(self._llm.reset_prefix_cache())

    def _reload(self, path: str) -> bool:
        """Swap the weights in place and drop the old prefix cache; return False if the engine refuses."""
        if is_adapter(path) or self._reserved is not None:
            return False
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        except (RuntimeError, ValueError, KeyError, AttributeError, OSError, NotImplementedError, AssertionError):
            return False
        # Keys and values of the old weights must never be read again.
        return bool(self._llm.reset_prefix_cache())

    def _params(self, settings: SamplingSettings, max_tokens: int, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            output_kind=RequestOutputKind.FINAL_ONLY,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            max_tokens=max_tokens,
            stop=(stop := engine_stops(self._chat, settings.stop)),
            stop_token_ids=sorted(self._chat.end_ids),
            seed=seed,
            logprobs=0,
            flat_logprobs=True,
            detokenize=bool(stop),
        )

    def _scoring_params(self, forced: int | None) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=0,
            logprobs=None if forced is None else 0,
            allowed_token_ids=None if forced is None else [forced],
            detokenize=False,
            # A cached prefix has no log-probabilities, so every token is computed again.
            skip_reading_prefix_cache=True,
        )

    def _generate(self, prompts: list[Any], params: list[Any]) -> list[Any]:
        if not prompts:
            return []
        return list(self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._adapter))


def _room_for_adapters(room: Reserved | None) -> dict[str, Any]:
    if room is None:
        return {}
    targets = sorted(room.targets)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room.rank, "lora_target_modules": targets}


def _ranks(token_ids: Sequence[int], logprobs: Any) -> list[tuple[float, bool]]:
    return [(float(at[token].logprob), at[token].rank == 1) for token, at in zip(token_ids, logprobs, strict=True)]


def _prompt_logprobs(ids: Sequence[int], output: Any) -> list[tuple[float, bool]]:
    """Return the log-probabilities of ids 1..T-1: the prompt's and, for a forced last token, the output's."""
    given = output.prompt_token_ids
    scores = _ranks(given[1:], output.prompt_logprobs[1:])
    if len(given) < len(ids):
        scores.extend(_ranks(ids[-1:], output.outputs[0].logprobs))
    return scores
