"""Commands for operating runs: ``approve``."""

from typing import Annotated

import typer

from flows.commands.cli.arguments import RunFolderArgument
from flows.loop.object_store.address import LINK_FILE


def approve(
    run_folder: RunFolderArgument,
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="[default: the newest that is waiting]", show_default=False)
    ] = None,
    decision: Annotated[str, typer.Option(help="promote, stop, or roll_back to the best round")] = "promote",
    by: Annotated[str | None, typer.Option(help="who decides  [default: your login name]", show_default=False)] = None,
    reason: Annotated[str, typer.Option(help="why; kept with the decision")] = "",
) -> None:
    """Decide on a run that its gate has paused or stopped.

    The same run command then continues.
    """
    from flows.prefect_api.deployed.decision_form import release
    from flows.run_folder.approvals import answer_gate

    print(answer_gate(run_folder, round_, decision, by, reason))
    if (run_folder / LINK_FILE).exists():
        from flows.loop.object_store.transfer import publish_answers

        publish_answers(run_folder)
    released = release(run_folder)
    if released is not None:
        print(f"Prefect's flow run {released}, which was waiting, goes on")
