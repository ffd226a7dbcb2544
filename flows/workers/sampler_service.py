"""The sampler's process: ``python -m flows.workers.sampler_service``, started by ``flows.workers.child.Child``.

Every load ends with the weight handshake.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import reduce
from pathlib import Path
from typing import Literal, assert_never

from pydantic import TypeAdapter

from flows.workers.messages import (
    Done,
    Load,
    Loaded,
    MoreRequests,
    Progress,
    Request,
    SampleCall,
    Sampled,
    SamplerInit,
    Score,
    ScoresReply,
)
from flows.workers.serving import Caller, Handler, serve_calls
from pipeline import config
from pipeline.errors import RunError, UserError
from pipeline.models.chat import Chat, load_chat
from pipeline.models.foreign import model_numbers, model_settings
from pipeline.models.handshake import (
    Held,
    Logprobs,
    Probe,
    Tolerance,
    check_swap,
    check_weights,
    coarser_dtype,
    read_probe,
)
from pipeline.models.loading.rope import rope_note
from pipeline.models.weights.adapter_folder import base_of
from pipeline.sampling.engine_args import is_quantised
from pipeline.sampling.sampler import EngineOptions, Mixing, Ranking, RequestFeed, Sampler, SampleRequest, Swap
from pipeline.sampling.served_adapters import why_merged
from pipeline.storage.atomic import write_json

# Folder beside the handshake's evidence for an adapter that is merged for sampling, while an engine reads it.
MERGED = "merged"
_Send = Callable[[Progress], None]
TextSampler = config.VllmSampler | config.TransformersSampler | config.ServerSampler
# Engines that compute as the trainer does, on the same libraries.
_OWN = config.TransformersSampler | config.DiffusersSampler


class SamplerService:
    """The request handlers of the sampler's process, and their shared engine."""

    def __init__(self, build: Callable[..., Sampler] | None = None) -> None:
        """``build``: makes the engine; takes the same arguments as ``build_sampler``, the default."""
        self._build = build or build_sampler
        self._sampler: Sampler | None = None
        self._held: Held | None = None
        self._reload_works = True

    def init(self, request: SamplerInit, send: _Send) -> Done:
        """Read the settings."""
        adapter: TypeAdapter[config.SamplerSettings] = TypeAdapter(config.SamplerSettings)
        self._settings = adapter.validate_python(request.sampler)
        self._chat_settings = config.ChatSettings.model_validate(request.chat)
        self._evidence = None if request.evidence is None else Path(request.evidence)
        self._trust_remote_code = request.trust_remote_code
        held = request.quantisation
        self._engine_options = EngineOptions(
            request.trust_remote_code,
            None if held is None else config.Quantisation.model_validate(held),
            request.adapters,
        )
        # Of a process that was killed while an engine read it.
        if self._evidence is not None:
            shutil.rmtree(self._merged_in(self._evidence.parent), ignore_errors=True)
        return Done()

    def load(self, request: Load, send: _Send) -> Loaded:
        """Load the weights in the folder, and check them.

        A reused engine's log-probs must also have changed as the policy's did since the last load.

        Raises:
            RunError: the engine failed, or does not hold these weights.
        """
        start = time.monotonic()
        probe = read_probe(Path(request.probe or request.path))
        merged = None if isinstance(self._settings, _OWN) else why_merged(request.path)
        if merged and isinstance(self._settings, config.ServerSampler) and self._settings.base_url is not None:
            raise UserError(f"sampler.base_url: {self._settings.base_url}: {merged}; {request.path} is such an adapter")
        with self._whole(request.path) if merged else nullcontext(request.path) as path:
            how, difference, stale = self._swap(path, probe)
        dtype, other = self._tolerance(probe, request.path), self._mix(request.mixed, request.mixed_probe)
        return Loaded(how, difference, dtype, stale, time.monotonic() - start, merged, other)

    def _mix(self, path: str | None, probe: str | None) -> float | None:
        """Load and check the other model of a mixture, or drop it; return the largest difference in nats."""
        engine = self._engine()
        if not isinstance(engine, Mixing):
            assert path is None, "a pool asks only engines that mix"
            return None
        other = engine.mix(path)
        if path is None or other is None:
            return None
        expected = read_probe(Path(probe or path))
        scores = other.score(expected.sequences)
        try:
            return check_weights(scores, expected.logprobs, self._tolerance(expected, path), self._limits())
        except RunError as error:
            raise RunError(f"sampling.mixture: {path}: {error}{self._keep(expected, scores)}") from error

    @contextmanager
    def _whole(self, path: str) -> Iterator[str]:
        """Merge the adapter in ``path`` into a folder that is there while an engine loads it."""
        from pipeline.models.policy import write_merged

        with tempfile.TemporaryDirectory() if self._evidence is None else nullcontext(self._evidence.parent) as parent:
            folder = self._merged_in(Path(parent))
            try:
                write_merged(path, folder, trust_remote_code=self._trust_remote_code)
                yield str(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _merged_in(self, parent: Path) -> Path:
        """The folder of this engine's merged adapter: engines side by side must not remove each other's."""
        return parent / (MERGED + ("" if self._evidence is None else self._evidence.stem.removeprefix("handshake")))

    def _swap(self, path: str, probe: Probe) -> tuple[Literal["start"] | Swap, float, str | None]:
        """Load ``path``; return how, the largest difference in nats, and the error of a stale swap in place."""
        how: Literal["start"] | Swap = "start"
        stale = None
        if self._sampler is None:
            self._sampler = self._built(path)
        else:
            how = self._sampler.load(path, fresh=not self._reload_works)
        try:
            difference = self._check(path, probe, fresh=how in ("start", "restart"))
        except RunError as error:
            if how == "unchanged":
                raise RunError(
                    f"sampler.base_url: the server does not hold the weights of {path} (or its "
                    f"precision is too coarse for the difference): {error}"
                ) from error
            if how != "reload":
                raise
            stale, self._reload_works = str(error), False
            how = self._sampler.load(path, fresh=True)
            difference = self._check(path, probe, fresh=True)
        return how, difference, stale

    def _built(self, path: str) -> Sampler:
        if isinstance(self._settings, config.DiffusersSampler):
            from pipeline.sampling.diffusers_engine import DiffusersEngine

            return DiffusersEngine(path, self._settings)
        chat = load_chat(base_of(path), self._chat_settings, self._trust_remote_code)
        return self._build(self._settings, path, chat, self._engine_options)

    def _tolerance(self, probe: Probe, path: str) -> str:
        """The name of the differences that are allowed: the coarsest of what only one side has, or of both sides."""
        own = isinstance(self._settings, _OWN)
        names = [coarser_dtype(self._engine().dtype, probe.dtype)]
        if not own and probe.bits is not None:
            names.append(f"{probe.bits}-bit")
        return reduce(coarser_dtype, [*names, *further_rounding(names[0], self._settings, Path(base_of(path)))])

    def sample(self, request: SampleCall, caller: Caller) -> Done:
        """Send the responses to each request while the engine keeps working, and take further ones if it is open."""
        settings = config.SamplingSettings.model_validate(request.settings)

        def further(wait: bool) -> tuple[SampleRequest, ...] | None:
            more = caller.further(MoreRequests, wait=wait)
            # Without requests it ends the call; none at all while waiting: the parent is gone.
            return (None if wait else ()) if more is None else more.requests or None

        feed = RequestFeed(request.requests, further if request.open else None)
        for group in self._engine().sample(feed, settings):
            caller(Sampled(group))
        return Done()

    def score(self, request: Score, send: _Send) -> ScoresReply:
        """Return log-probs of each sequence's tokens 1..T-1."""
        engine = self._engine()
        if request.best:
            assert isinstance(engine, Ranking), "asked of engines of text alone"
            ranked = engine.ranked(request.sequences)
            return ScoresReply(
                [[one for one, _ in row] for row in ranked], [[best for _, best in row] for row in ranked]
            )
        return ScoresReply(self._engine().score(request.sequences))

    def close(self) -> None:
        """Free the engine."""
        if self._sampler is not None:
            self._sampler.close()

    def _engine(self) -> Sampler:
        if self._sampler is None:
            raise RunError("the sampler was called before it loaded a policy")
        return self._sampler

    def _check(self, path: str, probe: Probe, fresh: bool) -> float:
        sampler = self._engine()
        scores = sampler.score(probe.sequences)
        try:
            difference = check_weights(scores, probe.logprobs, self._tolerance(probe, path), self._limits())
            if not fresh and self._held is not None:
                check_swap(self._held, scores, probe)
        except RunError as error:
            raise RunError(f"{error}{rope_note(Path(path))}{self._keep(probe, scores)}") from error
        self._held = Held(probe, tuple(tuple(row) for row in scores))
        return difference

    def _limits(self) -> Tolerance | None:
        """The user's limits."""
        limits = self._settings.handshake
        return None if limits is None else Tolerance(limits.largest, limits.mean)

    def _keep(self, probe: Probe, scores: Logprobs) -> str:
        """Write down what a failed handshake compared; return a note with the file."""
        if self._evidence is None:
            return ""
        kept = {"sequences": probe.sequences, "trainer": probe.logprobs, "sampler": scores, "dtype": probe.dtype}
        write_json(self._evidence, kept)
        return f"; both sides' log-probabilities are in {self._evidence}"


def further_rounding(dtype: str, settings: config.SamplerSettings, folder: Path) -> list[str]:
    """Return names in ``TOLERANCES`` besides ``dtype`` that hold for an engine that serves the model in ``folder``."""
    args = {} if isinstance(settings, _OWN) else settings.engine_args
    file, found = folder / "config.json", []
    if is_quantised(args) or model_settings(file).get("quantization_config"):
        found.append("quantised")
    # Mixtral, Qwen, DeepSeek.
    if (found or dtype != "float32") and model_numbers(file, "num_local_experts", "num_experts", "n_routed_experts"):
        found.append("experts")
    return found


def build_sampler(settings: TextSampler, path: str, chat: Chat, options: EngineOptions) -> Sampler:
    """Build the engine for ``settings`` with the model or adapter in the folder ``path``."""
    match settings:
        case config.VllmSampler():
            from pipeline.sampling.vllm_engine import VllmEngine

            return VllmEngine(path, chat, settings, options)
        case config.TransformersSampler():
            from pipeline.sampling.transformers_engine import TransformersEngine

            return TransformersEngine(path, chat, settings, options)
        case config.ServerSampler():
            from pipeline.sampling.server_engine import ServerEngine

            return ServerEngine(path, chat, settings, options)
        case _:
            assert_never(settings)


def main() -> None:
    """Serve until the parent closes the socket."""
    service = SamplerService()
    handlers: dict[type[Request], Handler] = {
        SamplerInit: service.init,
        Load: service.load,
        SampleCall: service.sample,
        Score: service.score,
    }
    serve_calls(handlers, service.close, (MoreRequests,))


if __name__ == "__main__":
    main()
