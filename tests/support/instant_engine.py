"""The process of an engine that answers at once, with as many tokens as it is told: what is left is everything else."""

import os

from flows.workers.messages import Done, Load, Loaded, MoreRequests, Request, SampleCall, Sampled, SamplerInit
from flows.workers.serving import Caller, Handler, serve_calls
from pipeline.config import SamplingSettings
from pipeline.sampling.sampler import RequestFeed, SampleRequest
from pipeline.types import Response

# Tokens of a response.
LENGTH = "INSTANT_TOKENS"


def init(request: SamplerInit, caller: Caller) -> Done:
    return Done()


def load(request: Load, caller: Caller) -> Loaded:
    return Loaded("start", 0.0, "float32", None, 0.0)


def sample(request: SampleCall, caller: Caller) -> Done:
    """As the real service does, but for the engine."""
    settings, length = SamplingSettings.model_validate(request.settings), int(os.environ[LENGTH])

    def further(wait: bool) -> tuple[SampleRequest, ...] | None:
        more = caller.further(MoreRequests, wait=wait)
        return (None if wait else ()) if more is None else more.requests or None

    feed = RequestFeed(request.requests, further if request.open else None)
    while found := feed.take(256, idle=True):
        for one in found:
            caller(Sampled(tuple(response(one.seed + k, length) for k in range(settings.n))))
    return Done()


def response(seed: int, length: int) -> Response:
    """Different for each seed; log-probs as long as real ones are in text."""
    ids = tuple((seed * 2654435761 + 40503 * k) % 128_000 for k in range(length))
    return Response(f"word {seed} " * (length // 3), ids, tuple(-1.0 / (3 + token) for token in ids), "stop")


def main() -> None:
    handlers: dict[type[Request], Handler] = {SamplerInit: init, Load: load, SampleCall: sample}
    serve_calls(handlers, None, (MoreRequests,))


if __name__ == "__main__":
    main()
