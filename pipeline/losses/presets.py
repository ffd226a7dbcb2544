"""Named losses: the files of configs/loss/, one ``Composition`` each."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from pipeline.losses.composition import Composition
from pipeline.losses.loss import Loss
from pipeline.types import UserError, first_lines

# configs/ lies beside pipeline/ both in a checkout and in an installed package.
PRESETS = Path(__file__).parents[2] / "configs" / "loss"


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load_preset(name: str, **overrides: object) -> Loss:
    """The loss of configs/loss/``name``.yaml, with fields of its ``Composition`` replaced by ``overrides``.

    Raises:
        UserError: no such preset, or an override that the schema refuses.
    """
    if name not in preset_names():
        raise UserError(f"loss.preset: {name!r} is not a loss; one of {', '.join(preset_names())}")
    plain = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    try:
        return Loss(name, Composition.model_validate(plain | overrides))
    except ValidationError as error:
        faults = [
            f"loss.{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" if e["loc"] else e["msg"]
            for e in error.errors()
        ]
        raise UserError(f"loss {name}:\n{first_lines(faults)}") from None
