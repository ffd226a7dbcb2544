"""Commands for Prefect: ``up``, ``deploy``, ``serve``, ``ui``."""

import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.cli.arguments import Items, split
from flows.loop.object_store.places import local_path

Port = Annotated[int, typer.Option(min=1, max=65535, help="port on 127.0.0.1")]
Pool = Annotated[str, typer.Option(help="Prefect's work pool; created, with type process, if it does not exist")]
Limit = Annotated[int | None, typer.Option(min=1, help="most runs at a time", show_default=False)]


def up(port: Port = 4200, pool: Pool = "prefloop", limit: Limit = None) -> None:
    """Start Prefect's server, its UI and a worker here.

    All end together.
    """
    from flows.commands.deployments.serve import run_server_and_worker as run_all

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise typer.Exit(run_all(port, pool, limit))


def deploy(
    items: Items,
    name: Annotated[str, typer.Option(help="the deployment's name", show_default=False)],
    cron: Annotated[
        str | None, typer.Option(help="when it runs, such as '0 2 * * *' (every day at 2:00)", show_default=False)
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="how often it runs, such as 30m, 6h or 1d", show_default=False)
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="its time zone, such as Europe/Berlin  [default: UTC]", show_default=False)
    ] = None,
    missed: Annotated[
        Literal["skip", "catch-up"],
        typer.Option(help="firings missed, or due while another ran: skip them, or run them one after another"),
    ] = "skip",
    rounds_more: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1000,
            help="rounds that each run adds; 0: up to the config's  [default: 1 if runs start by themselves]",
            show_default=False,
        ),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="DIR",
            help="the run's folder; %Y-%m-%d is filled in  [default: runs/NAME, dated for offline runs if scheduled]",
            show_default=False,
        ),
    ] = None,
    pool: Pool = "prefloop",
    automations: Annotated[
        bool,
        typer.Option(
            "--automations",
            help="start a run again that died, and start one when data or people's answers arrive",
        ),
    ] = False,
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE/NAME",
            help="the same, and tell people through this notification block of Prefect's, such as slack-webhook/ops",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Register a run with Prefect, for its UI or a schedule."""
    from flows.commands.deployments.deploy import deploy_config

    files, settings = split(items)
    deploy_config(
        files,
        settings,
        name,
        cron=cron,
        interval=interval,
        timezone=timezone,
        missed=missed,
        rounds_more=rounds_more,
        run_dir=run_dir,
        pool=pool,
        automations=automations,
        notify=notify,
    )


def serve(pool: Pool = "prefloop", limit: Limit = None) -> None:
    """Run deployments on this machine.

    For the server of 'prefloop up' or your own.
    """
    from flows.commands.deployments.serve import run_worker

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise typer.Exit(run_worker(pool, limit))


def ui(port: Port = 4200) -> None:
    """Start Prefect's server and UI on 127.0.0.1.

    It lists earlier runs of the same Prefect home.
    """
    from flows.commands.deployments.serve import serve_ui

    raise typer.Exit(serve_ui(port))
