"""The child processes of a run: some sample, one does everything else with torch.

They are separate so that ending one surely frees its memory, and so that vLLM's pinning of threads
to cores never slows training. On CPU all stay warm for the whole run. On accelerators engines and trainer are there in
turn, unless ``placement`` or ``keep_warm`` is set otherwise.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from flows.report.progress import Report
from flows.workers.child import Child
from flows.workers.machines.cluster.connection import require_ray
from flows.workers.messages import TRAINER, Done, Loaded, RunStage, StageProgress, TrainerInit
from flows.workers.patience import further_seconds
from flows.workers.pool.sampler_engine import start_child
from flows.workers.pool.sampler_pool import SamplerPool
from flows.workers.pool.seating import Seating, seating_of
from flows.workers.pool.shard_queue import ShardQueue
from pipeline.config import (
    ChatSettings,
    DiffusersSampler,
    PretrainedPolicy,
    RayCluster,
    RunConfig,
    SamplerSettings,
    SamplingSettings,
    ServerSampler,
    TransformersSampler,
)
from pipeline.config.evaluation.suites import longest_sequence
from pipeline.safe_text import key_variables
from pipeline.sampling.sampler import SampleRequest
from pipeline.types import Response

if TYPE_CHECKING:
    from flows.workers.machines.cluster.crew import Crew
    from flows.workers.machines.cluster.remote import RemoteChild

# NVIDIA cards (also a container that sees only its fourth), AMD cards, NVIDIA under WSL.
ACCELERATORS = ("nvidia[0-9]*", "kfd", "dxg")


def has_accelerator() -> bool:
    """True if this machine's device files show an accelerator."""
    return any(next(Path("/dev").glob(pattern), None) for pattern in ACCELERATORS)


def with_context(config: RunConfig) -> SamplerSettings:
    """Fill in the context of the run's sampler settings: the longest prompt, the longest response and one token.

    A large policy has more time to start.

    An engine that reserves a model's full context does not start if memory is short.
    """
    longer = {"start_timeout": config.sampler.start_timeout + further_seconds(config)}
    sampler = config.sampler.model_copy(update=longer)
    if isinstance(sampler, TransformersSampler | DiffusersSampler) or sampler.context is not None:
        return sampler
    # At least the setting's minimum.
    suites, usual = config.evaluation.suites, config.sampling.max_tokens
    needed = max(32, longest_sequence(suites, config.chat.max_prompt_tokens, usual) + 1)
    return sampler.model_copy(update={"context": needed})


def stays_warm(config: RunConfig) -> bool:
    """True if the sampler's process stays while the trainer works, and the other way round."""
    if isinstance(config.sampler, ServerSampler) and config.sampler.base_url is not None:
        # It holds no memory here, and it remembers the server's old weights, which reveals stale ones.
        return True
    if config.placement == "split":
        return True
    match config.sampler.keep_warm:
        case "always":
            return True
        case "never":
            return False
        case "auto":
            return not has_accelerator()


def crew_of(config: RunConfig, root: Path) -> "Crew | None":
    """Connect to the cluster of ``config``; None: it has none. Raises ``UserError``."""
    if not isinstance(config.cluster, RayCluster):
        return None
    require_ray()
    from flows.workers.machines.cluster.crew import Crew

    return Crew(config.cluster, config, root)


class Workers:
    """All children, each started at first use; ``close`` (or leaving the block) ends them."""

    def __init__(self, root: Path, config: RunConfig, seating: Seating | None = None) -> None:
        """``seating``: who has which cards; default: see ``seating_of``, or a cluster's.

        Raises ``UserError`` if a cluster cannot be reached, or cannot hold the run.
        """
        self._crew = crew_of(config, root)
        if seating is None:
            seating = seating_of(config) if self._crew is None else self._crew.seating
        self.seating = seating
        self._root = root
        self._config = config
        self._logs = root / "logs"
        self._keys = key_variables(config.model_dump(mode="json"))
        self._patience = further_seconds(config)
        self._start = start_child if self._crew is None else self._crew.start
        self._sampler = SamplerPool(
            with_context(config),
            config.chat,
            self._logs / "sampler.log",
            config.trusts_policy,
            self._keys,
            config.policy.quantisation if isinstance(config.policy, PretrainedPolicy) else None,
            adapters=config.training.lora is not None and config.training.lora.lifetime == "run",
            seats=self.seating.engines,
            start=self._start,
        )
        self._warm = stays_warm(config) if self._crew is None else self._crew.placing.stay
        self._beside = False
        self._held: tuple[str, str | None] | None = None
        self._trainer: Child[StageProgress] | None = None
        self._ranks: RemoteChild[StageProgress] | None = None
        self.swaps: dict[str, Loaded] = {}

    @property
    def stay(self) -> bool:
        """Whether engines and trainer are there at the same time."""
        return self._warm

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._sampler.kill()
        self.close()

    def close(self) -> None:
        """End all children."""
        self._end_sampler()
        self._end_trainer()
        if self._crew is not None:
            self._crew.close()

    def free_accelerator(self) -> None:
        """End the children that compute on this machine; each starts again at its next use."""
        if not (isinstance(self._config.sampler, ServerSampler) and self._config.sampler.base_url is not None):
            self._end_sampler()
        self._end_trainer()

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Inside the block, engines sample while the trainer's process works; one of them is called in another thread.

        An error other than a stage's own ends both at once.
        """
        if not self._warm:
            self._end_trainer()
        self._beside = True
        try:
            yield
        except Exception:
            raise
        except BaseException:
            if self._trainer is not None:
                self._trainer.kill()
            self._sampler.abandon()
            raise
        finally:
            self._beside = False

    def run_stage(self, round_: int, name: str, report: Report, shards: ShardQueue | None = None) -> None:
        """Run a torch stage in the trainer child, or in a cluster's training processes, which also commit it.

        ``shards``: of a stage that is still being made and that this one reads by shard; None: it is complete.
        """
        if not (self._warm or self._beside):
            self._end_sampler()

        def on_progress(progress: StageProgress) -> None:
            report(progress.done, progress.total, progress.note)
            # It tells of progress as long as it waits, so this is soon.
            if shards is not None:
                shards.forward(self._of_this_machine().send)

        # The deadline limits silence: stages report after each step, batch or shard.
        warm_start = self._config.warm_start if (round_, name) == (0, "policy") else None
        timeout = (warm_start or self._config.training).stall_timeout + self._patience
        try:
            if self._crew is not None and self._crew.trains(round_, name):
                # They start with the stage.
                timeout += self._config.sampler.start_timeout
                self._of_cluster(self._crew).call(RunStage(round_, name), Done, timeout, on_progress)
            else:
                if isinstance(self._config.cluster, RayCluster):
                    # Labellers start with the stage, and show no work on this machine.
                    timeout += self._config.sampler.start_timeout + self._config.cluster.place_timeout
                request = RunStage(round_, name, shards is not None)
                self._of_this_machine().call(request, Done, timeout, on_progress)
        except BaseException:
            self._end_trainer()
            raise

    def _of_this_machine(self) -> Child[StageProgress]:
        if self._trainer is None or not self._trainer.alive:
            self._end_trainer()
            # What several processes do is done on the cluster.
            config = self._config if self._crew is None else self._config.model_copy(update={"accelerate": None})
            init = TrainerInit(str(self._root), config.model_dump(mode="json"))
            # A user's reward function runs there and may print anything.
            timeout = self._config.sampler.start_timeout + self._patience
            env = self.seating.rest.environment()
            self._trainer = Child(TRAINER, init, self._logs / "trainer.log", timeout, env)
        return self._trainer

    def _of_cluster(self, crew: "Crew") -> "RemoteChild[StageProgress]":
        if self._ranks is None or not self._ranks.alive:
            self._ranks = crew.trainer()
        return self._ranks

    def sample(
        self,
        policy: Path,
        probe: Path,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        mixed: tuple[Path, Path] | None = None,
    ) -> Iterator[tuple[Response, ...]]:
        """Sample responses of ``policy`` to each request, after loading and checking new weights with ``probe``.

        Requests come in shards of ``shard_size``, the last of which may be smaller. ``mixed``: folder and probe of the
        other model of a mixture.
        """
        self._hold(policy, probe, mixed)
        return self._sampler.sample(requests, settings, self._config.shard_size)

    def sample_second(
        self,
        chat: ChatSettings,
        policy: Path,
        probe: Path,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
    ) -> Iterator[tuple[Response, ...]]:
        """Sample responses of a model that is not the run's own, with ``chat``, in engines that end afterwards."""
        self._end_sampler()
        if not (self._warm or self._beside):
            self._end_trainer()
        log = self._logs / "second_sampler.log"
        engine, seats = with_context(self._config), self.seating.engines
        with SamplerPool(engine, chat, log, keys=self._keys, seats=seats, start=self._start) as pool:
            self.swaps[str(policy)] = pool.load(str(policy), str(probe))
            yield from pool.sample(requests, settings, self._config.shard_size)

    def score(self, policy: Path, probe: Path, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs of each sequence's tokens 1..T-1 under ``policy``; loads and checks it as ``sample`` does."""
        self._hold(policy, probe, None)
        return self._sampler.score(sequences)

    def ranked(self, policy: Path, probe: Path, sequences: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """The same, and whether each token is the likeliest one."""
        self._hold(policy, probe, None)
        return self._sampler.ranked(sequences)

    def _hold(self, policy: Path, probe: Path, mixed: tuple[Path, Path] | None) -> None:
        if not (self._warm or self._beside):
            self._end_trainer()
        wanted = (str(policy), None if mixed is None else str(mixed[0]))
        if self._held != wanted:
            self._held = None
            others = None if mixed is None else (str(mixed[0]), str(mixed[1]))
            self.swaps[str(policy)] = self._sampler.load(str(policy), str(probe), others)
            self._held = wanted

    def sampler_pids(self) -> list[int]:
        """Return the process ids of the engines that run."""
        return self._sampler.pids

    def _end_sampler(self) -> None:
        self._held = None
        self._sampler.close()

    def _end_trainer(self) -> None:
        child, self._trainer = self._trainer, None
        if child is not None:
            child.close()
        ranks, self._ranks = self._ranks, None
        if ranks is not None:
            ranks.kill()
