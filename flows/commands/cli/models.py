"""Commands that make models outside a run: ``reward-model``, ``export``."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.cli.arguments import Items, RunFolderArgument, split
from flows.loop.object_store.places import local_path


def reward_model(
    items: Items,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            parser=local_path, metavar="DIR", help="the reward model's folder  [default: runs/NAME]", show_default=False
        ),
    ] = None,
) -> None:
    """Train a reward model from pairs; the same command continues where it was stopped or killed."""
    from flows.commands.reward_model import make_reward_model

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        make_reward_model(*split(items), run_dir)
    except KeyboardInterrupt:
        print("prefloop: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None


def export(
    run_folder: RunFolderArgument,
    folder: Annotated[
        Path, typer.Argument(parser=local_path, metavar="DIR", help="a new or empty folder", show_default=False)
    ],
    round_: Annotated[
        int | None,
        typer.Option("--round", min=0, help="[default: the gate's best, else the newest]", show_default=False),
    ] = None,
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter/--merged",
            help="of a run whose adapter lives for the run: the adapter alone, or merged into the weights under it",
        ),
    ] = False,
) -> None:
    """Write a round's policy to a folder that transformers and vLLM load, with its tokenizer and a model card."""
    from flows.commands.export import export_policy

    print(export_policy(run_folder, folder, round_, adapter=adapter))
