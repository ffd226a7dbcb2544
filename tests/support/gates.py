"""The gate of a round, as its stage leaves it."""

from flows.run_folder.approvals import write_decision
from pipeline.evaluation.gate import Decision, Verdict
from pipeline.storage.manifest import StageKey
from pipeline.storage.run_folder import RunFolder


def decided(run: RunFolder, round_: int, verdict: Verdict, best_round: int, reason: str = "KL is 3.1") -> None:
    """Commit the stage with this decision."""
    writer = run.stage(round_, "gate").begin(StageKey({}, {}, 0))
    write_decision(writer.folder, Decision(decision=verdict, reasons=(reason,), best_round=best_round))
    writer.commit(1, {"decision": verdict, "best_round": best_round})
