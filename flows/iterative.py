"""The iterative flow: each round samples, labels, pairs, trains and evaluates."""

from pathlib import Path

from prefect import flow

from flows.opening import open_run
from flows.report import write_report
from flows.rounds import labelled, learn, start


@flow(name="iterative", flow_run_name="{name}", persist_result=False, retries=0)
def iterative(name: str, run_dir: str, until: str | None = None) -> str:
    """Run (or go on with) the run folder ``run_dir``, up to ``until`` if named; returns the report's path."""
    with open_run(Path(run_dir), until) as (run, config, stage):
        _, policy = start(stage)
        for round_ in range(1, config.rounds + 1):
            samples = stage("samples", round_, policy)
            labels = labelled(stage, config, round_, samples)
            pairs = stage("pairs", round_, labels)
            policy = learn(stage, config, round_, pairs, policy)
            write_report(run, config)
    return str(write_report(run, config))
