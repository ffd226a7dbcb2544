"""Sampling with transformers alone, for machines without vLLM: slow, same results.

Uses its own decoding loop instead of ``generate``: each sample draws from its own generator, so it
depends on its seed and not on its neighbours in the batch, and log-probabilities are the model's
before temperature and cuts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.config import SamplingSettings, TransformersSampler
from pipeline.errors import RunError, UserError
from pipeline.models.chat import Chat
from pipeline.models.policy import load_for_scoring
from pipeline.models.weights.adapter_folder import base_of, is_adapter
from pipeline.models.weights.held_weights import holds_fewer_bits
from pipeline.models.weights.lora import plain_model
from pipeline.models.weights.weight_format import WeightFormat
from pipeline.sampling.sampler import (
    SORTED_TOGETHER,
    EngineOptions,
    RequestFeed,
    SampleRequest,
    Swap,
    check_length,
    engine_dtype,
    feed_of,
    make_response,
    room_for,
    sample_seeds,
    stop_place,
)
from pipeline.types import Response


@dataclass(slots=True)
class _Row:
    """One sample in progress."""

    prompt_ids: tuple[int, ...]
    room: int
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: bool = False


class TransformersEngine:
    """A transformers model in this process, decoding in left-padded batches with a key-value cache."""

    def __init__(
        self, path: str, chat: Chat, settings: TransformersSampler, options: EngineOptions | None = None
    ) -> None:
        """Load the model folder ``path``, or an adapter's on the weights that it names."""
        self._chat = chat
        self._settings = settings
        self._options = options or EngineOptions()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = None
        self._mixed = False
        self._partner: TransformersEngine | None = None
        self.load(path)

    @property
    def dtype(self) -> str:
        """The precision of the model's weights."""
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def context(self) -> int:
        """Longest prompt + response, in tokens."""
        return int(self._model.config.get_text_config().max_position_embeddings)

    def _sampled_with(self, settings: SamplingSettings) -> "list[TransformersEngine]":
        """The engines whose models are read for each token.

        Raises ``RunError`` if the mixture's other model is not there.
        """
        if settings.mixture is None:
            return [self]
        if self._partner is None:
            raise RunError("the sampler was asked for a mixture before it loaded the other model")
        return [self, self._partner]

    def load(self, path: str, fresh: bool = False) -> Swap:
        """See ``Sampler.load``; always loads a new model, which cannot be stale."""
        self.close()
        dtype = engine_dtype(self._settings.dtype, base_of(path), accelerator=self._device != "cpu")
        held = WeightFormat(dtype, self._options.quantisation)
        try:
            self._model = load_for_scoring(path, held, trust_remote_code=self._options.trust_remote_code)
        except UserError as error:
            raise RunError(f"transformers cannot load {path}: {error}") from error
        # As in training: an adapter is float32, on weights of fewer bits.
        self._mixed = is_adapter(path) and holds_fewer_bits(plain_model(self._model))
        return "restart"

    def mix(self, path: str | None) -> "TransformersEngine | None":
        """See ``Mixing.mix``; the other model has all of its weights in memory too."""
        if self._partner is not None:
            self._partner.close()
        self._partner = None if path is None else TransformersEngine(path, self._chat, self._settings, self._options)
        return self._partner

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._mixed)

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def sample(
        self, requests: RequestFeed | Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        """See ``Sampler.sample``.

        The last bits of log-probabilities depend on which samples share a batch: the same requests give the same bits.
        """
        feed = feed_of(requests)
        context = min(engine.context for engine in self._sampled_with(settings))
        while together := feed.take(SORTED_TOGETHER, idle=True):
            rows = [
                _Row(request.prompt_ids, room_for(request.prompt_ids, settings.max_tokens, context), generator)
                for request in together
                for generator in map(self._generator, sample_seeds(request, settings.n))
            ]
            # Prompts of one length share a batch where possible, for less padding.
            by_length = sorted(rows, key=lambda row: len(row.prompt_ids))
            for first in range(0, len(by_length), self._settings.batch_size):
                self._decode(by_length[first : first + self._settings.batch_size], settings)
            flat = [self._response(row, settings.stop) for row in rows]
            yield from (tuple(flat[i : i + settings.n]) for i in range(0, len(flat), settings.n))

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``Sampler.score``."""
        return [[logprob for logprob, _ in row] for row in self.ranked(sequences)]

    @torch.inference_mode()
    def ranked(self, sequences: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """See ``Ranking.ranked``."""
        scores: list[list[tuple[float, bool]]] = []
        for start in range(0, len(sequences), self._settings.batch_size):
            batch = sequences[start : start + self._settings.batch_size]
            longest = max(len(ids) for ids in batch)
            for sequence in batch:
                check_length(sequence, self.context)
            ids = torch.tensor([[*s, *([0] * (longest - len(s)))] for s in batch], device=self._device)
            mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in batch], device=self._device)
            with self._autocast():
                logits = self._model(input_ids=ids, attention_mask=mask).logits
            logprobs = logits[:, :-1].float().log_softmax(-1)
            picked = logprobs.gather(2, ids[:, 1:, None])[:, :, 0]
            best = (picked == logprobs.amax(-1)).tolist()
            both = zip(picked.tolist(), best, batch, strict=True)
            scores.extend([*zip(row, first, strict=True)][: len(s) - 1] for row, first, s in both)
        return scores

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self._device).manual_seed(seed)

    @torch.inference_mode()
    def _decode(self, rows: list[_Row], settings: SamplingSettings) -> None:
        """Extend every row until an end token, a stop string or its token limit."""
        readers = [_Reader(engine) for engine in self._sampled_with(settings)]
        longest = max(len(row.prompt_ids) for row in rows)
        pads = [longest - len(row.prompt_ids) for row in rows]
        ids = torch.tensor([[0] * p + list(r.prompt_ids) for p, r in zip(pads, rows, strict=True)], device=self._device)
        mask = torch.tensor([[0] * p + [1] * (longest - p) for p in pads], device=self._device)
        while not all(row.done for row in rows):
            logprobs, *other = [reader.logprobs(ids, mask) for reader in readers]
            drawn = logprobs if settings.mixture is None else mixed(logprobs, other[0], settings.mixture.weight)
            weights = _cut(drawn, settings)
            for i, row in enumerate(rows):
                if not row.done:
                    self._extend(row, logprobs[i], weights[i], settings)
            ids = torch.tensor([[row.token_ids[-1]] for row in rows], device=self._device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)

    def _extend(self, row: _Row, logprobs: torch.Tensor, weights: torch.Tensor, settings: SamplingSettings) -> None:
        if settings.temperature == 0:
            token = int(weights.argmax())
        else:
            # Gumbel-max in exponential form: the argmax of p / e with e ~ Exp(1) is a draw from p.
            noise = torch.empty_like(weights).exponential_(generator=row.generator)
            token = int((weights.exp() / noise).argmax())
        row.token_ids.append(token)
        row.logprobs.append(float(logprobs[token]))
        stopped = token in self._chat.end_ids or len(row.token_ids) == row.room
        row.done = stopped or stop_place(self._chat, row.prompt_ids, row.token_ids, settings.stop) is not None

    def _response(self, row: _Row, stop: Sequence[str]) -> Response:
        return make_response(self._chat, row.prompt_ids, row.token_ids, row.logprobs, stop)


class _Reader:
    """One model's next-token log-probabilities of a batch, with the keys and values of what it has read."""

    def __init__(self, engine: TransformersEngine) -> None:
        from transformers import DynamicCache

        self._engine = engine
        self._cache = DynamicCache(config=engine._model.config)

    def logprobs(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Read ``ids`` [B, N], the newest columns of ``mask`` [B, T]; return [B, V] for the token after them."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with self._engine._autocast():
            logits: torch.Tensor = self._engine._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self._cache,
                logits_to_keep=1,
            ).logits[:, -1]
        return logits.float().log_softmax(-1)


def mixed(ours: torch.Tensor, theirs: torch.Tensor, weight: float) -> torch.Tensor:
    """Return log-probabilities [B, V] of π^(1 − weight) μ^weight, normalised, from those of π and μ.

    Models with one tokenizer may pad their embeddings differently: a token that only one of them has is not drawn.
    """
    both = min(ours.shape[-1], theirs.shape[-1])
    joined = torch.full_like(ours, -torch.inf)
    joined[:, :both] = (1 - weight) * ours[:, :both] + weight * theirs[:, :both]
    return joined.log_softmax(-1)


def _cut(logprobs: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Return log-weights to draw from, shape [B, V]: temperature, then min-p, top-k and top-p, in vLLM's order."""
    if settings.temperature == 0:
        return logprobs
    scaled = (logprobs / settings.temperature).log_softmax(-1)
    if settings.min_p > 0:
        floor = scaled.max(-1, keepdim=True).values + torch.log(torch.tensor(settings.min_p))
        scaled = scaled.masked_fill(scaled < floor, -torch.inf)
    if 0 < settings.top_k < scaled.shape[-1]:
        floor = scaled.topk(settings.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < floor, -torch.inf)
    if settings.top_p < 1:
        ordered, order = scaled.log_softmax(-1).exp().sort(dim=-1, descending=True)
        # A token stays if those before it hold less than top_p: the first one always does.
        dropped = ordered.cumsum(-1) - ordered >= settings.top_p
        scaled = scaled.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
    return scaled
