"""The configs that prefloop ships, by name: ``quickstart``, ``recipes/sppo``. Torch-free."""

from pathlib import Path

from pipeline.errors import nearest

# configs/ is next to pipeline/ both in a checkout and in an installed package.
CONFIGS = Path(__file__).parents[3] / "configs"
_FOLDERS = (".", "recipes")
# Laid over a run's config, or named in it.
_PARTS = ("loss", "accelerate")
_YAML = (".yaml", ".yml")


def shipped_names() -> list[str]:
    """Return the names of the shipped run configs, those of recipes with their folder."""
    return _names_in(_FOLDERS)


def shipped_or_own(file: Path) -> Path:
    """Return ``file``; if there is none, and it is the name of a shipped config or part of one, that one's file."""
    if not file.is_file() and file.as_posix() in _names_in((*_FOLDERS, *_PARTS)):
        return CONFIGS / f"{file.as_posix()}.yaml"
    return file


def is_shipped(file: Path) -> bool:
    """True if ``file`` stands for a shipped config, wherever it is asked."""
    return shipped_or_own(file) != file


def suggestion(file: Path) -> str:
    """Return ``; did you mean 'quickstart'?`` or the like for a file that is not there, or nothing."""
    if file.exists():
        return ""
    names = _names_in((*_FOLDERS, *_PARTS))
    meant = file.with_suffix("").as_posix().removeprefix("configs/")
    if meant in names:
        return f"; did you mean {meant!r}, which prefloop ships?"
    # A name alone may be a setting whose value was forgotten.
    setting = f"; a setting is written {file}=VALUE" if file.name == str(file) and file.suffix not in _YAML else ""
    return nearest(file.as_posix(), names) or setting


def _names_in(folders: tuple[str, ...]) -> list[str]:
    files = [file for folder in folders for file in sorted((CONFIGS / folder).glob("*.yaml"))]
    return [file.relative_to(CONFIGS).with_suffix("").as_posix() for file in files]
