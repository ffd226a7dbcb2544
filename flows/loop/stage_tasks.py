"""Each stage of a run as one Prefect task run, shown while it runs."""

import logging
from dataclasses import replace

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from flows.loop.object_store.held import HeldRun
from flows.loop.resources import used_by
from flows.loop.rounds import Reached, added
from flows.prefect_api.artefacts import Screen
from flows.prefect_api.events import AlarmRaised, GateDecided, RunCompleted, budget_reached, round_completed
from flows.prefect_api.slots import SharedSlots
from flows.report.findings.lag import KL_TO_SAMPLED, lag_line
from flows.report.findings.round_line import round_line
from flows.report.findings.run_end import whole_run
from flows.report.gather import evaluated_rounds, round_facts
from flows.report.markdown import clock_time
from flows.report.progress import Report, both, make_console, progress
from flows.report.trackers.follow import Trackers
from flows.run_folder.ancestry import sampled_round
from flows.run_folder.retention import free_room, told
from flows.run_folder.specs.suite_keys import SUITES
from flows.run_folder.stage_table import spec_of
from flows.stages.context import Context, needed
from flows.stages.run import run_stage
from flows.workers.local import Workers
from flows.workers.pool.shard_queue import ShardQueue
from pipeline.config import RunConfig
from pipeline.errors import RunError, UserError
from pipeline.safe_text import keyless, redacted
from pipeline.storage.run_folder import RunFolder
from pipeline.types.counts import number_of

# After which stage it is known whether the labels of which stages had enough budget.
_LABELLED = {"gold": ("gold",), "labels": ("labels",), "evaluation": (SUITES, "evaluation"), "gate": ("gate",)}


class StageTasks:
    """The stages of one run; each call is one Prefect task run."""

    def __init__(
        self,
        run: RunFolder,
        config: RunConfig,
        workers: Workers,
        screen: Screen,
        lease: HeldRun,
        trackers: Trackers,
        slots: SharedSlots,
        until: str | None = None,
    ) -> None:
        """``until``: ``ROUND:STAGE`` after which a call raises ``Reached``."""
        self._until = until
        self._lease = lease
        self._run = run
        self._config = config
        self._workers = workers
        self._screen = screen
        self._trackers = trackers
        self._slots = slots
        self._console = make_console()

    def __call__(self, name: str, round_: int, *inputs: str) -> str:
        """Complete stage ``name`` of ``round_`` from the artefacts ``inputs``."""
        artefact = self._task(name, round_)(self, name, round_, inputs, None)
        if f"{round_}:{name}" == self._until:
            raise Reached
        return artefact

    def streamed(self, source: str, name: str, round_: int, *inputs: str) -> str:
        """Complete ``source`` from ``inputs`` and, from its shards as they are finished, ``name``; return the latter.

        Two task runs at once. If one fails, what the other has begun is finished: all of ``source``, or the present
        shard of ``name``. Of two errors, that of ``source`` counts.
        """
        made = self._run.stage(round_, source).title
        if f"{round_}:{source}" == self._until or not needed(Context(self._run, self._config), round_, source):
            return self(name, round_, self(source, round_, *inputs))
        shards = ShardQueue(beside=name)
        with self._workers.side_by_side():
            beside = self._task(name, round_).submit(self, name, round_, (made,), shards)
            try:
                self._task(source, round_)(self, source, round_, inputs, shards)
            except Exception:
                shards.end(whole=False)
                beside.wait()
                raise
            shards.end(whole=True)
            artefact = beside.result()
        if f"{round_}:{name}" == self._until:
            raise Reached
        return artefact

    def trained(self, round_: int, *inputs: str) -> str:
        """Complete the policy of ``round_`` from ``inputs``; with a lag, sample for the next round meanwhile.

        If one fails, what the other has begun is finished: the training, or the present shard. Of two errors, that of
        the training counts.
        """
        following = round_ + 1
        if not self._samples_ahead(following):
            return self("policy", round_, *inputs)
        sampled = self._run.stage(sampled_round(self._run, self._config, following), "policy").title
        made = (*added(self, self._run, self._config, following), sampled)
        shards = ShardQueue(beside="samples")
        with self._workers.side_by_side():
            beside = self._task("samples", following).submit(self, "samples", following, made, shards)
            try:
                artefact = self._task("policy", round_)(self, "policy", round_, inputs, None)
            except Exception:
                shards.stop()
                beside.wait()
                raise
            shards.over = True
            beside.result()
        return artefact

    def _samples_ahead(self, round_: int) -> bool:
        config, last = self._config, self._config.rounds
        if self._until is not None:
            last = min(last, int(self._until.partition(":")[0]))
        ahead = config.training.lag > 0 and config.overlap and self._workers.stay and round_ <= last
        return ahead and needed(Context(self._run, config), round_ - 1, "policy")

    def _task(self, name: str, round_: int) -> "Task[[StageTasks, str, int, tuple[str, ...], ShardQueue | None], str]":
        # No tags: Prefect asks its server for a slot in each tag's concurrency limit, which costs seconds per task.
        return _stage.with_options(name=name, task_run_name=self._run_name(name, round_))

    def complete(self, name: str, round_: int, shards: ShardQueue | None = None) -> str:
        """Run the stage unless it is complete; the body of the task.

        ``shards``: it makes those, or reads those that another task makes meanwhile.
        """
        self._lease.check()
        artefact = self._run.stage(round_, name).title
        if shards is None and not needed(Context(self._run, self._config), round_, name):
            self._console.print(f"round {round_} · {name}: already complete", style="dim", highlight=False)
            return artefact
        label, unit = f"round {round_} · {name}", spec_of(name).unit
        whole = whole_run(self._run, self._config, round_, clock_time)
        with (
            self._slots.held(used_by(self._config, name), self._say, self._lease.require),
            self._screen.stage(round_, self._run_name(name, round_), unit, whole) as shown,
            progress(label, unit, self._console, whole) as printed,
        ):
            report = both(self._while_held, both(shown, printed))
            report = both(report, lambda *_: self._trackers.look())
            self._work(name, round_, report, shards)
        self._trackers.follow()
        self._lease.publish()
        manifest = self._run.stage(round_, name).require()
        self._tell_of_padding(manifest.metrics.get("padded_because"))
        self._tell_of_alarms(round_, name)
        self._tell_of_budget(round_, name)
        self._tell_of_round(round_, name)
        took = f"{number_of(manifest.rows, 'row')} in {manifest.seconds:.1f} s"
        get_run_logger().info(took)
        self._console.print(f"{label}: {took}", markup=False, highlight=False)
        return artefact

    def _say(self, line: str) -> None:
        get_run_logger().info("%s", line)
        self._console.print(line, markup=False, highlight=False)

    def _work(self, name: str, round_: int, report: Report, shards: ShardQueue | None) -> None:
        context = Context(self._run, self._config, report)
        if shards is not None:
            context = replace(context, on_shard=shards.put)
        try:
            if spec_of(name).sampled:
                run_stage(context, round_, name, self._workers)
            else:
                self._workers.run_stage(round_, name, report, shards)
        except (RunError, UserError) as error:
            if shards is not None and shards.beside == name and not shards.over:
                told = f"{redacted(error)}; the stage beside it goes on to its end, then the run stops"
                self._console.print(f"round {round_} · {name}: {told}", markup=False, highlight=False, style="bold")
            raise

    def _tell_of_padding(self, why: object) -> None:
        """Warn that prompts are not shared although packing is on; this costs time and memory.

        Draws of images have no prompts to share.
        """
        if why is not None and self._config.training.packing and self._config.modality == "text":
            get_run_logger().warning("Rows are padded and prompts computed for each response: %s", why)
            self._console.print(f"rows are padded, prompts not shared: {why}", markup=False, highlight=False)

    def _tell_of_alarms(self, round_: int, name: str) -> None:
        """Warn of what a round's training ended with."""
        if name != "policy" or round_ == 0:
            return
        training = round_facts(self._run, self._config, round_, comparisons=0).training
        for notice in () if training is None else training.notices():
            get_run_logger().warning("%s", notice)
            self._console.print(notice, markup=False, highlight=False, style="bold")
            self._screen.tell(AlarmRaised(round_, notice))

    def _tell_of_round(self, round_: int, name: str) -> None:
        """Say in a line what came of the round, after its last stage."""
        if name != ("evaluation" if round_ == 0 or self._config.gate is None else "gate"):
            return
        facts = round_facts(self._run, self._config, round_, comparisons=0)
        line = round_line(facts)
        get_run_logger().info("%s", line)
        self._console.print(line, markup=False, highlight=False, style="bold")
        self._tell_of_lag(round_)
        before = round_facts(self._run, self._config, round_ - 1, comparisons=0) if round_ else None
        self._screen.tell(round_completed(facts, before, self._config.rounds))
        if facts.gate is not None:
            decided = GateDecided(round_, facts.gate.decision, facts.gate.reasons, facts.gate.best_round)
            self._screen.tell(decided)

    def _tell_of_lag(self, round_: int) -> None:
        """Say how far behind the policy the next samples are, and warn if that grows."""
        if round_ == 0 or not self._config.training.lag:
            return
        measured = [self._run.stage(number, "evaluation").require().metrics for number in range(1, round_ + 1)]
        if KL_TO_SAMPLED not in measured[-1]:
            # Of images it is not known.
            return
        line, warns = lag_line(measured)
        get_run_logger().log(logging.WARNING if warns else logging.INFO, "%s", line)
        self._console.print(line, markup=False, highlight=False, style="bold" if warns else None)

    def _tell_of_budget(self, round_: int, name: str) -> None:
        """Tell Prefect of a budget that was spent before all questions of the stage were asked."""
        if name not in _LABELLED:
            return
        for labels in round_facts(self._run, self._config, round_, comparisons=0).labels:
            reached = budget_reached(round_, labels) if labels.stage in _LABELLED[name] else None
            if reached is not None:
                self._screen.tell(reached)

    def tell_of_end(self) -> None:
        """Tell Prefect that no round is left to do."""
        done = evaluated_rounds(self._run)[-1]
        self._screen.tell(RunCompleted(done, str(self._run.root / "report.html")))

    def free_room(self) -> None:
        """Remove what no later stage reads, as far as the config allows, and report it."""
        freed = free_room(self._run, self._config)
        if freed:
            self._console.print(told(freed), markup=False, highlight=False)

    def _while_held(self, done: int, total: int, note: str) -> None:
        """End the working children, whose progress this is, if the lease is lost."""
        self._lease.require()

    def _run_name(self, name: str, round_: int) -> str:
        # ASCII alone: the timeline in Prefect's UI drops all other characters.
        if name != "policy":
            return f"round {round_} - {name.replace('_', ' ')}"
        if round_ == 0:
            return "round 0 - start policy"
        loss = self._config.loss
        return f"round {round_} - train - {loss.preset} beta={loss.inputs.beta:g}"


@task(name="stage", cache_policy=NO_CACHE, persist_result=False, retries=0)
def _stage(stages: StageTasks, name: str, round_: int, inputs: tuple[str, ...], shards: ShardQueue | None) -> str:
    # Prefect shows a task's errors in its log and in its state.
    with keyless():
        return stages.complete(name, round_, shards)
