"""Speeds of a config's parts that the user gives. Torch-free."""

import math
from pathlib import Path

from flows.planning.arithmetic import KINDS
from pipeline.config.files import read_yaml
from pipeline.errors import UserError


def given_rates(text: str) -> dict[str, float]:
    """Tokens a second by kind of work, from ``kind=number,...`` or a YAML file that maps kinds to numbers.

    Raises:
        UserError: an unknown kind, or not a positive number.
    """
    if "=" in text:
        parts = [part.partition("=") for part in text.split(",")]
        named: dict[str, object] = {name.strip(): value.strip() for name, _, value in parts}
    else:
        named = dict(read_yaml(Path(text)))
    if not named:
        raise UserError(f"--rates: {text}: contains no rate; give for example sampling=10000,training=9000")
    return {name: _rate(name, value) for name, value in named.items()}


def _rate(name: str, value: object) -> float:
    if name not in KINDS:
        raise UserError(f"--rates: {name}: unknown rate; must be one of {', '.join(KINDS)}")
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"--rates: {name}: {value}: must be a number of tokens a second above 0")
    return number
