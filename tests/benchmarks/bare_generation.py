"""vLLM as it is, in a process of its own: the prompts of a round's samples stage, drawn again and timed."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import ChatSettings, VllmSampler
from pipeline.models.chat import load_chat
from pipeline.sampling.vllm_engine import engine_environment
from pipeline.storage.rows import read_groups
from tests.benchmarks.isolated import Facts, serve

WARM = 8


def measure(job: Facts, folder: Path) -> Mapping[str, Any]:
    """Seconds of one ``LLM.generate`` over all prompts, after a small one that is not counted, drawn in two ways.

    ``same_settings``: as a run asks for it, each sample with its own seed and its tokens' log-probabilities. ``plain``:
    one request draws all samples of a prompt, without seeds or log-probabilities, and the engine decodes the text.

    ``job``: the policy's folder, that of the samples, ``n``, ``max_tokens`` and the run's config. The engine gets the
    settings that prefloop's sampler gives it where they change what is computed (precision, context, eager mode,
    sequences decoded together); all else is vLLM's default.
    """
    sampler = VllmSampler()
    os.environ.update(engine_environment(sampler))
    from vllm import LLM, SamplingParams

    chat = load_chat(job["policy"], ChatSettings())
    prompts: list[Any] = [{"prompt_token_ids": list(group.prompt_ids)} for group in read_groups(Path(job["samples"]))]
    longest = max(len(prompt["prompt_token_ids"]) for prompt in prompts)
    llm = LLM(
        model=job["policy"],
        dtype=job["dtype"],
        max_model_len=longest + job["max_tokens"] + 1,
        enforce_eager=sampler.enforce_eager is not False,
        generation_config="vllm",
        max_num_seqs=job["config"]["sampler"]["max_num_seqs"],
        # A seeded request needs this off in vLLM 0.32.0 on CPU.
        enable_chunked_prefill=False,
    )
    shared: Facts = {"temperature": 1.0, "max_tokens": job["max_tokens"], "stop_token_ids": sorted(chat.end_ids)}
    each = [prompt for prompt in prompts for _ in range(job["n"])]
    seeded = [SamplingParams(seed=seed, logprobs=0, detokenize=False, **shared) for seed in range(len(each))]
    ways = {"plain": (prompts, SamplingParams(n=job["n"], **shared)), "same_settings": (each, seeded)}
    facts: Facts = {}
    for name, (asked, params) in ways.items():
        llm.generate(asked[:WARM], params[:WARM] if isinstance(params, list) else params, use_tqdm=False)
        start = time.perf_counter()
        outputs = llm.generate(asked, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
        facts[name] = {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}
    return facts


if __name__ == "__main__":
    serve(measure)
