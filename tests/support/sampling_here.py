"""Sampling in the test's own process, by the real engine of transformers, with its handshakes."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flows.workers.messages import Load, SampleCall, SamplerInit, Score
from flows.workers.sampler_service import SamplerService
from pipeline.config import ChatSettings, RunConfig, SamplingSettings, TransformersSampler
from pipeline.sampling.sampler import SampleRequest
from pipeline.types import Response

ENGINE = TransformersSampler(dtype="float32", batch_size=8)


class SamplesHere:
    """Stands for ``flows.workers.local.Workers``, whichever engine the config names.

    ``scored`` and ``sampled`` count sequences and requests, ``second`` answers of a second policy; ``loads`` are what
    the service was asked to hold.
    """

    def __init__(self, config: RunConfig) -> None:
        self.swaps: dict[str, Any] = {}
        self.loads: list[Load] = []
        self.scored = self.sampled = self.second = 0
        self._config = config
        self._service = self._new()

    def _new(self) -> SamplerService:
        service = SamplerService()
        service.init(SamplerInit(ENGINE.model_dump(mode="json"), self._config.chat.model_dump(mode="json")), _silent)
        return service

    def sample(
        self,
        policy: Path,
        probe: Path,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        mixed: tuple[Path, Path] | None = None,
    ) -> Iterator[tuple[Response, ...]]:
        self._load(policy, probe, mixed)
        said: list[Any] = []
        self.sampled += len(requests)
        caller: Any = said.append
        self._service.sample(SampleCall(tuple(requests), settings.model_dump(mode="json")), caller)
        yield from (sampled.responses for sampled in said)

    def sample_second(
        self,
        chat: ChatSettings,
        policy: Path,
        probe: Path,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
    ) -> Iterator[tuple[Response, ...]]:
        apart = SamplesHere(self._config.model_copy(update={"chat": chat}))
        answers = apart.sample(policy, probe, requests, settings)
        for answer in answers:
            self.second += 1
            yield answer
        self.swaps |= apart.swaps

    def score(self, policy: Path, probe: Path, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        self._load(policy, probe, None)
        self.scored += len(sequences)
        return self._service.score(Score(tuple(map(tuple, sequences))), _silent).rows

    def ranked(self, policy: Path, probe: Path, sequences: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        self._load(policy, probe, None)
        self.scored += len(sequences)
        reply = self._service.score(Score(tuple(map(tuple, sequences)), best=True), _silent)
        return [[*zip(*row, strict=True)] for row in zip(reply.rows, reply.best, strict=True)]

    def sampler_pids(self) -> list[int]:
        return [os.getpid()]

    def _load(self, policy: Path, probe: Path, mixed: tuple[Path, Path] | None) -> None:
        beside = (None, None) if mixed is None else (str(mixed[0]), str(mixed[1]))
        asked = Load(str(policy), str(probe), *beside)
        if not self.loads or self.loads[-1] != asked:
            self.swaps[str(policy)] = self._service.load(asked, _silent)
            self.loads.append(asked)


def _silent(progress: object) -> None:
    """Nothing."""
