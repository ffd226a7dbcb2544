"""vLLM as it is, in a process of its own: the prompts of a round's samples stage, drawn again and timed."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.chat import load_chat
from pipeline.config import Chat, VllmSampler
from pipeline.rows import read_groups
from pipeline.sample_vllm import engine_environment
from tests.benchmarks.isolated import Facts, serve

WARM = 8


def measure(job: Facts, folder: Path) -> Mapping[str, Any]:
    """Seconds of one ``LLM.generate`` over all prompts, after a small one that is not counted.

    ``job``: the policy's folder, that of the samples, ``n`` and ``max_tokens``. The engine gets the settings that
    prefloop's sampler gives it where they change what is computed (precision, context, eager mode); all else is vLLM's
    default, and one request draws all samples of a prompt.
    """
    sampler = VllmSampler()
    os.environ.update(engine_environment(sampler))
    from vllm import LLM, SamplingParams

    chat = load_chat(job["policy"], Chat())
    prompts: list[Any] = [{"prompt_token_ids": list(group.prompt_ids)} for group in read_groups(Path(job["samples"]))]
    longest = max(len(prompt["prompt_token_ids"]) for prompt in prompts)
    llm = LLM(
        model=job["policy"],
        dtype=job["dtype"],
        max_model_len=longest + job["max_tokens"] + 1,
        enforce_eager=sampler.enforce_eager,
        generation_config="vllm",
        # A seeded request needs this off in vLLM 0.32.0 on CPU; here it only keeps the two sides alike.
        enable_chunked_prefill=False,
    )
    params = SamplingParams(
        n=job["n"], temperature=1.0, max_tokens=job["max_tokens"], stop_token_ids=sorted(chat.end_ids)
    )
    llm.generate(prompts[:WARM], params, use_tqdm=False)
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    answers = [answer for output in outputs for answer in output.outputs]
    tokens = sum(len(answer.token_ids) for answer in answers)
    return {"seconds": seconds, "tokens": tokens, "responses": len(answers), "tokens_per_second": tokens / seconds}


if __name__ == "__main__":
    serve(measure)
