"""Links in a run folder: nothing outside it is written, moved or removed, even if links or names point there."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import RunError, UserError


def require_own_folders(root: Path) -> None:
    """Raise ``UserError`` if a folder that the run ``root`` writes to is a link that leads out of it.

    ``root`` itself may be a link.
    """
    for folder in _folders(root):
        if folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{folder}: a link to {folder.resolve()}, outside the run folder, where nothing is written or removed; "
                "put the folder itself there (a whole run may be behind a link)"
            )


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``. Raises ``RunError`` if that is not inside the folder."""
    file = folder / name
    # The last part may be a link: moving or removing it does not touch its target.
    if ".." in Path(name).parts or not file.parent.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{folder}: {name!r} is listed as its file, but is not inside it; nothing was moved or removed")
    return file


def _folders(root: Path) -> Iterator[Path]:
    yield from sorted(root.glob("*/"))
    yield from sorted(root.glob("round_*/*/"))
