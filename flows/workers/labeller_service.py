"""An engine of a reward model: ``python -m flows.workers.labeller_service``, started by a pool of them."""

import os
from collections.abc import Callable

from pydantic import JsonValue

from flows.workers.messages import (
    ComputePart,
    Describe,
    Described,
    Done,
    LabellerInit,
    LabelProgressed,
    PartComputed,
    TakenUp,
    TakeUp,
)
from flows.workers.serving import serve_calls
from reward_models.answers.parts import InParts, LocalModel
from reward_models.build import loaded

_Send = Callable[[LabelProgressed], None]


class LabellerService:
    """Loads one model, and computes parts of the groups that it took up last."""

    def init(self, request: LabellerInit, send: _Send) -> Done:
        """Load the model. Raises ``UserError`` if it cannot be loaded."""
        if request.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, request.cores)
        model = LocalModel(request.kind, request.settings, request.rendering, request.field)
        self._model: InParts = loaded(model)
        return Done()

    def describe(self, request: Describe, send: _Send) -> Described:
        """Tell what the version of the model's labels depends on."""
        return Described(self._model.described, self._model.facts)

    def take_up(self, request: TakeUp, send: _Send) -> TakenUp:
        """Take up groups; count what their texts were."""
        before = self._model.facts
        parts = self._model.start(request.groups)
        return TakenUp(parts, {name: _since(before.get(name), value) for name, value in self._model.facts.items()})

    def part(self, request: ComputePart, send: _Send) -> PartComputed:
        """Compute one part."""
        return PartComputed(self._model.part(request.number))


def _since(before: JsonValue, value: JsonValue) -> JsonValue:
    return value - before if isinstance(value, int) and isinstance(before, int) else value


def main() -> None:
    """Serve until the parent closes the socket."""
    service = LabellerService()
    serve_calls(
        {
            LabellerInit: service.init,
            Describe: service.describe,
            TakeUp: service.take_up,
            ComputePart: service.part,
        }
    )


if __name__ == "__main__":
    main()
