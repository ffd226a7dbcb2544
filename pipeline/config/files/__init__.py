"""Config files: YAML overlaid left to right, then ``a.b=value``, then the schema.

Torch-free. Every problem is reported with the file (or the command line) that set the value, the
field, the value and what is allowed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import JsonValue, ValidationError

from pipeline.config import Closed, RunConfig
from pipeline.config.base import elsewhere, kinds_of, sections_in
from pipeline.config.files.kinds import kind_problem
from pipeline.config.files.yaml_text import Tree, parse_yaml, read_yaml
from pipeline.errors import UserError, first_lines

__all__ = [
    "Layer",
    "Origins",
    "Tree",
    "changed_fields",
    "dump_config",
    "load_config",
    "load_settings",
    "read_yaml",
    "said",
]

Origins = dict[str, str]
# A config file, the name of a shipped one, or settings with the words that messages call them by.
Layer = Path | tuple[str, Tree]
COMMAND_LINE = "command line"
# pydantic's kinds of problems that are said in other words.
_WORDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be text",
}
_Settings = TypeVar("_Settings", bound=Closed)


def load_config(files: Sequence[Layer], overrides: Sequence[str] = ()) -> RunConfig:
    """Load the run that ``files``, overlaid left to right, and ``overrides`` (``a.b=value``) describe.

    Raises ``UserError`` for an unreadable or malformed file and for every value that the schema refuses.
    """
    return load_settings(RunConfig, files, overrides)


def load_settings(
    schema: type[_Settings],
    files: Sequence[Layer],
    overrides: Sequence[str] = (),
    as_now: Callable[[Tree], Tree] = lambda tree: tree,
) -> _Settings:
    """Like ``load_config``, for any ``schema``; ``as_now``: a file's tree to its present form."""
    tree: Tree = {}
    origins: Origins = {}
    for file in files:
        origin, layer = (str(file), read_yaml(file)) if isinstance(file, Path) else file
        _overlay(tree, as_now(layer), origins, origin, ())
    # Overrides are merged first, so that their order does not matter: a new kind must not drop an earlier override.
    settings: Tree = {}
    for text in overrides:
        path, value = _parse_override(text)
        nested: JsonValue = value
        for name in reversed(path):
            nested = {name: nested}
        assert isinstance(nested, dict)
        _overlay(settings, nested, {}, COMMAND_LINE, ())
    _overlay(tree, settings, origins, COMMAND_LINE, ())
    _refuse_odd(tree, origins)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, schema, tree, origins)) from None


def dump_config(config: Closed) -> str:
    """``config`` as YAML, every field written out: reading it back gives the same config."""
    plain = config.model_dump(mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def said(value: object, longest: int = 200) -> str:
    """Quote ``value`` for a message: at most ``longest`` characters of its ``repr``."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too large to print"
    return text if len(text) <= longest else f"{text[:longest]}…"


def changed_fields(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue], prefix: str = "") -> list[str]:
    """``field: old -> new`` for each leaf that differs between two plain configs."""
    changes: list[str] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_fields(before, after, f"{prefix}{name}.")
        elif before != after:
            changes.append(f"{prefix}{name}: {said(before)} -> {said(after)}")
    return changes


def _parse_override(text: str) -> tuple[list[str], JsonValue]:
    name, equals, value = text.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"{said(text)}: an override is written a.b=value")
    try:
        parsed: JsonValue = parse_yaml(value)
    except yaml.YAMLError:
        raise UserError(f"{said(text)}: the value is not valid YAML; quote it") from None
    return path, parsed


def _refuse_odd(tree: Tree, origins: Origins) -> None:
    """Raise ``UserError`` for values that no file of a run can hold: half characters, NUL, huge numbers."""
    waiting: list[tuple[tuple[str, ...], object]] = [((), tree)]
    while waiting:
        path, value = waiting.pop()
        fault = None
        if isinstance(value, dict):
            waiting += [((*path, str(name)), inner) for name, inner in value.items()]
            fault = next((found for name in value if (found := _odd(name))), None)
        elif isinstance(value, list):
            waiting += [((*path, str(place)), inner) for place, inner in enumerate(value)]
        else:
            fault = _odd(value)
        if fault is not None:
            raise UserError(f"{_origin(path, origins)}: {said('.'.join(path))}: {fault}")


def _odd(value: object) -> str | None:
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        return "holds NUL or half a character (\\x00, \\ud800), which is not text"
    return "a number of more than 64 bits" if isinstance(value, int) and value.bit_length() > 64 else None


def _overlay(tree: Tree, top: Tree, origins: Origins, origin: str, path: tuple[str, ...]) -> None:
    """Put ``top`` over ``tree`` in place; a changed ``kind`` or loss ``preset`` drops the settings of the old one."""
    for choice in ("kind", "preset"):
        if choice in top and choice in tree and top[choice] != tree[choice]:
            tree.clear()
    if path == ("loss",) and _is_another_loss(tree, top):
        tree.clear()
    for name, value in top.items():
        here = (*path, str(name))
        # Removed and added again: of two spellings of one setting, the later layer's must come last.
        old = tree.pop(name, None)
        origins[".".join(here)] = origin
        if isinstance(value, dict) and isinstance(old, list) and (places := _places(value, len(old))) is not None:
            tree[name] = items = list(old)
            for place, settings in places.items():
                item = items[place]
                items[place] = merged = dict(item) if isinstance(item, dict) else {}
                _overlay(merged, settings, origins, origin, (*here, str(place)))
        elif isinstance(value, dict):
            branch: Tree = old if isinstance(old, dict) else {}
            tree[name] = branch
            _overlay(branch, value, origins, origin, here)
        else:
            tree[name] = value


def _places(settings: Tree, count: int) -> dict[int, Tree] | None:
    """Return settings of a list's items by place, as in ``of.0.weight``; the ``of`` of a short list may be there."""
    inner = settings.get("of") if len(settings) == 1 and "of" in settings else settings
    if not isinstance(inner, dict):
        return None
    found = {int(name): value for name, value in inner.items() if name.isdecimal() and isinstance(value, dict)}
    return found if len(found) == len(inner) and all(place < count for place in found) else None


def _is_another_loss(tree: Tree, top: Tree) -> bool:
    """Whether ``top`` names a preset over a composition that is written out, or the other way round."""
    written = {"link", "terms", "head", "sum"}
    if "preset" in top:
        return bool(tree) and "preset" not in tree and not written.isdisjoint(tree)
    whole = isinstance(top.get("sum"), list) or ("prior" in top and not written.isdisjoint(top))
    return "preset" in tree and whole


def _explain(error: ValidationError, schema: type[Closed], tree: Tree, origins: Origins) -> str:
    """One line a problem: origin, field, what is wrong, the value."""
    lines = []
    for problem in error.errors(include_url=False):
        path, sections = _field_path(problem["loc"], schema)
        of_kinds = kind_problem(problem, sections, said(problem["input"]))
        if of_kinds is not None:
            path, message = (*path, *filter(None, of_kinds[:1])), of_kinds[1]
            lines.append(f"{_origin(path, origins)}: {'.'.join(path)}: {message}")
            continue
        message = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "no such setting" + elsewhere(path, schema, _given(tree, path[:-1]).get("kind"))
        elif problem["type"] == "missing":
            message = "must be given"
        elif problem["input"] == "" and problem["type"] == "string_too_short":
            message = "must not be empty"
        elif problem["type"] == "value_error":
            path, message = _with_named_field(path, message, sections, tree)
        if not isinstance(problem["input"], dict) and problem["type"] not in ("extra_forbidden", "missing"):
            message = f"{message[0].lower()}{message[1:]} (got {said(problem['input'])})"
        field, origin = ".".join(path), _origin(path, origins)
        lines.append(f"{origin}: {field}: {message}" if field else f"{origin}: {message}")
    return "the config is not valid:\n" + first_lines(lines, 8)


def _field_path(loc: tuple[int | str, ...], schema: type[Closed]) -> tuple[tuple[str, ...], list[type[Closed]]]:
    """Return ``loc`` without the parts that pydantic adds between a section and its field, and the section at its end.

    It adds the tag of a discriminated union (even if a preset chose it) and the name of a member of a plain union.
    """
    path: list[str] = []
    sections: list[type[Closed]] = [schema]
    tag_follows = False
    for part in loc:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if isinstance(part, int):
            path.append(str(part))
        elif tag_follows:
            sections = [section for section in sections if part in kinds_of(section)]
            tag_follows = False
        elif fields:
            path.append(part)
            sections = sections_in(fields[0].annotation)
            tag_follows = len(sections) > 1
        elif sections:
            path.append(part)
    return tuple(path), sections


def _with_named_field(
    path: tuple[str, ...], message: str, sections: list[type[Closed]], tree: Tree
) -> tuple[tuple[str, ...], str]:
    """Move the field that a section's own message begins with (``sampling.n: ...``) to the end of the path."""
    name, colon, rest = message.partition(": ")
    first, given = name.split(".")[0], _given(tree, path)
    known = any(first in section.model_fields for section in sections) or first in given
    return ((*path, *name.split(".")), rest) if colon and known else (path, message)


def _given(tree: Tree, path: tuple[str, ...]) -> Tree:
    """The section at ``path`` as written in the config; empty if absent."""
    node: JsonValue = tree
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _origin(path: tuple[str, ...], origins: Origins) -> str:
    for depth in range(len(path), 0, -1):
        origin = origins.get(".".join(path[:depth]))
        if origin is not None:
            return origin
    named = sorted(set(origins.values()) - {COMMAND_LINE})
    return named[-1] if len(named) == 1 else "config"
