"""The iterative flow: each round samples, labels, pairs, trains and evaluates."""

from pathlib import Path

from prefect import State, flow

from flows.loop.entry import Firing, carry_out, run_name
from flows.loop.opening import open_run
from flows.loop.rounds import added, labelled, learn, start_run
from flows.prefect_api.deployed.parameters import ConfigFiles, RedoFrom, RoundsMore, RunDir, Settings, Until
from flows.report.model_card import write_card
from flows.report.write import write_report
from flows.run_folder.ancestry import parent, sampled_round
from flows.run_folder.approvals import goes_on


@flow(name="iterative", flow_run_name=run_name, persist_result=False, retries=0)
def iterative(
    run_dir: RunDir,
    config: ConfigFiles = (),
    settings: Settings = (),
    rounds_more: RoundsMore = 0,
    until: Until = None,
    redo_from: RedoFrom = None,
) -> State[str]:
    """Each round samples, labels, pairs, trains and evaluates; a run continues in its folder. Returns the report."""
    firing = Firing("iterative", run_dir, config, settings, rounds_more, until, redo_from)
    return carry_out(firing, _rounds)


def _rounds(root: Path, until: str | None) -> str:
    with open_run(root, until) as (run, config, stage):
        start_run(stage, config)
        for round_ in range(1, config.rounds + 1):
            policy = run.stage(parent(run, config, round_), "policy").title
            sampled = run.stage(sampled_round(run, config, round_), "policy").title
            labels = labelled(stage, config, round_, *added(stage, run, config, round_), sampled)
            pairs = stage("pairs", round_, labels)
            learn(stage, config, round_, pairs, policy)
            write_report(run, config)
            write_card(run, config, round_)
            if not goes_on(run, round_):
                break
            stage.free_room()
        stage.tell_of_end()
    return str(write_report(run, config))
