"""Messages between a parent and its child processes: requests, progress and replies, each a struct. Torch-free.

A message is one line of JSON, with its kind in ``type``. Python's own ``json`` writes and reads it: msgspec's would
turn a log-prob that is NaN into null, and the stage that must report it could not.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, Generic, Literal, TypeVar

import msgspec

from pipeline.sampling.sampler import SampleRequest, Swap
from pipeline.types import Response


class WireMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Anything that is sent; the tag of a kind is its name on the wire."""


class Request(WireMessage, frozen=True):
    """Asks a child for something; exactly one reply follows."""


class Progress(WireMessage, frozen=True):
    """Comes before the reply, any number of times."""


class Reply(WireMessage, frozen=True):
    """Ends a call."""


class Done(Reply, frozen=True, tag="done"):
    """It is done, and there is nothing else to say."""


class Failed(Reply, frozen=True, tag="failed"):
    """It failed: the text for the user, and which exception the caller raises."""

    text: str
    kind: Literal["user", "run", "pause"]


P = TypeVar("P", bound=Progress)
R = TypeVar("R", bound=Reply)
M = TypeVar("M", bound=WireMessage)


@dataclass(frozen=True)
class Service(Generic[P]):
    """A kind of child: the module that runs in it, and the progress that it reports."""

    entry: str
    progress: type[P]


class SamplerInit(Request, frozen=True, tag="init"):
    """Settings as JSON; the engine starts with the first load. ``evidence``: a file for a failed handshake."""

    sampler: dict[str, Any]
    chat: dict[str, Any]
    trust_remote_code: bool = False
    evidence: str | None = None


class Load(Request, frozen=True, tag="load"):
    """Hold the policy folder ``path``; ``probe``: the folder whose probe.json checks it, by default the same."""

    path: str
    probe: str | None = None


class Loaded(Reply, frozen=True, tag="loaded"):
    """How the weights got there, and how well they match: ``max_difference`` in nats.

    ``stale_reload``: the handshake's complaint about a swap in place that failed it.
    """

    how: Literal["start"] | Swap
    max_difference: float
    dtype: str
    stale_reload: str | None
    seconds: float


class SampleCall(Request, frozen=True, tag="sample"):
    """Respond to each request, with ``SamplingSettings`` as JSON."""

    requests: tuple[SampleRequest, ...]
    settings: dict[str, Any]


class Sampled(Progress, frozen=True, tag="sampled"):
    """The responses to one request, in the order of the requests."""

    responses: tuple[Response, ...]


class Score(Request, frozen=True, tag="score"):
    """Log-probs of each sequence's tokens 1..T-1."""

    sequences: tuple[tuple[int, ...], ...]


class ScoresReply(Reply, frozen=True, tag="scores"):
    """One row a sequence of T tokens: T - 1 natural-log probabilities."""

    rows: list[list[float]]


class TrainerInit(Request, frozen=True, tag="init"):
    """Run folder, resolved config as JSON, and the rank among the processes of training."""

    run: str
    config: dict[str, Any]
    rank: int = 0


class RunStage(Request, frozen=True, tag="stage"):
    """Run and commit stage ``name`` of ``round``."""

    round: int
    name: str


class StageProgress(Progress, frozen=True, tag="progress"):
    """``done`` of ``total`` steps, batches or shards."""

    done: int
    total: int
    note: str


SAMPLER = Service("flows.workers.sampler_service", Sampled)
TRAINER = Service("flows.stages.trainer_service", StageProgress)


def name_of(message: WireMessage) -> str:
    """The kind of ``message``, as its ``type`` says."""
    return str(message.__struct_config__.tag)


def encode(message: WireMessage) -> bytes:
    """One line of JSON."""
    return json.dumps(msgspec.to_builtins(message)).encode() + b"\n"


def decode(line: bytes | str, kinds: Iterable[type[M]]) -> M:
    """The message of one of ``kinds`` that ``line`` holds.

    Raises:
        ValueError: it is no JSON, or a field is missing, unknown or of another type; the text names the field.
    """
    message: M = msgspec.convert(json.loads(line), reduce(or_, kinds))
    return message
