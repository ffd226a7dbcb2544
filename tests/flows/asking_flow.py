"""A flow that does nothing but ask: its gate has paused the run, until a person has answered."""

from pathlib import Path

from prefect import flow

from flows.approvals import waiting
from flows.firing import Firing, carry_out
from flows.parameters import RunDir
from pipeline.store import RunFolder
from pipeline.types import Paused


def _rounds(root: Path, until: str | None) -> str:
    if waiting(RunFolder(root)):
        raise Paused("round 1: reward up, second labeller down")
    return f"{root} went on"


@flow(name="asking", persist_result=False, retries=0)
def asking(run_dir: RunDir) -> str:
    return carry_out(Firing("iterative", run_dir), _rounds)
