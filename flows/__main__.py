"""The command line: ``prefloop run | show | check | plan | pairs | losses | ui``.

Exit codes: 0 done, 1 a failure while running, 2 a mistake in config or data, 130 interrupted.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.environment import prepare_environment
from pipeline.types import RunError, UserError

app = typer.Typer(
    name="prefloop",
    help="Online preference learning: sample, label, pair, train, evaluate, repeat.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Items = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG... [KEY=VALUE]...",
        help="YAML files, each laid over the ones before, then settings such as training.learning_rate=1e-5",
        show_default=False,
    ),
]
RunFolderArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder", show_default=False)]


@app.command()
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
) -> None:
    """Run a config; the same command again goes on where a run was stopped or killed."""
    from prefect.exceptions import TerminationSignal

    from flows.running import run_config

    # Being told to stop is handled like Ctrl-C: children end, and the message says how to go on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_config(*_split(items), run_dir, extend, until)
    except (KeyboardInterrupt, TerminationSignal):
        print("prefloop: interrupted; the same command goes on from the last complete shard", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def show(
    run_folder: RunFolderArgument,
    as_json: Annotated[bool, typer.Option("--json", help="all rounds' metrics as JSON on standard output")] = False,
) -> None:
    """Show the rounds of a run."""
    from flows.table import print_table, read_rounds

    rounds = read_rounds(run_folder)
    if as_json:
        print(json.dumps(rounds, indent=1, ensure_ascii=False))
    else:
        print_table(run_folder, rounds)


@app.command()
def check(
    items: Items,
    faults: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="lists rows with faults  [default: runs/NAME.faults.jsonl]", show_default=False
        ),
    ] = None,
) -> None:
    """Validate config, data and model folders; count faults in the data by cause; starts nothing heavy."""
    from flows.checking import check_config

    check_config(*_split(items), faults)


@app.command()
def plan(
    items: Items,
    run_dir: Annotated[
        Path | None, typer.Option(help="where the run's folder is to be  [default: runs/NAME]", show_default=False)
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="KIND=N,...|FILE",
            help="tokens a second of sampling, labelling, scoring, training; or a YAML file of these",
            show_default=False,
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="measure the other rates: a few seconds of sampling and labelling")
    ] = False,
    response_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="mean tokens of a sampled response  [default: sampling.max_tokens]", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="bytes, tokens and seconds as JSON")] = False,
) -> None:
    """Tell what a run needs in memory, on disk and in time; exit code 1 if this machine does not have it."""
    from flows.plan_rates import given_rates

    # Rates are read first: a mistake in them is known at once.
    given = {} if rates is None else given_rates(rates)
    from flows.plan import plan_config
    from flows.plan_table import print_plan

    made = plan_config(*_split(items), run_dir, given, probe=probe, response_tokens=response_tokens)
    if as_json:
        print(json.dumps(made.plain(), indent=1))
    else:
        print_plan(made)
    raise typer.Exit(0 if made.fits else 1)


@app.command()
def pairs(
    run_folder: RunFolderArgument,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="with --preview: such as pairing.rule=all", show_default=False),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="make them anew from the labels that are there; writes nothing")
    ] = False,
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="[default: the newest]", show_default=False)
    ] = None,
) -> None:
    """Show what a round trains on: yield by cause, margins, lengths, ten examples."""
    from flows.pairs import show_pairs

    show_pairs(run_folder, settings or [], round_, preview)


@app.command()
def losses(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="one preset in full", show_default=False)] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="draw all links and their slopes (.png, .svg or .pdf)", show_default=False),
    ] = None,
) -> None:
    """List the losses; show what one computes and needs."""
    from flows.losses import plot_links, print_preset, print_presets

    if plot is not None and name is not None:
        raise UserError("losses: either NAME or --plot FILE: the plot shows the links of all losses")
    if plot is not None:
        plot_links(plot)
    elif name is not None:
        print_preset(name)
    else:
        print_presets()


@app.command("reward-model")
def reward_model(
    items: Items,
    run_dir: Annotated[
        Path | None, typer.Option(help="the reward model's folder  [default: runs/NAME]", show_default=False)
    ] = None,
) -> None:
    """Train a reward model from pairs; the same command again goes on where it was stopped or killed."""
    from flows.reward_model import make_reward_model

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        make_reward_model(*_split(items), run_dir)
    except KeyboardInterrupt:
        print("prefloop: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="port on 127.0.0.1")] = 4200,
) -> None:
    """Start Prefect's server and UI on 127.0.0.1; runs made earlier on the same Prefect home are listed."""
    from flows.ui import serve_ui

    raise typer.Exit(serve_ui(port))


def _split(items: list[str]) -> tuple[list[Path], list[str]]:
    """Config files and ``key=value`` settings: a setting has an equals sign, and no YAML file is called so."""
    settings = [item for item in items if "=" in item and not (item.endswith((".yaml", ".yml")) and _is_file(item))]
    files = [Path(item) for item in items if item not in settings]
    if not files:
        raise UserError("no config file was given (only key=value settings)")
    return files, settings


def _is_file(item: str) -> bool:
    return Path(item).is_file() or not item.partition("=")[0].replace(".", "_").isidentifier()


def main() -> None:
    """Entry point: turns the two kinds of errors into messages and exit codes."""
    prepare_environment()
    try:
        app()
    except UserError as error:
        print(f"prefloop: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"prefloop: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
