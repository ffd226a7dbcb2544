"""The parent's side of the sampler: a child process that holds an engine, started when first needed."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from flows.child import Child
from pipeline import config
from pipeline.sample import SampleRequest
from pipeline.types import Response, RunError


class SamplerProcess:
    """Samples through a child process; a shard that fails is tried again in a fresh one."""

    def __init__(self, sampler: config.Sampler, chat: config.Chat, log: Path, trust_remote_code: bool = False) -> None:
        """Nothing starts before the first ``load``."""
        self._settings = sampler
        self._init = {
            "sampler": sampler.model_dump(mode="json"),
            "chat": chat.model_dump(mode="json"),
            "trust_remote_code": trust_remote_code,
        }
        self._log = log
        self._child: Child | None = None
        self._loaded: dict[str, Any] = {}

    def load(self, path: str, probe: str | None = None) -> dict[str, Any]:
        """Hold the policy folder ``path``, checked against ``probe.json`` there (or in the folder ``probe``).

        Returns:
            {"how": start | reload | restart | unchanged, "max_difference": nats, "stale_reload": what the
            handshake said of a swap in place that failed it, or None, "seconds": float}

        Raises:
            RunError: the engine failed, or does not hold these weights.
        """
        self._loaded = {"path": path, "probe": probe}
        try:
            report: dict[str, Any] = self._running().call("load", self._loaded, self._settings.start_timeout)
        except RunError:
            self.kill()
            raise
        return report

    def sample(
        self, requests: Sequence[SampleRequest], settings: config.SamplingSettings
    ) -> list[tuple[Response, ...]]:
        """See ``pipeline.sample.Sampler.sample``."""
        args = {
            "requests": [{"prompt_ids": r.prompt_ids, "seed": r.seed} for r in requests],
            "settings": settings.model_dump(mode="json"),
        }
        return [tuple(_response(r) for r in group) for group in self._call("sample", args)]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``pipeline.sample.Sampler.score``."""
        scores: list[list[float]] = self._call("score", {"sequences": [list(s) for s in sequences]})
        return scores

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

    def _running(self) -> Child:
        if self._child is None or not self._child.alive:
            self._child = Child("flows.sampler_child", self._init, self._log, self._settings.start_timeout)
        return self._child

    def _call(self, name: str, args: dict[str, Any]) -> Any:
        if not self._loaded:
            raise RunError("the sampler was called before it loaded a policy")
        for left in range(self._settings.retries, -1, -1):
            try:
                if self._child is None:
                    self._running().call("load", self._loaded, self._settings.start_timeout)
                return self._running().call(name, args, self._settings.shard_timeout)
            except RunError:
                self.kill()
                if left == 0:
                    raise
        raise AssertionError("unreachable")


def _response(fields: dict[str, Any]) -> Response:
    return Response(fields["text"], tuple(fields["token_ids"]), tuple(fields["logprobs"]), fields["finish_reason"])
