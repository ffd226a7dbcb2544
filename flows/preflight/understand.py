"""What a config leaves open, found by looking at the data and the chat template, and said. Torch-free."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline.config import (
    AnyData,
    ChatSettings,
    DatasetData,
    DotPairs,
    FileData,
    ImageData,
    MixtureData,
    PairData,
    PretrainedPolicy,
    RunConfig,
    UserData,
)
from pipeline.config.data.mixture import MixtureDataset, MixtureFile, sources_in
from pipeline.data.detection.description import as_settings, described, shortened
from pipeline.data.detection.readings import Reading, Readings, merged, readings_of_pairs, readings_of_prompts
from pipeline.errors import UserError
from pipeline.models.foreign import cached_folder, writes_date
from pipeline.safe_text import visible
from pipeline.storage.run_folder import RunFolder

# Settings that are found where they are not set; of the dictionary's sections, these.
_FOUND = ("columns", "labels", "rewards_are", "rows", "parse")
_FOUND_IN = {"votes": {"chosen", "rejected", "tie"}, "signed": {"first", "second"}}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def understood(config: RunConfig, root: Path | None = None) -> tuple[RunConfig, list[str]]:
    """Return the config with the settings that were found, and lines that say how the data is read.

    A run folder that goes on keeps the settings that it was made with. Data that no reading fits stays as it is set.

    Raises:
        UserError: several readings fit (the message lists them as settings), or there is no data.
    """
    there = root is not None and RunFolder(root).config_file.is_file()
    before = RunFolder(root).config() if there and root is not None else None
    update: dict[str, AnyData] = {}
    lines: list[str] = []
    if isinstance(config.prompts, FileData | DatasetData | MixtureData):
        stored = None if before is None else before.prompts
        update["prompts"], lines = understood_data(config.prompts, "prompts", stored)
    if config.pairs is not None:
        before_pairs: AnyData | None = None if before is None else before.pairs
        update["pairs"], said = understood_data(config.pairs, "pairs", before_pairs)
        lines += said
    chat, said = _dated(config, before)
    return config.model_copy(update={**update, "chat": chat}), [*lines, *said]


def _dated(config: RunConfig, before: RunConfig | None) -> tuple[ChatSettings, list[str]]:
    """Return the chat settings with the day that the policy's template writes, if any, and a line about it."""
    chat, policy = config.chat, config.policy
    if chat.date is not None or chat.template == "plain":
        return chat, []
    if chat.template_file is not None:
        file = Path(chat.template_file)
        dated = file.is_file() and b"strftime_now" in file.read_bytes()
        return _with_day(chat, before, f"{file} writes today's date") if dated else (chat, [])
    if not isinstance(policy, PretrainedPolicy):
        return chat, []
    fetched = not Path(policy.path).exists() and _HUB_NAME.fullmatch(policy.path) is not None
    if before is not None and fetched:
        return chat.model_copy(update={"date": before.chat.date}), []
    folder = cached_folder(policy.path, policy.revision) if fetched else Path(policy.path)
    if folder is not None and not writes_date(folder):
        return chat, []
    why = "policy.path's chat template writes today's date"
    if folder is None:
        why = f"{policy.path} is not here yet, and its chat template may write today's date"
    return _with_day(chat, before, why)


def _with_day(chat: ChatSettings, before: RunConfig | None, why: str) -> tuple[ChatSettings, list[str]]:
    day = datetime.now(UTC).date().isoformat() if before is None else before.chat.date
    said = f"chat.date={day}: {why}; the run stays with this one"
    return chat.model_copy(update={"date": day}), [said] if before is None else []


def understood_data(given: PairData, section: str, before: AnyData | None = None) -> tuple[PairData, list[str]]:
    """Return one section as ``understood`` does, member by member; ``before``: the run folder's."""
    if isinstance(given, ImageData | DotPairs):
        return given, []
    if not isinstance(given, MixtureData):
        return understood_source(given, section, before)
    stored: Sequence[AnyData | None] = before.of if isinstance(before, MixtureData) else ()
    if len(stored) != len(given.of):
        stored = [None] * len(given.of)
    each = zip(sources_in(given, section), stored, strict=True)
    members = [understood_source(one, name, old) for (name, one), old in each]
    lines = [line for _, said in members for line in said]
    return given.model_copy(update={"of": tuple(found for found, _ in members)}), lines


def understood_source(given: UserData, section: str, before: AnyData | None = None) -> tuple[UserData, list[str]]:
    """Return one file or data set as ``understood`` does; ``section``: its name, such as pairs or pairs.of.0."""
    source = _by_name(given)
    if isinstance(before, FileData | DatasetData) and _goes_on(source, before):
        return before, []
    readings = readings_of_prompts(source) if section.startswith("prompts") else readings_of_pairs(source)
    if len(readings.fit) > 1:
        raise UserError(_several(source, section, readings.fit))
    if not readings.fit:
        return source, _unread(section, readings)
    return readings.fit[0].data, _said(section, readings.fit[0])


def _unread(section: str, readings: Readings) -> list[str]:
    names, nearest = shortened(readings.columns), readings.nearest
    lines = [f"{section}: no reading of the first rows was found; columns: {names}"] if names else []
    if nearest is not None:
        lines.append(f"  the nearest: {as_settings(nearest.found, section)}; {visible(nearest.fault or '')}")
    return lines


def _by_name(source: UserData) -> UserData:
    """Return the source, or the data set of that name if there is no such file."""
    if isinstance(source, DatasetData) or not _HUB_NAME.fullmatch(source.path) or Path(source.path).exists():
        return source
    if Path(source.path).suffix:
        return source
    given = source.model_dump(exclude_unset=True, exclude={"kind", "delimiter"})
    kind = MixtureDataset if isinstance(source, MixtureFile) else DatasetData
    return kind.model_validate({name: value for name, value in given.items() if value is not None})


def _goes_on(source: UserData, before: UserData) -> bool:
    """Return whether ``before`` is what is set, with settings that are found."""
    if type(source) is not type(before):
        return False
    found = before.model_dump(include={*_FOUND}) | {
        name: before.model_dump(include={name: fields}).get(name) for name, fields in _FOUND_IN.items()
    }
    return type(source).model_validate(merged(found, source.model_dump(exclude_unset=True))) == before


def _several(source: UserData, section: str, readings: Sequence[Reading]) -> str:
    all_found = [reading.found for reading in readings]
    lines = [f"{section}: {source.where}: {len(readings)} readings fit; add the settings of the right one:"]
    for reading in readings:
        lines += [f"  {described(reading)}", f"    {as_settings(reading.found, section, all_found)}"]
    return "\n".join(lines)


def _said(section: str, reading: Reading) -> list[str]:
    lines = [f"{section}: {described(reading)}"]
    if reading.found:
        lines.append(f"  the same as settings: {as_settings(reading.found, section)}")
    return lines
