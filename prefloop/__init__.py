"""prefloop from Python: ``from prefloop import run, load_run, load_preset``. Torch-free.

Names are loaded when they are first used, because in a wheel every child process imports this module.
"""

from typing import TYPE_CHECKING

from pipeline.errors import Paused, RunError, UserError

if TYPE_CHECKING:
    from pipeline.losses import load_preset
    from prefloop.results import Run, load_run
    from prefloop.running import run

__all__ = ["Paused", "Run", "RunError", "UserError", "load_preset", "load_run", "run"]


def __getattr__(name: str) -> object:
    match name:
        case "run":
            from prefloop.running import run

            return run
        case "Run":
            from prefloop.results import Run

            return Run
        case "load_run":
            from prefloop.results import load_run

            return load_run
        case "load_preset":
            from pipeline.losses import load_preset

            return load_preset
    raise AttributeError(f"module 'prefloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
