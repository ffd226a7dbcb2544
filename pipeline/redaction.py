"""Keys and passwords, kept out of whatever is written or shown: logs, errors, Prefect's database. Torch-free."""

import io
import os
import re
import sys
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)", re.I)
SECRET_TEXT = re.compile(
    r"\b(?:sk|hf|gh[pousr]|xox[abprs]|pnu|pnb)[-_][A-Za-z0-9_-]{12,}|(?<=Bearer )[^\s'\",;]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
HIDDEN = "[hidden]"
# Shorter values are words of any text.
SHORTEST_SECRET = 8


def secrets_of(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of variables whose names say that they are secret, the longest first."""
    values = os.environ if environment is None else environment
    found = {value.strip() for name, value in values.items() if SECRET_NAME.search(name)}
    return tuple(sorted((value for value in found if len(value) >= SHORTEST_SECRET), key=len, reverse=True))


def hide_secrets(text: str, secrets: tuple[str, ...]) -> str:
    """``text`` without any of ``secrets``, and without what looks like a key."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return SECRET_TEXT.sub(HIDDEN, text)


def redacted(error: object, *secrets: str | None) -> str:
    """``error`` as text, without ``secrets`` and those of this process's environment."""
    given = tuple(secret for secret in secrets if secret)
    return hide_secrets(str(error), (*given, *secrets_of()))


def key_variables(plain: JsonValue) -> frozenset[str]:
    """Names of the variables that hold the keys of a config, or of a part of one, as JSON."""
    match plain:
        case dict():
            named = {str(value) for name, value in plain.items() if name == "api_key_env" and value is not None}
            return frozenset(named).union(*map(key_variables, plain.values()))
        case list():
            return frozenset[str]().union(*map(key_variables, plain))
        case _:
            return frozenset()


class _Redacted(io.TextIOWrapper):
    """A text stream that writes no secret."""

    secrets: tuple[str, ...] = ()

    def write(self, text: str) -> int:
        super().write(hide_secrets(text, self.secrets))
        return len(text)


def redact_output(variables: Iterable[str]) -> None:
    """Keep the values of ``variables``, and of those whose names are secret, out of what this process prints."""
    given = (os.environ.get(name, "").strip() for name in variables)
    secrets = (*(value for value in given if value), *secrets_of())
    for name in ("stdout", "stderr"):
        stream = _Redacted(getattr(sys, name).buffer, encoding="utf-8", errors="backslashreplace", write_through=True)
        stream.secrets = secrets
        setattr(sys, name, stream)
