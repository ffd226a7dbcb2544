"""The decision of a round's gate, a person's answer to it, and what follows the round. Torch-free."""

import getpass
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import get_args

from pydantic import JsonValue, ValidationError

from pipeline.config.files import load_settings
from pipeline.errors import Paused, RunError, UserError
from pipeline.evaluation.gate import Approval, Decision, HumanDecision, Verdict
from pipeline.storage.atomic import write_json
from pipeline.storage.run_folder import RunFolder

DECISION = "decision.json"


def read_decision(run: RunFolder, round_: int) -> Decision | None:
    """The decision of the gate of ``round_``; None before it decides. Raises ``RunError`` for a damaged file."""
    stage = run.stage(round_, "gate")
    file = stage.folder / DECISION
    if not file.is_file():
        return None
    text = file.read_bytes()
    try:
        decision = Decision.model_validate_json(text)
    except (ValueError, ValidationError) as error:
        raise RunError(f"{file}: not a readable decision ({str(error).splitlines()[0]}); restore it") from None
    with suppress(FileNotFoundError):
        # A missing manifest is reported where stages are looked up, not here.
        facts = stage.manifest_alone().files.get(DECISION, {})
        if facts.get("sha256") != sha256(text).hexdigest():
            raise RunError(f"{file}: not what its manifest says (SHA-256); {stage.redo}")
    return decision


def write_decision(folder: Path, decision: Decision) -> None:
    """Write the decision to ``folder``, where the stage ``gate`` is in progress."""
    write_json(folder / DECISION, json.loads(decision.model_dump_json()))


def approval_file(run: RunFolder, round_: int) -> Path:
    """The file of a person's answer."""
    return run.root / "approvals" / f"round_{round_:03d}.json"


def approvals(run: RunFolder) -> dict[int, Path]:
    """The files of people's answers, by round."""
    files = sorted(approval_file(run, 0).parent.glob("round_*.json"))
    numbers = [file.stem.removeprefix("round_") for file in files]
    return {int(number): file for number, file in zip(numbers, files, strict=True) if number.isdecimal()}


def read_approval(run: RunFolder, round_: int) -> Approval | None:
    """A person's answer, or None. Raises ``UserError`` that names the field and its allowed values."""
    file = approval_file(run, round_)
    return load_settings(Approval, [file]) if file.is_file() else None


def record_approval(root: Path, round_: int, decision: str, by: str | None = None, reason: str = "") -> Approval:
    """Answer the gate of ``round_``; the run follows the answer when it is started again.

    An answer can be replaced until the next round has begun.

    Raises:
        UserError: unknown run, round or decision, or a gate that needs no answer.
    """
    run = RunFolder.existing(root)
    if decision not in get_args(HumanDecision):
        raise UserError(f"decision: {decision!r} is not one of {', '.join(get_args(HumanDecision))}")
    made = read_decision(run, round_)
    if made is None:
        waits = ", ".join(map(str, waiting(run))) or "none"
        raise UserError(f"round: {round_} of {root} has no gate decision; rounds that wait for an answer: {waits}")
    if made.decision not in ("pause", "stop"):
        raise UserError(f"round: the gate of round {round_} decided {made.decision}, which needs no answer")
    if _begun(run, round_ + 1):
        raise UserError(f"round: round {round_ + 1} of {root} has begun; it is too late to answer round {round_}")
    try:
        approval = Approval.model_validate(
            {
                "decision": decision,
                "by": _login() if by is None else by,
                "reason": reason,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    file = approval_file(run, round_)
    try:
        file.parent.mkdir(exist_ok=True)
        write_json(file, json.loads(approval.model_dump_json()))
    except OSError as error:
        raise UserError(f"{file}: cannot write there ({error.strerror})") from None
    return approval


def answer_gate(root: Path, round_: int | None, decision: str, by: str | None, reason: str) -> str:
    """Answer for ``prefloop approve``, by default for the round that waits; return a message about what follows."""
    run = RunFolder.existing(root)
    if round_ is None:
        waits = waiting(run)
        if not waits:
            raise UserError(f"{root}: no round waits for an answer")
        round_ = waits[-1]
    record_approval(root, round_, decision, by, reason)
    made = read_decision(run, round_)
    best = 0 if made is None else made.best_round
    then = {
        "promote": f"the next round starts from round {round_}'s policy",
        "stop": "the run is done",
        "roll_back": f"the next round starts from round {best}'s policy",
    }[decision]
    return f"round {round_}: {decision}; {then}. Start the run again with the command that ran it"


def waiting(run: RunFolder) -> list[int]:
    """Rounds whose gate paused or stopped the run and that have no answer yet."""
    made = [(round_, read_decision(run, round_)) for round_ in run.rounds()]
    return [
        round_
        for round_, decision in made
        if decision is not None
        and decision.decision in ("pause", "stop")
        and read_approval(run, round_) is None
        and not _begun(run, round_ + 1)
    ]


@dataclass(frozen=True)
class Settled:
    """The outcome of a round: the gate's verdict, or a person's answer to it."""

    verdict: Verdict
    best_round: int
    answered: bool


def settled(run: RunFolder, round_: int) -> Settled | None:
    """The decision of the gate of ``round_``, or the person's answer to it; None before the gate decides."""
    made = read_decision(run, round_)
    if made is None:
        return None
    approval = read_approval(run, round_) if made.decision in ("pause", "stop") else None
    if approval is None:
        return Settled(made.decision, made.best_round, answered=False)
    # Promoting a round against its gate's decision makes it the best.
    best = round_ if approval.decision == "promote" else made.best_round
    return Settled(approval.decision, best, answered=True)


def answers_before(run: RunFolder, round_: int) -> dict[str, JsonValue]:
    """People's answers to the gates of earlier rounds."""
    approvals = {str(number): read_approval(run, number) for number in range(1, round_)}
    return {number: approval.decision for number, approval in approvals.items() if approval is not None}


def goes_on(run: RunFolder, round_: int) -> bool:
    """Whether a round follows ``round_``. Raises ``Paused`` if its gate waits for a person."""
    outcome, made = settled(run, round_), read_decision(run, round_)
    if outcome is None or made is None:
        return True
    if outcome.verdict == "pause":
        answer = f"answer with: {how_to_answer(run, round_)}, then give the same command again"
        raise Paused(f"{why_it_waits(round_, made)}\n{answer}")
    return outcome.verdict != "stop"


def why_it_waits(round_: int, made: Decision) -> str:
    """The reasons for which ``round_`` waits for a person, a line each."""
    return "\n".join([f"round {round_} waits for a person:", *(f"  {reason}" for reason in made.reasons)])


def how_to_answer(run: RunFolder, round_: int) -> str:
    """The command that answers the gate of ``round_``, and where a roll-back leads."""
    made = read_decision(run, round_)
    back = "" if made is None else f" (back to round {made.best_round})"
    return f"prefloop approve {run.root} --round {round_} --decision promote|stop|roll_back{back}"


def _begun(run: RunFolder, round_: int) -> bool:
    """Whether the round has made what depends on the gate before it; with a lag, its samples do not."""
    folder = run.stage(round_, "gate").folder.parent
    made = {path.name.removesuffix(".partial") for path in folder.iterdir()} if folder.is_dir() else set()
    return bool(made - {"samples", "added_prompts"}) or bool(made and not run.config().training.lag)


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        # In a container, the user may have no name.
        return ""
