"""Arguments shared by several commands: config files with settings, and a run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flows.loop.object_store.address import LINK_FILE
from flows.loop.object_store.places import fetched_run
from pipeline.errors import UserError

_SUFFIXES = (".yaml", ".yml")


def complete_presets(incomplete: str) -> list[str]:
    """Complete the name of a loss, for a shell."""
    # The settings take as long to import as all else that --help needs.
    from pipeline.config import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def complete_items(incomplete: str) -> list[str]:
    """Complete config files, folders, shipped configs, and ``loss.preset=`` with the names of losses, for a shell."""
    from pipeline.config.files.shipped import shipped_names

    setting = "loss.preset="
    if incomplete.startswith(setting):
        return [setting + name for name in complete_presets(incomplete.removeprefix(setting))]
    given = Path(incomplete)
    folder = given if incomplete.endswith("/") else given.parent
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [f"{path}/" if path.is_dir() else str(path) for path in found if path.is_dir() or path.suffix in _SUFFIXES]
    return [name for name in [*names, *shipped_names(), setting] if name.startswith(incomplete)]


Items = Annotated[
    list[str],
    typer.Argument(
        autocompletion=complete_items,
        metavar="CONFIG|KEY=VALUE",
        help="YAML files or shipped configs such as quickstart, each laid over the ones before, then settings such as "
        "training.learning_rate=1e-5",
        show_default=False,
    ),
]
RunFolderArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="a run folder, or its URL", show_default=False, parser=fetched_run)
]


def split(items: list[str]) -> tuple[list[Path], list[str]]:
    """Split into config files and ``key=value`` settings: a setting has an equals sign and is not a YAML file."""
    settings = [item for item in items if "=" in item and not (item.endswith((".yaml", ".yml")) and _is_file(item))]
    files = [Path(item) for item in items if item not in settings]
    if not files:
        raise UserError("no config file was given (only key=value settings)")
    return files, settings


def split_sound(items: list[str]) -> tuple[list[Path], list[str]]:
    """Split as ``split`` does. Raises ``UserError`` for a wrong setting, before anything is loaded that takes long."""
    from pipeline.config.files import load_config

    files, settings = split(items)
    load_config(files, settings)
    return files, settings


@contextmanager
def forgotten_unless_begun(root: Path | None) -> Iterator[None]:
    """After the block, remove the work folder of a URL if ``root`` is one in which nothing was begun."""
    try:
        yield
    finally:
        if root is not None and (root / LINK_FILE).exists() and not (root / "config.yaml").exists():
            from flows.loop.preparation import forget_unused

            forget_unused(root)


def _is_file(item: str) -> bool:
    return Path(item).is_file() or not item.partition("=")[0].replace(".", "_").isidentifier()
