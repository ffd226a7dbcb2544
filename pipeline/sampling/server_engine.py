"""Sampling through an OpenAI-compatible vLLM server (``/v1/completions`` with token ids).

The server is the user's, or one that this process starts on 127.0.0.1. The key of a user's server
comes from the environment and is sent only to it; a server started here gets a random key.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from pipeline.config import SamplingSettings, ServerSampler
from pipeline.errors import RunError, UserError
from pipeline.models.chat import Chat
from pipeline.models.weights.adapter_folder import base_of, is_adapter
from pipeline.safe_text import redacted, visible
from pipeline.sampling import watchdog
from pipeline.sampling.engine_args import as_flags, formats_of
from pipeline.sampling.given_adapters import GivenAdapters
from pipeline.sampling.ports import free_port, loopback_only
from pipeline.sampling.sampler import (
    Dtype,
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
from pipeline.sampling.served_adapters import reserved_for
from pipeline.types import Response

SERVED_NAME = "policy"


class ServerEngine:
    """Client of a server; ``load`` starts a new server, unless the server is the user's."""

    def __init__(self, path: str, chat: Chat, settings: ServerSampler, options: EngineOptions | None = None) -> None:
        """Start `vllm serve` on the model (or the adapter) in ``path``, or connect to ``settings.base_url``."""
        self._chat = chat
        self._settings = settings
        self._options = options or EngineOptions()
        self._model_name = SERVED_NAME
        self._given = GivenAdapters(settings.base_url or "", lambda path, body: self._answer("POST", path, body))
        self._process: subprocess.Popen[bytes] | None = None
        self._pool = ThreadPoolExecutor(settings.concurrency)
        if settings.base_url is None:
            self._launch(path)
        else:
            self._dtype: Dtype = "bfloat16" if settings.dtype == "auto" else settings.dtype
            self._connect(settings.base_url, os.environ.get(settings.api_key_env, "").strip() or None)
            with contextlib.ExitStack() as unless_taken:
                unless_taken.callback(self.close)
                self._read_model()
                if self._options.adapters:
                    self._given.require_taken()
                self._give(path)
                unless_taken.pop_all()

    @property
    def dtype(self) -> str:
        """The server's precision; a user's server does not report it, so dtype ``auto`` assumes bfloat16."""
        return self._dtype

    @property
    def context(self) -> int:
        """Longest prompt + response, in tokens."""
        return self._context

    def sample(
        self, requests: RequestFeed | Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        """See ``Sampler.sample``; each sample is a separate HTTP request."""
        feed = feed_of(requests)
        under_way: deque[tuple[SampleRequest, list[Future[dict[str, Any]]]]] = deque()
        try:
            while True:
                # A long response keeps the others from being given, not from being asked for.
                room = 4 * self._settings.concurrency - sum(len(asked) for _, asked in under_way)
                for request in feed.take(-(-room // settings.n), idle=not under_way):
                    bodies = [
                        self._sampling_body(request, settings, seed) for seed in sample_seeds(request, settings.n)
                    ]
                    under_way.append((request, [self._pool.submit(self._complete, body) for body in bodies]))
                if not under_way:
                    return
                request, asked = under_way.popleft()
                yield tuple(self._response(request.prompt_ids, one.result(), settings) for one in asked)
        finally:
            for one in (one for _, asked in under_way for one in asked):
                one.cancel()

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``Sampler.score``."""
        return [[logprob for logprob, _ in row] for row in self.ranked(sequences)]

    def ranked(self, sequences: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """See ``Ranking.ranked``; of a last token that the context has no room for, nothing is known but its score."""
        answers = self._pool.map(self._complete, [self._scoring_body(ids) for ids in sequences])
        return [_scores(ids, answer) for ids, answer in zip(sequences, answers, strict=True)]

    def load(self, path: str, fresh: bool = False) -> Swap:
        """See ``Sampler.load``: start a new server; give an adapter to the user's, which keeps its weights."""
        if self._settings.base_url is not None:
            return "reload" if self._give(path) else "unchanged"
        self._stop()
        self._launch(path)
        return "restart"

    def _give(self, path: str) -> bool:
        """Give the user's server the adapter in ``path``, or ask its own model; return whether that is another."""
        if not is_adapter(path):
            return self._given.take_back()
        self._given.give(path)
        return True

    def close(self) -> None:
        """Stop the server, if it was started here; a user's is left with its own model."""
        self._stop()
        self._given.take_back()
        self._client.close()
        self._pool.shutdown(cancel_futures=True)

    def _connect(self, base_url: str, key: str | None) -> None:
        self._key = key
        local = httpx.URL(base_url).host in ("127.0.0.1", "localhost", "::1")
        self._client = httpx.Client(
            base_url=base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self._settings.shard_timeout, connect=10.0),
            limits=httpx.Limits(max_connections=self._settings.concurrency),
            # A proxy for outside traffic must not handle this machine's own ports.
            trust_env=not local,
        )

    def _launch(self, path: str) -> None:
        port, key = free_port(), secrets.token_hex(16)
        environment = {
            **os.environ,
            **loopback_only(),
            "VLLM_API_KEY": key,
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        command = [
            sys.executable,
            "-m",
            watchdog.__name__,
            str(os.getpid()),
            *self._serve_command(path, port),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, process_group=0)
        self._connect(f"http://127.0.0.1:{port}/v1", key)
        deadline = time.monotonic() + self._settings.start_timeout
        while True:
            try:
                self._client.get("models", timeout=5.0).raise_for_status()
                break
            except httpx.HTTPError as error:
                code = self._process.poll()
                if code is not None or time.monotonic() > deadline:
                    self._stop()
                    cause = f"ended with exit code {code}" if code is not None else self._late()
                    raise RunError(f"vllm serve {path} {cause}") from error
                time.sleep(0.25)
        self._read_model()

    def _late(self) -> str:
        return f"did not answer within {self._settings.start_timeout:g} seconds (sampler.start_timeout)"

    def _serve_command(self, path: str, port: int) -> list[str]:
        import torch

        accelerator = torch.cuda.is_available()
        base, room = base_of(path), reserved_for(path)
        self._dtype = engine_dtype(self._settings.dtype, base, accelerator)
        # What `vllm serve` runs; the command itself does not start with vLLM's CPU build, since it
        # looks up the version of a distribution named vllm.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base, "--host", "127.0.0.1"]
        served = SERVED_NAME if base == path else f"{SERVED_NAME}-base"
        command += ["--port", str(port), "--served-model-name", served, "--dtype", self._dtype]
        if room is not None:
            command += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(room.rank)]
            command += ["--lora-target-modules", *sorted(room.targets)]
            command += ["--lora-modules", f"{SERVED_NAME}={Path(path).absolute()}"]
        command += ["--generation-config", "vllm", "--logprobs-mode", "raw_logprobs", "--enable-prefix-caching"]
        command += as_flags(self._settings.model_dump(include={"tensor_parallel_size", "pipeline_parallel_size"}))
        command += ["--disable-uvicorn-access-log", "--seed", "0"]
        if eager(self._settings.enforce_eager, accelerator=accelerator):
            command.append("--enforce-eager")
        if self._options.trust_remote_code:
            command.append("--trust-remote-code")
        context = engine_context(self._settings.context, base)
        if context is not None:
            command += ["--max-model-len", str(context)]
        if not accelerator:
            # See VllmEngine: seeded requests do not work with split prompts on CPU.
            command.append("--no-enable-chunked-prefill")
        return [*command, *as_flags({**self._settings.engine_args, **formats_of(base)})]

    def _stop(self) -> None:
        if self._process is None:
            return
        self._client.close()
        # The whole group, so that the engine's own process ends too and frees its memory.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _read_model(self) -> None:
        models = self._request("GET", "models")["data"]
        wanted = self._settings.model if self._settings.base_url is not None else SERVED_NAME
        chosen = [m for m in models if wanted in (None, m["id"])]
        if not chosen:
            raise UserError(f"sampler.model: the server has no {wanted!r}; it serves {[m['id'] for m in models]}")
        self._model_name = str(chosen[0]["id"])
        if not isinstance(chosen[0].get("max_model_len", models[0].get("max_model_len")), int):
            raise UserError(f"sampler.base_url: {self._settings.base_url} is not a vLLM server (no max_model_len)")
        # Of an adapter, a server lists none.
        self._context: int = chosen[0].get("max_model_len") or models[0]["max_model_len"]

    def _sampling_body(self, request: SampleRequest, settings: SamplingSettings, seed: int) -> dict[str, Any]:
        return {
            "prompt": list(request.prompt_ids),
            "max_tokens": room_for(request.prompt_ids, settings.max_tokens, self.context),
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "min_p": settings.min_p,
            "stop": engine_stops(self._chat, settings.stop),
            "stop_token_ids": sorted(self._chat.end_ids),
            "seed": seed,
            "logprobs": 0,
        }

    def _scoring_body(self, ids: Sequence[int]) -> dict[str, Any]:
        check_length(ids, self.context)
        body: dict[str, Any] = {"prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        if len(ids) == self.context:
            # A request must generate one token, and there is no room for it: force the last token instead.
            body |= {"prompt": list(ids[:-1]), "allowed_token_ids": [ids[-1]], "logprobs": 0}
        return body

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._request(
            "POST", "completions", {"model": self._given.name or self._model_name, "return_token_ids": True, **body}
        )
        choice: dict[str, Any] = answer["choices"][0]
        if choice.get("token_ids") is None:
            raise UserError(f"sampler.base_url: {self._settings.base_url} returns no token ids; it needs a vLLM server")
        return choice

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        content: dict[str, Any] = self._answer(method, path, body).json()
        return content

    def _answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            said = redacted(repr(error), self._key)
            raise RunError(f"the sampling server at {self._client.base_url} does not answer: {said}") from None
        if answer.is_error:
            said = visible(redacted(answer.text, self._key), 500)
            raise RunError(f"the sampling server refused {path} (status {answer.status_code}): {said}")
        return answer

    def _response(self, prompt_ids: tuple[int, ...], choice: dict[str, Any], settings: SamplingSettings) -> Response:
        logprobs = choice["logprobs"]["token_logprobs"]
        return make_response(self._chat, prompt_ids, choice["token_ids"], logprobs, settings.stop)


def _scores(ids: Sequence[int], choice: dict[str, Any]) -> list[tuple[float, bool]]:
    """Return the log-probabilities of ids 1..T-1: the prompt's and, for a forced last token, the output's."""
    given = choice["prompt_logprobs"][1:]
    told = [at[str(token)] for token, at in zip(ids[1 : len(given) + 1], given, strict=True)]
    scores = [(float(one["logprob"]), one.get("rank") == 1) for one in told]
    if len(scores) < len(ids) - 1:
        scores.append((float(choice["logprobs"]["token_logprobs"][0]), False))
    return scores
