"""Base class of the config's sections: closed, frozen, and able to list the settings that decide a result."""

from collections.abc import Iterator
from itertools import takewhile
from operator import eq
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue, model_validator

from pipeline.errors import nearest

# Settings that change how a result is computed but not the result; they may change when a killed run is resumed.
OPERATIONAL: dict[str, JsonValue] = {"operational": True}
# Settings that came after run folders were made without them: no part of a result's key while they have their default.
LATER: dict[str, JsonValue] = {"later": True}


def _plain_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("must begin with http:// or https:// and a host")
    if parts.username is not None or parts.query or parts.fragment:
        # The address is written to the run's config, so a key belongs in the environment.
        raise ValueError("must not hold a user or a query; put a key into the variable that api_key_env names")
    return value


# The address of an OpenAI-compatible server.
ServerAddress = Annotated[str, AfterValidator(_plain_url)]


class Closed(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen and must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _truths_are_no_numbers(cls, given: object) -> object:
        """Refuse true and false, which YAML also reads from yes, no, on and off, where they would become 1 and 0."""
        for name, value in given.items() if isinstance(given, dict) else ():
            field = cls.model_fields.get(str(name))
            if field is not None and _holds_truth(value) and _is_of_numbers(field.annotation):
                raise ValueError(
                    f"{name}: must be a number, not {value} (YAML reads yes, no, on and off as true and false)"
                )
        return given

    @property
    def changed(self) -> frozenset[str]:
        """The settings that differ from their default.

        No meaning may depend on what was written: a run folder's config writes every setting, and is read back.
        """
        fields = type(self).model_fields.items()
        return frozenset(
            name
            for name, field in fields
            if field.is_required() or self.__dict__[name] != field.get_default(call_default_factory=True)
        )

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result, as plain JSON.

        All except the operational ones, and those of ``LATER`` that have their default.
        """
        plain: dict[str, JsonValue] = {}
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == OPERATIONAL:
                continue
            value: object = self.__dict__[name]
            if field.json_schema_extra == LATER and value == field.get_default(call_default_factory=True):
                continue
            plain[name] = _plain(value)
        return plain


def _holds_truth(value: object) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bool) or any(isinstance(item, bool) for item in inner)


def _is_of_numbers(annotation: Any) -> bool:
    """Whether a field of this type holds numbers alone: no truths, words or sections."""
    kinds = set(_types_in(annotation))
    return bool(kinds & {int, float}) and not any(issubclass(kind, bool | str | Closed) for kind in kinds)


def _types_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _types_in(part)


def _plain(value: object) -> JsonValue:
    if isinstance(value, Closed):
        return value.identity()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    raise TypeError(f"no plain form for {type(value).__name__}")


def sections_in(annotation: Any) -> list[type[Closed]]:
    """The sections that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Closed):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def kinds_of(section: type[Closed]) -> tuple[Any, ...]:
    """The values that the ``kind`` of ``section`` may have; empty without a ``kind``."""
    return get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()


def settings_in(section: type[Closed], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[Closed]]]:
    """The path of each setting, with ``N`` for an index, and the section that holds it."""
    for name, field in section.model_fields.items():
        yield (*path, name), section
        index = ("N",) if get_origin(field.annotation) is tuple else ()
        for inner in sections_in(field.annotation):
            yield from settings_in(inner, (*path, name, *index))


def elsewhere(path: tuple[str, ...], schema: type[Closed], kind: JsonValue) -> str:
    """Say what may be meant by the unknown setting at ``path``.

    A setting of the section (of this ``kind``, if it has kinds) with a similar name; the kinds or the paths that have a
    setting of the same name; the most similar other name.
    """
    settings = list(settings_in(schema))
    spelt, colon, value = path[-1].partition(":")
    if colon and any(place[-1] == spelt for place, _ in settings):
        return f"; a space must follow the colon: {spelt}: {value}"
    typed = tuple("N" if name.isdecimal() else name for name in path)
    here = {place[-1] for place, section in settings if place[:-1] == typed[:-1] and kind in (*kinds_of(section), None)}
    similar = [name for name in sorted(here) if len(path[-1]) > 3 and (path[-1] in name or name in path[-1])]
    if similar:
        return f"; did you mean {similar[0]!r}?"
    kinds = [kind for place, section in settings if place == typed for kind in kinds_of(section)]
    if kinds:
        return f"; it belongs to kind {' or '.join(dict.fromkeys(kinds))}"
    same = dict.fromkeys(place for place, _ in settings if place[-1] == path[-1] and place != typed)
    if not same:
        return nearest(path[-1], {place[-1] for place, _ in settings} - {path[-1]})
    shared = {place: sum(takewhile(bool, map(eq, place, typed))) for place in same}
    closest = [place for place in same if shared[place] == max(shared.values())]
    # Of settings with the same name, those in lists that the path does not enter are the less likely.
    closest = [place for place in closest if "N" not in place[shared[place] :]] or closest
    shown = [".".join(path[: shared[place]] + place[shared[place] :]) for place in closest[:3]]
    return f" here; {path[-1]!r} exists at {', '.join(shown)}{', ...' if closest[3:] else ''}"
