"""A sampler child on a tiny model, for tests: vLLM pins threads to cores, so it never lives in pytest's process."""

from collections.abc import Sequence
from pathlib import Path

from flows.workers.pool.sampler_pool import SamplerPool
from flows.workers.pool.seating import Seat
from pipeline import config
from pipeline.models.chat import load_chat
from pipeline.models.handshake import probe_sequences, write_probe
from tests.support.tiny_model import reference_scores


def write_true_probe(folder: Path, weights: Path | None = None) -> Path:
    """Write the probe of ``weights`` (by default those in ``folder``) into ``folder``."""
    chat = load_chat(str(folder), config.ChatSettings())
    sequences = probe_sequences(chat.vocab_size, chat.special_ids)
    write_probe(folder, sequences, reference_scores(weights or folder, sequences), "float32")
    return folder


def vllm_process(log: Path, seats: Sequence[Seat] = (Seat("engine"),), **settings: object) -> SamplerPool:
    """A pool that will hold a float32 vLLM engine in each of ``seats``."""
    sampler = config.VllmSampler.model_validate({"dtype": "float32", "retries": 0, "start_timeout": 400, **settings})
    return SamplerPool(sampler, config.ChatSettings(), log, seats=seats)
