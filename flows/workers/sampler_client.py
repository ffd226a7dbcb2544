"""The parent's side of the sampler: a child process that holds an engine, started when first needed."""

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

# Requests that go to the child in one message. The engine drains between two of them alone.
REQUESTS_A_CALL = 4096


class SamplerProcess:
    """Samples through a child process; what fails is tried again in a fresh one."""

    def __init__(
        self,
        sampler: config.SamplerSettings,
        chat: config.ChatSettings,
        log: Path,
        trust_remote_code: bool = False,
        keys: frozenset[str] = frozenset(),
    ) -> None:
        """Nothing starts before the first ``load``. ``keys``: variables that others need, and the sampler has not."""
        self._settings = sampler
        own = key_variables(sampler.model_dump(mode="json"))
        self._own_keys, self._env = own, dict.fromkeys(keys - own)
        evidence = str(log.with_name("handshake.json"))
        settings = (sampler.model_dump(mode="json"), chat.model_dump(mode="json"))
        self._init = SamplerInit(*settings, trust_remote_code, evidence)
        self._log = log
        self._child: Child[Sampled] | None = None
        self._asked: Load | None = None

    def load(self, path: str, probe: str | None = None) -> Loaded:
        """Hold the policy folder ``path``, checked against ``probe.json`` there (or in the folder ``probe``).

        Raises:
            RunError: the engine failed, or does not hold these weights.
        """
        self._asked = Load(path, probe)
        for left in range(self._settings.retries, -1, -1):
            try:
                loaded = self._running().call(self._asked, Loaded, self._settings.start_timeout)
            except RunError:
                # What it says of its weights it would say again; a process that died or hung gets another try.
                answered = self._child is not None and self._child.alive
                self.kill()
                if answered or left == 0:
                    raise
            else:
                return loaded
        raise AssertionError("unreachable")

    @property
    def pid(self) -> int | None:
        """The process id of the child; None while there is none."""
        return None if self._child is None else self._child.pid

    def sample(
        self, requests: Sequence[SampleRequest], settings: config.SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        """See ``pipeline.sampling.sampler.Sampler.sample``; the engine goes on while the caller is busy with an answer.

        After a failure the requests that have no answer are asked again in a fresh engine; it fails for good when
        that happened ``retries`` times without an answer in between.
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
        """End the child and free all that it holds; a later ``load`` starts another."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def kill(self) -> None:
        """As ``close``, at once."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> "SamplerProcess":
        """Nothing starts before the first ``load``."""
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
            self._child = Child(SAMPLER, self._init, self._log, timeout, self._env, self._own_keys)
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
