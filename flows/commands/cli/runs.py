"""Commands that run: ``run``."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.cli.arguments import Items, split
from pipeline.errors import UserError


def run(
    items: Items,
    run_dir: Annotated[
        Path | None, typer.Option(help="the run's folder  [default: runs/NAME]", show_default=False)
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="add rounds: continue with more than the folder's config has")
    ] = False,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="ROUND:STAGE",
            help="stop after this stage, such as 1:pairs; the same command without it goes on",
            show_default=False,
        ),
    ] = None,
    redo_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ROUND:STAGE",
            help="set aside this stage and everything made from it, and make them again",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the stages that would run, and their keys; writes nothing")
    ] = False,
) -> None:
    """Run a config; the same command continues where a run was stopped or killed."""
    from prefect.exceptions import Abort, TerminationSignal

    from flows.commands.run import dry, run_config

    if dry_run:
        if redo_from is not None:
            raise UserError("--dry-run: changes nothing, so it does not go with --from")
        dry(*split(items), run_dir, until)
        return
    # SIGTERM works like Ctrl-C: children end, and the message says how to continue.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_config(*split(items), run_dir, extend, until, redo_from)
    except (KeyboardInterrupt, TerminationSignal, Abort):
        again = "the same command" if redo_from is None else "the same command without --from"
        print(f"prefloop: interrupted; {again} goes on from the last complete shard", file=sys.stderr)
        raise typer.Exit(130) from None
