"""Named losses as objects: ``load_preset``."""

from pydantic import ValidationError

from pipeline.config import Composition, preset_names, resolve
from pipeline.losses.loss import Loss
from pipeline.types import UserError, first_lines

__all__ = ["load_preset", "preset_names"]


def load_preset(name: str, **overrides: object) -> Loss:
    """The loss of configs/loss/``name``.yaml with settings replaced by ``overrides``.

    An override is a field of ``Composition`` (``beta``, ``link``), or a setting of one of its components by the name
    alone where that is unique (``gamma``).

    Raises:
        UserError: no such preset, an ambiguous name, or an override that the schema refuses.
    """
    try:
        return Loss(name, Composition.model_validate(resolve(name, overrides)))
    except ValidationError as error:
        faults = [
            f"loss.{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" if e["loc"] else e["msg"]
            for e in error.errors()
        ]
        raise UserError(f"loss {name}:\n{first_lines(faults)}") from None
    except ValueError as error:
        raise UserError(f"loss.{error}") from None
