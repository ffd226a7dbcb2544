"""Commands before a run: ``check``, ``judge-test``, ``init``, ``plan``, ``losses``."""

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from flows.commands.cli.arguments import Items, complete_presets, forgotten_unless_begun, split_sound
from flows.loop.object_store.places import run_place
from pipeline.errors import UserError


def check(
    items: Items,
    faults: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="list of rows with faults  [default: runs/NAME.faults.jsonl]", show_default=False
        ),
    ] = None,
    show: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="the row to show as the model will see it, also if the data is refused  [default: the first]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Validate a config, its data and its model folders.

    Counts faults in the data, and shows a row as the model will see it; starts nothing heavy.
    """
    given = split_sound(items)
    from flows.planning.cards.refusal import require_card
    from flows.preflight.check import check_config
    from pipeline.config.files import load_config

    config = load_config(*given)
    if config.secrets:
        from flows.prefect_api.secret_blocks import provide_secrets

        provide_secrets(config)
    check_config(*given, faults, show)
    require_card(config)


def judge_test(items: Items) -> None:
    """Ask each judge of a config three questions.

    Shows request, reply, verdict and cost; exit code 1 without a verdict.
    """
    given = split_sound(items)
    from flows.commands.judge_test import ask_judges

    if not ask_judges(*given):
        raise typer.Exit(1)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where config.yaml goes", show_default=False)],
    mode: Annotated[str | None, typer.Option(help="iterative or offline", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="model folder, or a hub name", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help="file of prompts; offline: of pairs", show_default=False)] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="match, number, math, length, keywords, or a reward model's folder", show_default=False),
    ] = None,
    loss: Annotated[str, typer.Option(help="a preset", autocompletion=complete_presets)] = "dpo",
    rounds: Annotated[int, typer.Option(min=1, max=1000)] = 1,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 5e-7,
) -> None:
    """Write a config with comments.

    Asks on a terminal for missing options; overwrites nothing.
    """
    from flows.commands.init import ask_missing, write_config

    given = ask_missing(mode, model, data, scorer, loss, rounds, learning_rate)
    file = write_config(folder, given)
    print(f"{file}\nprefloop check {file}\nprefloop run {file}")


def plan(
    items: Items,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            parser=run_place, metavar="DIR|URL", help="the run's folder  [default: runs/NAME]", show_default=False
        ),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="KIND=N,...|FILE",
            help="tokens (of images: passes) per second for sampling, labelling, scoring, training; or a YAML file",
            show_default=False,
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="measure rates not given, with a few seconds of sampling and labelling")
    ] = False,
    response_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="mean tokens of a sampled response  [default: sampling.max_tokens]", show_default=False
        ),
    ] = None,
    cards: Annotated[
        str | None,
        typer.Option(
            metavar="GB,...",
            help="instead: which of these cards training fits on, such as 24,80,141,8x80; reads no data and no weights",
            show_default=False,
        ),
    ] = None,
    disk: Annotated[
        float,
        typer.Option(
            "--disk-gb-per-second", min=0.001, max=1e6, metavar="N", help="with --cards: speed of reading and writing"
        ),
    ] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="bytes, tokens and seconds as JSON")] = False,
) -> None:
    """Estimate the memory, disk and time that a run needs.

    Exit code 1 if this machine falls short.
    """
    if cards is not None:
        _plan_for_cards(items, cards, disk, as_json=as_json)
    from flows.planning.rates.given import given_rates

    # Read the rates first, to report mistakes at once.
    with forgotten_unless_begun(run_dir):
        known = {} if rates is None else given_rates(rates)
        given = split_sound(items)
        from pipeline.config.files import load_config

        if load_config(*given).modality == "image":
            _plan_images(given, run_dir, known, probe=probe, as_json=as_json)
        from flows.planning.plan import plan_config
        from flows.planning.table import print_plan

        made = plan_config(*given, run_dir, known, probe=probe, response_tokens=response_tokens)
    if as_json:
        print(json.dumps(made.plain(), indent=1))
    else:
        print_plan(made)
    raise typer.Exit(0 if made.fits else 1)


def _plan_images(
    given: tuple[list[Path], list[str]], run_dir: Path | None, rates: dict[str, float], *, probe: bool, as_json: bool
) -> NoReturn:
    from flows.planning.images.image_plan import plan_images
    from flows.planning.images.image_table import print_image_plan

    made = plan_images(*given, run_dir, rates, probe=probe)
    if as_json:
        print(json.dumps(made.plain(), indent=1))
    else:
        print_image_plan(made)
    raise typer.Exit(0 if made.fits else 1)


def _plan_for_cards(items: list[str], cards: str, disk: float, *, as_json: bool) -> NoReturn:
    from flows.planning.cards.fitting import parse_cards

    asked = parse_cards(cards)
    given = split_sound(items)
    from flows.planning.cards.card_table import print_cards
    from flows.planning.cards.survey import plan_cards

    made = plan_cards(*given, asked)
    if as_json:
        print(json.dumps(made.plain(disk), indent=1))
    else:
        print_cards(made, disk)
    raise typer.Exit(0 if made.fits else 1)


def losses(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="one preset in full", show_default=False)] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="draw all links and their slopes (.png, .svg or .pdf)", show_default=False),
    ] = None,
    modality: Annotated[
        str, typer.Option(metavar="M", help="image: which losses carry over to images, and why others do not")
    ] = "text",
) -> None:
    """List the losses; show what one computes and needs."""
    from flows.commands.losses import plot_links, print_preset, print_presets, print_presets_for_images

    if modality not in ("text", "image"):
        raise UserError(f"--modality: {modality}; allowed: text or image")
    if modality == "image":
        if name is not None or plot is not None:
            raise UserError("losses: --modality image lists all losses; allowed with it: neither NAME nor --plot")
        print_presets_for_images()
        return
    if plot is not None and name is not None:
        raise UserError("losses: give NAME or --plot FILE, not both; the plot shows the links of all losses")
    if plot is not None:
        plot_links(plot)
    elif name is not None:
        print_preset(name)
    else:
        print_presets()
