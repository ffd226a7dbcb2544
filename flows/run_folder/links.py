"""Links in a run folder: nothing that they, or names in its files, point to outside is written, moved or removed."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import RunError, UserError


def require_own_folders(root: Path) -> None:
    """Raise ``UserError`` where a folder that the run ``root`` writes to is a link that leads out of it.

    ``root`` itself may be one.
    """
    for folder in _folders(root):
        if folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{folder}: a link to {folder.resolve()}, out of the run folder, where nothing is written or removed; "
                "put the folder itself there (a whole run may be behind a link)"
            )


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``. Raises ``RunError`` if that is anywhere else."""
    file = folder / name
    # What a last link leads to is not touched when the link is moved or removed.
    if ".." in Path(name).parts or not file.parent.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{folder}: {name!r} is named as a file of it, and is not in it; nothing was moved or removed")
    return file


def _folders(root: Path) -> Iterator[Path]:
    yield from sorted(root.glob("*/"))
    yield from sorted(root.glob("round_*/*/"))
