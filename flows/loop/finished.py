"""A run in which nothing is left to do, told from its manifests without Prefect and its server. Torch-free."""

from flows.loop.object_store.held import hold_run
from flows.loop.rounds import Reached, Stages, added, labelled, learn, start_run
from flows.report.model_card import write_card
from flows.report.progress import make_console
from flows.report.write import write_report
from flows.run_folder.ancestry import parent
from flows.run_folder.approvals import goes_on
from flows.run_folder.lease import may_be_shown_as_running
from flows.run_folder.links import require_own_folders
from flows.run_folder.redo import finish_setting_aside
from flows.run_folder.stage_keys import stage_key
from pipeline.config import RunConfig
from pipeline.errors import Paused, RunError, UserError
from pipeline.safe_text import name_keys
from pipeline.storage.run_folder import RunFolder


def report_if_finished(run: RunFolder, config: RunConfig, until: str | None) -> str | None:
    """Write report and model cards anew and return the report's path, if every stage up to ``until`` is complete.

    None if a stage is to do, if its key differs from the present one, if a person is to decide, or if anything else is
    left to the flow: trackers that may have more to log, weights to remove, or a flow run whose end Prefect does not
    know.
    """
    if config.trackers or config.retention.last is not None or may_be_shown_as_running(run.root):
        return None
    name_keys(config.model_dump(mode="json"))
    stages = _Complete(run, config, until)
    try:
        require_own_folders(run.root)
        with hold_run(run.root):
            finish_setting_aside(run)
            rounds = _walk(run, config, stages)
            console = make_console()
            for round_, name in stages.done:
                console.print(f"round {round_} · {name}: already complete", style="dim", highlight=False)
            for round_ in rounds:
                write_card(run, config, round_)
            return str(write_report(run, config))
    except (_LeftError, UserError, RunError, Paused):
        # The flow meets it again, and says what there is to say.
        return None


class _LeftError(Exception):
    """A stage is not complete."""


class _Complete(Stages):
    """Stand-in for a flow's stages that makes none."""

    def __init__(self, run: RunFolder, config: RunConfig, until: str | None) -> None:
        self._run, self._config, self._until = run, config, until
        self.done: list[tuple[int, str]] = []

    def __call__(self, name: str, round_: int, *inputs: str) -> str:
        stage = self._run.stage(round_, name)
        if not stage.complete(stage_key(self._run, self._config, round_, name)):
            raise _LeftError
        self.done.append((round_, name))
        if f"{round_}:{name}" == self._until:
            raise Reached
        return stage.title


def _walk(run: RunFolder, config: RunConfig, stage: _Complete) -> list[int]:
    """Go the way of the flows; return the rounds that were walked to their end."""
    walked: list[int] = []
    try:
        data, _ = start_run(stage, config)
        for round_ in range(1, config.rounds + 1):
            policy = run.stage(parent(run, config, round_), "policy").title
            if config.mode == "iterative":
                labels = labelled(stage, config, round_, *added(stage, run, config, round_), policy)
                pairs = stage("pairs", round_, labels)
            else:
                pairs = stage("pairs", round_, data, policy)
            learn(stage, config, round_, pairs, policy)
            walked.append(round_)
            if not goes_on(run, round_):
                break
    except Reached:
        pass
    return walked
