"""What a local model's labels depend on beside its settings: the files of its folder. Torch-free."""

from pathlib import Path

from pipeline.storage.digests import file_sha256
from pipeline.types import content_hash

HASHED_WHOLE = 64 * 1024 * 1024


def model_version(settings: dict[str, object], path: str) -> str:
    """Hash of ``settings`` and of the folder's files: small ones by content, weights by size and time of change.

    A model that is trained again into the same folder is another one, though its weights have the same size. A hub
    name has no files here; its settings alone count.
    """
    folder = Path(path)
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    return content_hash([settings, [[file.name, *_facts(file)] for file in files]])


def _facts(file: Path) -> list[object]:
    state = file.stat()
    if state.st_size <= HASHED_WHOLE:
        return [file_sha256(file)]
    return [state.st_size, state.st_mtime_ns]
