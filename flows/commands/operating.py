"""Commands for Prefect's server: ``ui``."""

from typing import Annotated

import typer


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="port on 127.0.0.1")] = 4200,
) -> None:
    """Start Prefect's server and UI on 127.0.0.1; runs made earlier on the same Prefect home are listed."""
    from flows.ui import serve_ui

    raise typer.Exit(serve_ui(port))
