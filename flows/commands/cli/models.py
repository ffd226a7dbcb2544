"""Commands that make models outside a run, or give results away: ``reward-model``, ``export``, ``push``."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

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
    """Train a reward model from pairs, or continue.

    The same command continues where it was stopped or killed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from flows.commands.reward_model import make_reward_model

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
    """Write a round's policy as a model folder.

    transformers and vLLM load it; it has the tokenizer and a model card.
    """
    from flows.commands.export import export_policy

    print(export_policy(run_folder, folder, round_, adapter=adapter))


def push(
    run_folder: RunFolderArgument,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME", show_default=False)],
    what: Annotated[
        Literal["policy", "adapter", "pairs"], typer.Option(help="an adapter goes alone; pairs go with their labels")
    ] = "policy",
    round_: Annotated[
        int | None,
        typer.Option(
            "--round", min=0, help="[default: the gate's best, else the newest; of pairs: all]", show_default=False
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public/--private", help="who may see a repository that is made")] = False,
    base: Annotated[
        str | None, typer.Option(metavar="REPO", help="of an adapter: its model's repository", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be uploaded, and upload nothing")] = False,
) -> None:
    """Upload a policy, an adapter or pairs to Hugging Face.

    With a card, and with the token in HF_TOKEN.
    """
    from flows.commands.hub.push import push_result

    print(push_result(run_folder, repository, what, round_, public=public, base=base, dry_run=dry_run))
