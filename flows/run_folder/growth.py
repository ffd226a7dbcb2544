"""Prompts added to an iterative run's source while the run is under way. Torch-free.

Rows at the end of its files, and files next to them, are new. A round that begins later reads them in a separate stage,
``added_prompts``. What was there before must not change. Held-out prompts stay those of the start.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from pipeline.config import FileData, RunConfig
from pipeline.data.files.bounds import LONGEST_ROW
from pipeline.data.reading import read_prompts
from pipeline.data.sources import files_of
from pipeline.errors import UserError
from pipeline.storage.digests import digest
from pipeline.storage.run_folder import RunFolder, Stage

ADDED = "added_prompts"
SIZES = "sizes"
_BLOCK = 1 << 16


def may_grow(config: RunConfig) -> bool:
    """Whether prompts may be added: only to the files of an iterative run that has its own prompts."""
    return config.mode == "iterative" and isinstance(config.prompts, FileData)


def sizes_of(config: RunConfig) -> dict[str, JsonValue]:
    """Names and bytes of the prompts' files, in order, for the manifest of a stage that is about to read them.

    A last row that is only half written does not count: it is read when it is complete.
    """
    if not may_grow(config):
        return {}
    return {SIZES: [[file.name, _whole_rows(file)] for file in _files(config)]}


def digest_when_read(stage: Stage, config: RunConfig) -> str:
    """The digest of the prompts' files; if they have only grown, of the part that ``stage`` read."""
    manifest = stage.manifest()
    if manifest is None:
        files = _files(config)
        return digest(files, [_whole_rows(file) for file in files])
    return digest_of(manifest.metrics, config) or digest(_files(config))


def digest_of(metrics: Mapping[str, JsonValue], config: RunConfig) -> str:
    """The digest of the part of the prompts' files that a stage with these ``metrics`` read; empty if it changed."""
    then = _entries(metrics)
    found = _still_there(_files(config), then)
    return digest(found, [size for _, size in then]) if found else ""


def has_grown(run: RunFolder, config: RunConfig) -> bool:
    """Whether the prompts' files have become larger, or more, since the run last read them."""
    if not may_grow(config):
        return False
    then = _last_sizes(run, config)
    return bool(then) and [(file.name, file.stat().st_size) for file in _files(config)] != then


def brings_prompts(run: RunFolder, config: RunConfig, round_: int) -> bool:
    """Whether ``round_`` has added prompts, or gets them as it begins."""
    added = added_stages(run, config.rounds)
    if run.stage(round_, ADDED) in (*added, *run.begun()):
        return True
    # Rounds that are made again do not take prompts that a later round already has.
    begun = any(stage.round == round_ for stage in (*run.stages(), *run.begun()))
    return not begun and (not added or added[-1].round < round_) and _has_new_rows(run, config)


def _has_new_rows(run: RunFolder, config: RunConfig) -> bool:
    """Whether the prompts' files have grown by more than a row that is only half written."""
    whole = [(file.name, _whole_rows(file)) for file in _files(config)] if has_grown(run, config) else []
    return bool(whole) and whole != _last_sizes(run, config)


def added_stages(run: RunFolder, round_: int) -> list[Stage]:
    """The stages up to ``round_`` that hold added prompts."""
    stages = (run.stage(number, ADDED) for number in range(1, round_ + 1))
    return [stage for stage in stages if stage.folder.exists()]


def require_as_it_was(run: RunFolder, config: RunConfig) -> None:
    """Raise ``UserError`` that names the row if prompts that the run has read were changed or removed."""
    begun = run.config().prompts
    if not may_grow(config) or begun is None or config.prompts is None or begun.identity() != config.prompts.identity():
        return
    for stage in (run.stage(0, "data"), *added_stages(run, config.rounds)):
        told = stage.require().config.get("files")
        if isinstance(told, dict) and told.get("prompts") != digest_when_read(stage, config):
            raise UserError(
                f"prompts.path: {_what_changed(run, config)}; rows may be added at the end of a file, and files next "
                f"to it, but what {run.root} has read must stay as it is (or choose another --run-dir)"
            )


def _what_changed(run: RunFolder, config: RunConfig) -> str:
    """The first row unknown to the run that has a known row after it; else the first prompt that is gone."""
    assert config.prompts is not None, "the caller has checked that they may grow"
    left = dict(_known(run, config))
    odd = ""
    for row in read_prompts(config.prompts):
        known = row.value is not None and left.pop(row.value.prompt.id, None) == row.value.prompt.answer
        if known and odd:
            return f"{odd}: changed or inserted"
        odd = odd or ("" if known else row.place)
    return f"{odd or config.prompts.where}: changed, or rows were removed"


def _known(run: RunFolder, config: RunConfig) -> Iterator[tuple[str, str | None]]:
    from pipeline.storage.rows import read_rows, row_prompt

    folders = [run.stage(0, "data").folder / name for name in ("prompts", "held_out")]
    folders += [stage.folder / "prompts" for stage in added_stages(run, config.rounds)]
    prompts = (row_prompt(row) for folder in folders for row in read_rows(folder))
    return ((prompt.id, prompt.answer) for prompt in prompts)


def _files(config: RunConfig) -> list[Path]:
    assert isinstance(config.prompts, FileData), "only files grow"
    return files_of(config.prompts)


def _last_sizes(run: RunFolder, config: RunConfig) -> list[tuple[str, int]]:
    manifest = [run.stage(0, "data"), *added_stages(run, config.rounds)][-1].manifest()
    return [] if manifest is None else _entries(manifest.metrics)


def _entries(metrics: Mapping[str, JsonValue]) -> list[tuple[str, int]]:
    told = metrics.get(SIZES)
    found: list[tuple[str, int]] = []
    for entry in told if isinstance(told, list) else []:
        match entry:
            case [str(name), int(size)] if size >= 0:
                found.append((name, size))
    return found


def _still_there(files: list[Path], then: list[tuple[str, int]]) -> list[Path]:
    """The files that were read, if all exist, none is shorter, and their order is the same; else empty."""
    found, left = [], iter(files)
    for name, size in then:
        file = next((file for file in left if file.name == name), None)
        if file is None or file.stat().st_size < size or not _ends_a_row(file, size):
            return []
        found.append(file)
    return found


def _ends_a_row(file: Path, size: int) -> bool:
    """Whether ``size`` bytes end with a complete row, as far as plain text shows."""
    if size in (0, file.stat().st_size) or file.suffix == ".gz":
        return True
    with file.open("rb") as handle:
        handle.seek(size - 1)
        return b"\n" in handle.read(2)


def _whole_rows(file: Path) -> int:
    """Bytes of the complete rows: of JSON lines, without a last one that is half written; of others, all bytes."""
    size, block = file.stat().st_size, _BLOCK
    if file.suffix != ".jsonl":
        return size
    with file.open("rb") as handle:
        while True:
            start = max(0, size - block)
            handle.seek(start)
            read = handle.read(size - start)
            begin = read.rfind(b"\n") + 1
            if begin or not start or block >= LONGEST_ROW:
                break
            block *= 4
    try:
        json.loads(read[begin:].strip() or b"{}")
    except (ValueError, RecursionError):
        return start + begin
    return size
