"""A reading in words, and as settings that say the same. Torch-free."""

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.config import UserData
from pipeline.data.detection.pairs import FoundSettings
from pipeline.data.detection.readings import Reading
from pipeline.safe_text import visible
from pipeline.types import TextGroup, TextPair, UnpairedText


def described(reading: Reading) -> str:
    """Return one line: each part of a row, and the columns that it comes from."""
    data, columns = reading.data, reading.data.columns
    places = {"turns": "the turns before the answers", "start": "what both responses begin with"}
    parts = [("prompt", places.get(reading.prompt, _names(columns.prompt))), *_answers(reading)]
    optional = {"system": columns.system, "history": columns.history}
    if reading.form is TextPair and "chosen_score" in reading.found.get("columns", {}):
        optional["scores"] = f"{columns.chosen_score}, {columns.rejected_score}"
    parts += [(name, value) for name, value in optional.items() if value is not None]
    line = " · ".join(f"{name} ← {value}" for name, value in parts)
    return visible(line + ("; lists and conversations written out as text are read" if data.parse else ""))


def as_settings(found: FoundSettings, section: str, common: Sequence[FoundSettings] = ()) -> str:
    """Return settings as words of a command line, without those in all of ``common``: ``pairs.columns.prompt=q``."""
    shared = [_leaves(other, section) for other in common]
    own = [leaf for leaf in _leaves(found, section) if not shared or not all(leaf in leaves for leaves in shared)]
    return " ".join(shlex.quote(f"{name}={_plain(value)}") for name, value in own)


def shortened(columns: Sequence[str]) -> str:
    """Return the names of columns, without the fields in them, as far as a line holds them."""
    names = [visible(name) for name in columns if "." not in name]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _answers(reading: Reading) -> list[tuple[str, str]]:
    data, columns, form = reading.data, reading.data.columns, reading.form
    if form is TextPair:
        return [("chosen", _decided(data, columns.chosen)), ("rejected", columns.rejected)]
    if form is TextGroup:
        if columns.best is not None:
            return [("responses", _names(columns.responses)), ("best", columns.best)]
        ranks = " (ranks: 1 is the best)" if data.rewards_are == "ranks" else ""
        one = ", one a row" if data.rows == "responses" else ""
        return [("responses", f"{_names(columns.responses)}{one}"), ("rewards", f"{_names(columns.rewards)}{ranks}")]
    if form is UnpairedText:
        return [("completion", columns.completion), ("label", columns.label)]
    return []


def _decided(data: UserData, chosen: str) -> str:
    """Return the column of the chosen response, and when it is the other column's."""
    columns, votes = data.columns, data.votes
    if data.rewards_are == "signed":
        ends = f"{data.signed.first:g} (this) to {data.signed.second:g} (the other)"
        return f"{chosen}, or the other, by {_names(columns.rewards)} from {ends}"
    if columns.votes is not None:
        if columns.chosen_name is not None:
            meaning = f"{columns.chosen_name} or {columns.rejected_name}"
        else:
            meaning = f"{' or '.join(votes.meanings[0])} (this), {' or '.join(votes.meanings[1])} (the other)"
        ties = f", {' or '.join(votes.meanings[2])} (tie)" if votes.meanings[2] else ""
        return f"{chosen}, or the other, by {_names(columns.votes)}: {meaning}{ties}"
    if columns.chosen_votes is not None:
        return f"{chosen}, or the other, by {columns.chosen_votes} and {columns.rejected_votes}"
    return chosen


def _names(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else " + ".join(value)


def _leaves(settings: FoundSettings, section: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        inner = f"{section}.{name}"
        found += _leaves(value, inner) if isinstance(value, dict) else [(inner, value)]
    return found


def _plain(value: Any) -> str:
    """Return a value as YAML in one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=1 << 20)
    return text.removesuffix("...\n").strip()
