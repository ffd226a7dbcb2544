"""The offline flow: rounds of training on slices of a fixed pair data set."""

from pathlib import Path

from prefect import State, flow

from flows.loop.entry import Firing, carry_out, run_name
from flows.loop.opening import open_run
from flows.loop.rounds import learn, start_run
from flows.prefect_api.deployed.parameters import ConfigFiles, RedoFrom, RunDir, Settings, Until
from flows.report.model_card import write_card
from flows.report.write import write_report
from flows.run_folder.ancestry import parent
from flows.run_folder.approvals import goes_on


@flow(name="offline", flow_run_name=run_name, persist_result=False, retries=0)
def offline(
    run_dir: RunDir,
    config: ConfigFiles = (),
    settings: Settings = (),
    until: Until = None,
    redo_from: RedoFrom = None,
) -> State[str]:
    """Rounds of training on slices of a fixed data set; a run continues in its folder. Returns the report."""
    firing = Firing("offline", run_dir, config, settings, 0, until, redo_from)
    return carry_out(firing, _rounds)


def _rounds(root: Path, until: str | None) -> str:
    with open_run(root, until) as (run, config, stage):
        data, _ = start_run(stage, config)
        for round_ in range(1, config.rounds + 1):
            policy = run.stage(parent(run, config, round_), "policy").title
            pairs = stage("pairs", round_, data, policy)
            learn(stage, config, round_, pairs, policy)
            write_report(run, config)
            write_card(run, config, round_)
            if not goes_on(run, round_):
                break
            stage.free_room()
        stage.tell_of_end()
    return str(write_report(run, config))
