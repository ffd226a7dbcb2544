"""Commands that show what a run has made: ``show``, ``report``, ``verify``, ``pairs``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.cli.arguments import RunFolderArgument
from flows.loop.object_store.places import fetched_run, local_path
from pipeline.errors import UserError


def show(
    run_folder: RunFolderArgument,
    as_json: Annotated[bool, typer.Option("--json", help="all rounds' metrics as JSON on standard output")] = False,
) -> None:
    """Show the rounds of a run as a table, with small charts."""
    from flows.report.terminal import print_story, print_table, read_rounds

    rounds = read_rounds(run_folder)
    if as_json:
        print(json.dumps(rounds, indent=1, ensure_ascii=False))
    else:
        print_table(run_folder, rounds)
        print_story(run_folder)


def report(
    run_folders: Annotated[
        list[Path],
        typer.Argument(parser=fetched_run, metavar="RUN...", help="run folders, or their URLs", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            parser=local_path, metavar="FILE", help="[default: report.html in the run's folder]", show_default=False
        ),
    ] = None,
) -> None:
    """Write the report of a run, or of several side by side.

    One self-contained page.
    """
    from flows.report.write import report_runs

    print(report_runs(run_folders, output))


def verify(
    run_folder: RunFolderArgument,
    as_json: Annotated[bool, typer.Option("--json", help="the findings for each stage as JSON")] = False,
) -> None:
    """Check every file of a run against its SHA-256.

    Exit code 1 if one is damaged.
    """
    from flows.commands.verify import print_verification
    from flows.commands.verify import verify_run as read_all

    found = read_all(run_folder)
    print_verification(found, as_json)
    raise typer.Exit(1 if found.faults else 0)


def pairs(
    run_folder: RunFolderArgument,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="with --preview: such as pairing.rule=all", show_default=False),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="make the pairs again from existing labels; writes nothing")
    ] = False,
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="[default: the newest; --export: all]", show_default=False)
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE", help="write them to a JSONL file, which pairs.path reads", show_default=False
        ),
    ] = None,
) -> None:
    """Show the pairs that a round trains on.

    Yield by cause, margins, lengths, ten examples.
    """
    from flows.commands.pairs import export_pairs, show_pairs

    if export is not None:
        if preview or settings:
            raise UserError("--export: writes the pairs that were made; leave --preview and settings out")
        typer.echo(export_pairs(run_folder, export, round_))
        return
    show_pairs(run_folder, settings or [], round_, preview)
