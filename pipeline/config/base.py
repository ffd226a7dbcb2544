"""Base class of the config's sections: closed, frozen, and able to list the settings that decide a result."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue

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
