"""Commands that run: ``run``, ``sweep``."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.cli.arguments import Items, complete_items, forgotten_unless_begun, split, split_sound
from flows.loop.object_store.places import local_path, run_place
from pipeline.errors import UserError


def run(
    items: Items,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            parser=run_place, metavar="DIR|URL", help="the run's folder  [default: runs/NAME]", show_default=False
        ),
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
    machine_rank: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="R",
            help="rank of this machine if the accelerate config has several; the machine of rank 0 drives the run, the "
            "others train with it  [default: machine_rank of that file]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start a run, or continue one that was stopped or killed."""
    if dry_run and redo_from is not None:
        raise UserError("--dry-run: changes nothing, so it does not go with --from")
    # SIGTERM works like Ctrl-C: children end, and the message says how to continue.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with forgotten_unless_begun(run_dir):
            given = split_sound(items)
            from flows.commands.run import dry, run_config

            if dry_run:
                dry(*given, run_dir, until)
                return
            run_config(*given, run_dir, extend, until, redo_from, machine_rank)
    except KeyboardInterrupt:
        again = "the same command" if redo_from is None else "the same command without --from"
        print(f"prefloop: interrupted; {again} goes on from the last complete shard", file=sys.stderr)
        raise typer.Exit(130) from None


def sweep(
    items: Annotated[
        list[str],
        typer.Argument(
            autocompletion=complete_items,
            metavar="CONFIG|KEY=VALUE,VALUE",
            help="YAML files, each laid over the ones before, then settings; those with several values, such as "
            "training.learning_rate=1e-7,3e-7,1e-6, make a run for each combination",
            show_default=False,
        ),
    ],
    run_dir: Annotated[
        Path | None,
        typer.Option(
            parser=local_path, metavar="DIR", help="folder of all runs  [default: runs/NAME-sweep]", show_default=False
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="most training steps of each round: training.max_steps", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the runs; writes nothing")] = False,
) -> None:
    """Run a config with several values of some settings.

    One run after the other; those that are surely worse are stopped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from flows.commands.sweep import run_sweep

        raise typer.Exit(run_sweep(*split(items), run_dir, steps, dry_run))
    except KeyboardInterrupt:
        print("prefloop: interrupted; the same command goes on from the last complete shard", file=sys.stderr)
        raise typer.Exit(130) from None
