"""The parent's side of the sampler: a child process with an engine, started at first use."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from flows.workers.child import Child
from flows.workers.messages import SAMPLER, Done, Load, Loaded, SampleCall, Sampled, SamplerInit, Score, ScoresReply
from pipeline import config
from pipeline.errors import RunError
from pipeline.safe_text import key_variables
from pipeline.sampling.sampler import SampleRequest
from pipeline.types import Response

# Requests per message to the child. The engine drains only between messages.
REQUESTS_A_CALL = 4096


class SamplerProcess:
    """Sample through a child process; retry failures in a fresh one."""

    def __init__(
        self,
        sampler: config.SamplerSettings,
        chat: config.ChatSettings,
        log: Path,
        trust_remote_code: bool = False,
        keys: frozenset[str] = frozenset(),
        quantisation: config.Quantisation | None = None,
        adapters: bool = False,
    ) -> None:
        """Start nothing before the first ``load``.

        ``keys``: variables with keys; the sampler gets only its own. ``quantisation``, ``adapters``: see
        ``SamplerInit``.
        """
        self._settings = sampler
        self._env = dict.fromkeys(keys - key_variables(sampler.model_dump(mode="json")))
        evidence = str(log.with_name("handshake.json"))
        settings = (sampler.model_dump(mode="json"), chat.model_dump(mode="json"))
        held = None if quantisation is None else quantisation.model_dump(mode="json")
        self._init = SamplerInit(*settings, trust_remote_code, evidence, held, adapters)
        self._log = log
        self._child: Child[Sampled] | None = None
        self._asked: Load | None = None

    def load(self, path: str, probe: str | None = None) -> Loaded:
        """Load the policy folder ``path``; check it against ``probe.json`` there (or in the folder ``probe``).

        Raises:
            RunError: the engine failed, or does not hold these weights.
        """
        self._asked = Load(path, probe)
        for left in range(self._settings.retries, -1, -1):
            try:
                loaded = self._running().call(self._asked, Loaded, self._settings.start_timeout)
            except RunError:
                # A failed handshake would fail again; a process that died or hung gets another try.
                answered = self._child is not None and self._child.alive
                self.kill()
                if answered or left == 0:
                    raise
            else:
                return loaded
        raise AssertionError("unreachable")

    @property
    def pid(self) -> int | None:
        """The process id of the child; None without a child."""
        return None if self._child is None else self._child.pid

    def sample(
        self, requests: Sequence[SampleRequest], settings: config.SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        """See ``pipeline.sampling.sampler.Sampler.sample``; the engine works on while the caller handles an answer.

        After a failure, unanswered requests are sent to a fresh engine; after ``retries`` restarts in a row without an
        answer, the next failure is raised.
        """
        answered, left = 0, self._settings.retries
        while answered < len(requests):
            try:
                for group in self._sample(requests[answered : answered + REQUESTS_A_CALL], settings):
                    yield group
                    answered, left = answered + 1, self._settings.retries
            except RunError:
                self.kill()
                if left == 0:
                    raise
                left -= 1

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``pipeline.sampling.sampler.Sampler.score``."""
        for left in range(self._settings.retries, -1, -1):
            try:
                request = Score(tuple(tuple(ids) for ids in sequences))
                return self._loaded_child().call(request, ScoresReply, self._settings.shard_timeout).rows
            except RunError:
                self.kill()
                if left == 0:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the child and free its memory; a later ``load`` starts another."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def kill(self) -> None:
        """Like ``close``, but at once."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> "SamplerProcess":
        """Do nothing: the child starts with the first ``load``."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, or kill after an error."""
        if error is None:
            self.close()
        else:
            self.kill()

    def _running(self) -> Child[Sampled]:
        if self._child is None or not self._child.alive:
            timeout = self._settings.start_timeout
            self._child = Child(SAMPLER, self._init, self._log, timeout, self._env)
        return self._child

    def _loaded_child(self) -> Child[Sampled]:
        if self._asked is None:
            raise RunError("the sampler was called before it loaded a policy")
        if self._child is None or not self._child.alive:
            self._running().call(self._asked, Loaded, self._settings.start_timeout)
        return self._running()

    def _sample(
        self, requests: Sequence[SampleRequest], settings: config.SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        request = SampleCall(tuple(requests), settings.model_dump(mode="json"))
        for sampled in self._loaded_child().stream(request, Done, self._settings.shard_timeout):
            yield sampled.responses
