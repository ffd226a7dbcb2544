"""What every section of the config is: closed, frozen, and sure of what decides a result."""

from pydantic import BaseModel, ConfigDict, JsonValue

# Settings that change how a result is reached and not the result: they may differ between a kill and its resume.
OPERATIONAL: dict[str, JsonValue] = {"operational": True}


class Closed(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen and must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result, as plain JSON: everything but the operational ones."""
        plain: dict[str, JsonValue] = {}
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == OPERATIONAL:
                continue
            value: object = self.__dict__[name]
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
