"""Commands that make models beside a run: ``reward-model``."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.arguments import Items, split


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
        make_reward_model(*split(items), run_dir)
    except KeyboardInterrupt:
        print("prefloop: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None
