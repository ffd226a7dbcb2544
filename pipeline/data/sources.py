"""Sources of a run's prompts and held-out prompts, and their files. Torch-free."""

from pathlib import Path
from typing import TypeVar, assert_never

from pipeline.config import (
    AnyData,
    DatasetData,
    DotPairs,
    FileData,
    HeldOut,
    ImageData,
    MixtureData,
    PairData,
    RunConfig,
    UserData,
)
from pipeline.config.data.user_data import EVERY_SPLIT
from pipeline.data.files.folders import data_files
from pipeline.data.files.records import open_dataset
from pipeline.errors import UserError

FileOrImages = TypeVar("FileOrImages", FileData, ImageData)


def prompt_source(config: RunConfig) -> AnyData:
    """Return the source of the prompts that rounds train on."""
    source = config.prompts if config.prompts is not None else config.pairs
    assert source is not None, "the config's validator requires prompts or pairs"
    return source


def held_out_source(config: RunConfig) -> UserData | ImageData | None:
    """Return the source of held-out prompts if they have one of their own, else None."""
    if not config.held_out.is_given:
        return None
    for source in (config.prompts, config.pairs):
        if isinstance(source, FileData | DatasetData | ImageData):
            return given_source(source, config.held_out)
    if config.held_out.split is not None:
        raise UserError("held_out.split: needs prompts or pairs from files or a data set")
    raise UserError("held_out.path: held-out prompts from a file need prompts or pairs from a file")


def given_source(source: PairData, held_out: HeldOut) -> UserData | ImageData | None:
    """Return the source of held-out rows that go with ``source``, if they have one of their own, else None."""
    if isinstance(source, MixtureData | DotPairs):
        return None
    if held_out.path is None:
        return source.model_copy(update={"split": held_out.split}) if held_out.is_given else None
    if isinstance(source, ImageData):
        return of_path(source, held_out.path)
    if isinstance(source, FileData):
        return of_path(source, held_out.path)
    plain = {name: value for name, value in source if name in FileData.model_fields}
    return FileData(**{**plain, "kind": "file", "path": held_out.path, "split": None})


def of_path(source: FileOrImages, path: str) -> FileOrImages:
    """Return the source with the files of another path; a split of ``source`` names none of them."""
    split = EVERY_SPLIT if source.split == EVERY_SPLIT else None
    return source.model_copy(update={"path": path, "split": split})


def files_of(source: PairData) -> list[Path]:
    """Return the files that hold the data. Raises ``UserError`` if there are none."""
    match source:
        case FileData():
            return data_files(source.path, source.split)
        case ImageData():
            return data_files(source.path, source.split)
        case DatasetData():
            return [Path(file["filename"]) for file in open_dataset(source).cache_files]
        case MixtureData():
            return [file for part in source.of for file in files_of(part)]
        case DotPairs():
            return []
    assert_never(source)
