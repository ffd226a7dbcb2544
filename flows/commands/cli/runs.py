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
        bool, typer.Option("--extend", help="go on with more rounds than the folder's config has")
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
            help="set this stage, and all that was made from it, aside and make them again",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say which stages would run, with their keys; starts and writes nothing")
    ] = False,
) -> None:
    """Run a config; the same command again goes on where a run was stopped or killed."""
    from prefect.exceptions import Abort, TerminationSignal

    from flows.commands.run import dry, run_config

    if dry_run:
        if redo_from is not None:
            raise UserError("--dry-run: tells what is there; --from would change that")
        dry(*split(items), run_dir, until)
        return
    # Being told to stop is handled like Ctrl-C: children end, and the message says how to go on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_config(*split(items), run_dir, extend, until, redo_from)
    except (KeyboardInterrupt, TerminationSignal, Abort):
        again = "the same command" if redo_from is None else "the same command without --from"
        print(f"prefloop: interrupted; {again} goes on from the last complete shard", file=sys.stderr)
        raise typer.Exit(130) from None
