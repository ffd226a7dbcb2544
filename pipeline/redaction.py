"""Keys and passwords, kept out of whatever is written or shown: logs, errors, Prefect's database. Torch-free."""

import os
import re
from collections.abc import Mapping

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
