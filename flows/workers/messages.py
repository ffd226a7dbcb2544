"""Messages between a parent and its child processes: requests, progress and replies, each a struct. Torch-free.

A message is MessagePack, with its kind in ``type``: a third of the bytes of JSON, read five times as fast. What
MessagePack cannot hold, numbers of more than 64 bits in somebody's settings and halves of characters, goes as JSON. It
is written and read with Python's own ``json``: msgspec would turn a NaN log-prob, which stages report, into null.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import Any, Generic, Literal, TypeVar

import msgspec

from pipeline.errors import Paused, RunError, UserError
from pipeline.sampling.sampler import SampleRequest, Swap
from pipeline.training.distributed.meeting import Meeting
from pipeline.types import Group, Response


class WireMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all messages; a kind's tag is its name on the wire."""


class Request(WireMessage, frozen=True):
    """A request to a child; exactly one reply follows."""


class Further(Request, frozen=True):
    """What follows a request before its reply, any number of times; it has no reply of its own."""


class Progress(WireMessage, frozen=True):
    """Progress before the reply, any number of times."""


class Reply(WireMessage, frozen=True):
    """The last message of a call."""


class Done(Reply, frozen=True, tag="done"):
    """The request is done, without a result."""


class Failed(Reply, frozen=True, tag="failed"):
    """The request failed: the text for the user, and the kind of exception that the caller raises."""

    text: str
    kind: Literal["user", "run", "pause"]


# Errors that a handler may raise, by their kind in ``Failed``; any other error is a failure of the run.
RAISED: Mapping[Literal["user", "run", "pause"], type[Exception]] = {
    "user": UserError,
    "run": RunError,
    "pause": Paused,
}
P = TypeVar("P", bound=Progress)
R = TypeVar("R", bound=Reply)
M = TypeVar("M", bound=WireMessage)


@dataclass(frozen=True)
class Service(Generic[P]):
    """A kind of child: its entry module, and the type of its progress messages."""

    entry: str
    progress: type[P]


class SamplerInit(Request, frozen=True, tag="init"):
    """Settings as JSON; the engine starts with the first load.

    ``evidence``: a file for a failed handshake. ``quantisation``: how the trainer holds the weights under an adapter.
    ``adapters``: whether adapters will be loaded.
    """

    sampler: dict[str, Any]
    chat: dict[str, Any]
    trust_remote_code: bool = False
    evidence: str | None = None
    quantisation: dict[str, Any] | None = None
    adapters: bool = False


class Load(Request, frozen=True, tag="load"):
    """Load the policy folder ``path``; ``probe``: the folder with the probe.json to check it, by default the same.

    ``mixed``: the other model of a mixture; ``mixed_probe``: as ``probe``.
    """

    path: str
    probe: str | None = None
    mixed: str | None = None
    mixed_probe: str | None = None


class Loaded(Reply, frozen=True, tag="loaded"):
    """How the weights were loaded, and how well they match: ``max_difference`` in nats.

    ``stale_reload``: the handshake's error after a failed swap in place. ``merged``: why an adapter was merged first.
    ``mixed_difference``: of the other model of a mixture. Of several engines, ``engine`` is this one's name, and
    ``others`` are how the others loaded them.
    """

    how: Literal["start"] | Swap
    max_difference: float
    dtype: str
    stale_reload: str | None
    seconds: float
    merged: str | None = None
    mixed_difference: float | None = None
    engine: str | None = None
    others: "tuple[Loaded, ...]" = ()


class SampleCall(Request, frozen=True, tag="sample"):
    """Respond to each request, with ``SamplingSettings`` as JSON; ``open``: ``MoreRequests`` follow."""

    requests: tuple[SampleRequest, ...]
    settings: dict[str, Any]
    open: bool = False


class MoreRequests(Further, frozen=True, tag="more"):
    """Further requests of an open ``SampleCall``; without any, the call ends once all are answered."""

    requests: tuple[SampleRequest, ...]


class Sampled(Progress, frozen=True, tag="sampled"):
    """The responses to one request, in the order of the requests."""

    responses: tuple[Response, ...]


class Score(Request, frozen=True, tag="score"):
    """Log-probs of each sequence's tokens 1..T-1; ``best``: say also which are the likeliest."""

    sequences: tuple[tuple[int, ...], ...]
    best: bool = False


class ScoresReply(Reply, frozen=True, tag="scores"):
    """One row per sequence of T tokens: T - 1 natural-log probabilities, and whether each token is the likeliest."""

    rows: list[list[float]]
    best: list[list[bool]] = []


class TrainerInit(Request, frozen=True, tag="init"):
    """Run folder, resolved config as JSON, and the rank among the training processes.

    ``meeting``: where they meet; None: the first one starts the others.
    """

    run: str
    config: dict[str, Any]
    rank: int = 0
    meeting: Meeting | None = None


class RunStage(Request, frozen=True, tag="stage"):
    """Run and commit stage ``name`` of ``round``; ``by_shard``: each ``NextShard`` of what it reads follows."""

    round: int
    name: str
    by_shard: bool = False


class NextShard(Further, frozen=True, tag="shard"):
    """A finished shard of the stage that this one reads, with its SHA-256, and the rows that all will have.

    Without a name there is none any more; ``whole``: the stage is complete.
    """

    name: str | None = None
    sha256: str = ""
    rows: int = 0
    whole: bool = False


class JoinPasses(Request, frozen=True, tag="passes"):
    """Take part in the passes without gradient that the main process leads, until it ends them."""


class LabellerInit(Request, frozen=True, tag="init"):
    """A reward model to load: the fields of ``LocalModel``. ``cores``: of the CPU, to stay on; empty: any."""

    kind: Literal["classifier", "pairwise", "members", "implicit"]
    settings: dict[str, Any]
    rendering: dict[str, Any] | None = None
    field: str = "scorer"
    cores: tuple[int, ...] = ()


class Describe(Request, frozen=True, tag="describe"):
    """Tell what the version of the model's labels depends on."""


class Described(Reply, frozen=True, tag="described"):
    """What the loaded model tells of itself, and facts of no texts yet."""

    version: dict[str, Any]
    facts: dict[str, Any]


class TakeUp(Request, frozen=True, tag="take_up"):
    """Groups to label: parts that are asked for next are parts of them."""

    groups: tuple[Group, ...]


class TakenUp(Reply, frozen=True, tag="taken_up"):
    """The number of parts, and facts of the groups' texts."""

    parts: int
    facts: dict[str, Any]


class ComputePart(Request, frozen=True, tag="part"):
    """Compute one part of the groups that were taken up."""

    number: int


class PartComputed(Reply, frozen=True, tag="computed"):
    """Places and values of one part."""

    values: list[tuple[int, float | None]]


class LabelProgressed(Progress, frozen=True, tag="labelled"):
    """Not sent: parts are short."""


class StageProgress(Progress, frozen=True, tag="progress"):
    """``done`` of ``total`` steps, batches or shards."""

    done: int
    total: int
    note: str


# Before each message in a socket.
LENGTH_BYTES = 8
# ``flows``, or its name in a wheel. The services themselves import this module.
_FLOWS = __name__.removesuffix(".workers.messages")
SAMPLER = Service(f"{_FLOWS}.workers.sampler_service", Sampled)
LABELLER = Service(f"{_FLOWS}.workers.labeller_service", LabelProgressed)
TRAINER = Service(f"{_FLOWS}.stages.trainer_service", StageProgress)


def name_of(message: WireMessage) -> str:
    """Return the kind of ``message``: its ``type`` on the wire."""
    return str(message.__struct_config__.tag)


def encode(message: WireMessage) -> bytes:
    """Encode ``message`` for a socket or an actor."""
    try:
        return msgspec.msgpack.encode(message)
    except (OverflowError, UnicodeEncodeError):
        return encode_text(message).encode()


def encode_text(message: WireMessage) -> str:
    """Encode ``message`` as one line of JSON."""
    return json.dumps(msgspec.to_builtins(message))


def decode(message: bytes | bytearray | str, kinds: Iterable[type[M]]) -> M:
    """Decode what ``encode`` or ``encode_text`` made, as a message of one of ``kinds``.

    Raises:
        ValueError: it is neither, or a field is missing, unknown or of the wrong type; the text names the field.
    """
    # No struct in MessagePack begins with this byte.
    if message[:1] in ("{", b"{"):
        return msgspec.convert(json.loads(message), reduce(or_, kinds))
    assert not isinstance(message, str)
    found: M = _decoder(tuple(kinds)).decode(message)
    return found


@cache
def _decoder(kinds: tuple[type[WireMessage], ...]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(reduce(or_, kinds))


def with_length(message: bytes) -> bytes:
    """Return ``message`` after its length, as it goes through a socket."""
    return len(message).to_bytes(LENGTH_BYTES) + message


def frame_length(head: bytes | bytearray) -> int:
    """Return the length of the message that follows its first ``LENGTH_BYTES`` bytes."""
    return int.from_bytes(head)
