"""The interface of all samplers: token ids in, sampled token ids and their log-probabilities out.

Torch-free; the engines are in ``vllm_engine``, ``transformers_engine`` and ``server_engine``.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from pipeline.config import Quantisation, SamplingSettings
from pipeline.errors import UserError
from pipeline.models.chat import Chat
from pipeline.models.foreign import model_numbers, model_settings
from pipeline.types import Response, derive_seed

# Requests whose samples an engine without continuous batching sorts by length before it cuts them into batches.
SORTED_TOGETHER = 64
Swap = Literal["reload", "restart", "unchanged"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt, as token ids, and the seed that its samples derive from."""

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is made for, besides its settings.

    Attributes:
        trust_remote_code: run code that ships with the model.
        quantisation: how the trainer holds the weights under an adapter; an engine of transformers does the same.
        adapters: whether it will be given adapters.
    """

    trust_remote_code: bool = False
    quantisation: Quantisation | None = None
    adapters: bool = False


# Returns further requests: none yet if it is empty, none any more if it is None. Its argument says whether to wait.
FurtherRequests = Callable[[bool], Sequence[SampleRequest] | None]


class RequestFeed:
    """Requests in the order in which they are answered."""

    def __init__(self, requests: Iterable[SampleRequest], further: FurtherRequests | None = None) -> None:
        """``further``: where more come from after ``requests``; None: there are no others."""
        self._waiting = deque(requests)
        self._further = further

    def take(self, most: int, *, idle: bool) -> list[SampleRequest]:
        """Return up to ``most`` requests.

        ``idle``: the engine has nothing else to do, so wait for a request; no request then means that none will come.
        """
        while self._further is not None and len(self._waiting) < most:
            found = self._further(idle and not self._waiting)
            if found is None:
                self._further = None
            elif not found:
                break
            else:
                self._waiting.extend(found)
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]


def feed_of(requests: RequestFeed | Sequence[SampleRequest]) -> RequestFeed:
    """Return ``requests`` as a feed."""
    return requests if isinstance(requests, RequestFeed) else RequestFeed(requests)


class Sampler(Protocol):
    """An engine that holds a policy's weights."""

    @property
    def dtype(self) -> str:
        """The precision that the engine computes in: float32, bfloat16 or float16."""

    def sample(
        self, requests: RequestFeed | Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        """Yield ``settings.n`` responses to each request, in order, as soon as it and all earlier requests are done.

        Sample k of a request depends only on (request.seed, k) and the prompt. Log-probabilities are the
        policy's own, before temperature and cuts. ``max_tokens`` is clipped to the room that the context
        leaves.

        Raises:
            UserError: a prompt fills the model's context.
            RunError: the engine failed.
        """

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the raw natural-log probability, at temperature 1, of each of tokens 1..T-1 given those before it."""

    def load(self, path: str, fresh: bool = False) -> Swap:
        """Switch to the weights (or the adapter) in the folder ``path``, and drop what was computed with the old ones.

        ``fresh`` requests a new engine instead of a swap in place. Returns what was done; the caller
        checks the weights (``handshake``), since an engine that reports success may still be stale.
        """

    def close(self) -> None:
        """Free the engine's memory and processes."""


@runtime_checkable
class Ranking(Protocol):
    """An engine that knows which token is the likeliest."""

    def ranked(self, sequences: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """Return ``Sampler.score``'s log-probability of each token, and whether no other token has a higher one."""


@runtime_checkable
class Mixing(Protocol):
    """An engine that can sample from a mixture of its model with another one."""

    def mix(self, path: str | None) -> Sampler | None:
        """Hold the model in the folder ``path`` too, and return an engine that scores with it; None: hold none.

        ``sample`` draws from the mixture if ``settings.mixture`` says so; its log-probabilities stay the policy's.
        """


def sample_seeds(request: SampleRequest, n: int) -> list[int]:
    """Return the seeds of ``n`` samples, each from (request.seed, k) alone: a larger n only adds samples."""
    return [derive_seed(request.seed, k) for k in range(n)]


def engine_dtype(wanted: Literal["auto", Dtype], path: str, accelerator: bool) -> Dtype:
    """Return ``wanted``, or for ``auto`` the stored precision on CPU and a 16-bit one on an accelerator.

    vLLM's own ``auto`` turns float32 weights into 16 bits on CPU too. For small models that is no
    faster there, and it adds rounding noise to every log-probability.
    """
    if wanted != "auto":
        return wanted
    stored = model_settings(Path(path) / "config.json")
    match stored.get("dtype") or stored.get("torch_dtype"):
        case "bfloat16":
            return "bfloat16"
        case "float16":
            return "float16"
        case _:
            return "bfloat16" if accelerator else "float32"


def eager(wanted: bool | None, *, accelerator: bool) -> bool:
    """Return ``wanted``; by default an engine compiles and captures graphs on an accelerator, and not on CPU."""
    return not accelerator if wanted is None else wanted


def engine_context(wanted: int | None, path: str) -> int | None:
    """Return ``wanted`` tokens, at most the context of the model folder ``path``; None: the engine decides.

    vLLM does not start with a longer context than the model's own.
    """
    file = Path(path) / "config.json"
    if wanted is None:
        return None
    # n_positions: GPT-2; max_seq_len: MPT; seq_length: ChatGLM.
    named = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    return min([wanted, *model_numbers(file, *named)])


def room_for(prompt_ids: Sequence[int], max_tokens: int, context: int) -> int:
    """Return how many tokens may be sampled after ``prompt_ids``: ``max_tokens``, or what the context leaves.

    Raises:
        UserError: the prompt leaves no room at all, or is empty.
    """
    room = min(max_tokens, context - len(prompt_ids))
    if room < 1:
        raise UserError(
            f"a prompt of {len(prompt_ids)} tokens leaves no room in the model's context of {context} tokens"
        )
    if not prompt_ids:
        raise UserError("cannot sample from a prompt without tokens")
    return room


def check_length(ids: Sequence[int], context: int) -> None:
    """Raise ``UserError`` if a sequence to score is longer than the model's context."""
    if len(ids) > context:
        raise UserError(f"a sequence of {len(ids)} tokens does not fit the model's context of {context} tokens")


def make_response(
    chat: Chat, prompt_ids: Sequence[int], token_ids: Sequence[int], logprobs: Sequence[float], stop: Sequence[str]
) -> Response:
    """Return the record of one sampled response, cut after its first end token or the token that ends a stop string.

    ``token_ids`` is what the engine produced. ``text`` is what labellers see (``chat.thinking``), and ends before the
    stop string. Stop strings end answers: in a thought they stand for nothing.
    """
    ids, ended = tuple(token_ids), token_ids and token_ids[-1] in chat.end_ids
    stopped = stop_place(chat, prompt_ids, ids, stop)
    if stopped is not None:
        ids, logprobs = ids[:stopped], logprobs[:stopped]
    response = chat.thoughts.response(prompt_ids, ids, logprobs, "stop" if ended or stopped is not None else "length")
    text = response.text
    # Of a text with its thought, the answer is at the end.
    begin = len(text) - len(chat.thoughts.answer(prompt_ids, ids)) if stopped is not None else 0
    found = [at for s in stop if stopped is not None and (at := text.find(s, max(begin, 0))) >= 0]
    return replace(response, text=text[: min(found, default=None)])


def stop_place(chat: Chat, prompt_ids: Sequence[int], ids: Sequence[int], stop: Sequence[str]) -> int | None:
    """Return the number of tokens up to the end of the first stop string of the answer; None if there is none."""

    def holds(count: int) -> bool:
        given = ids[:count]
        said = chat.thoughts.answer(prompt_ids, given) if chat.thoughts.expected else chat.decode(given)
        return any(s in said for s in stop)

    if not stop or not holds(len(ids)):
        return None
    return bisect_left(range(1, len(ids) + 1), True, key=holds) + 1


def engine_stops(chat: Chat, stop: Sequence[str]) -> list[str]:
    """Return the stop strings for an engine that looks for them everywhere; none if thoughts come before answers.

    ``make_response`` then cuts what the engine produced.
    """
    return [] if chat.thoughts.expected else list(stop)
