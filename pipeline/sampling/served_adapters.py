"""Adapters that vLLM serves on the weights under them, and those that have to be merged first. Torch-free."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Lora
from pipeline.models.weights.adapter_folder import (
    ADAPTER_WEIGHTS,
    adapter_rank,
    adapter_settings,
    is_adapter,
    shapes_in,
)

# Layers with a row for each token.
_VOCABULARY = frozenset({"lm_head", "embed_out", "embed_tokens", "embed_in", "wte"})
# vLLM's own choices for the rank that an engine reserves room for (its MaxLoRARanks).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True)
class Reserved:
    """What an engine makes room for: adapters up to ``rank``, of the layers with the names in ``targets``."""

    rank: int
    targets: frozenset[str]

    def holds(self, other: "Reserved") -> bool:
        """Return whether an adapter that needs ``other`` fits in."""
        return other.rank <= self.rank and other.targets <= self.targets


def reserved_for(path: str | Path) -> Reserved | None:
    """Return the room that the adapter in ``path`` needs; None if it is a whole model."""
    if not is_adapter(path):
        return None
    rank = adapter_rank(adapter_settings(path))
    return Reserved(next(allowed for allowed in VLLM_RANKS if allowed >= rank), frozenset(_layers(path)))


def _layers(path: str | Path) -> set[str]:
    """Return the last parts of the names of the layers that an adapter's weights are for."""
    names = shapes_in(Path(path) / ADAPTER_WEIGHTS)
    return {name.partition(".lora_")[0].rpartition(".")[2] for name in names if ".lora_" in name}


def why_merged(path: str | Path) -> str | None:
    """Return why vLLM cannot serve the adapter in ``path`` on its base; None if it can, or if it is a whole model."""
    if not is_adapter(path):
        return None
    settings = adapter_settings(path)
    return _reason(
        adapter_rank(settings),
        dora=bool(settings.get("use_dora")),
        whole=bool(settings.get("modules_to_save")),
        experts=bool(settings.get("target_parameters")),
        layers=_layers(path),
    )


def why_lora_merged(lora: Lora) -> str | None:
    """Return why vLLM cannot serve an adapter with these settings on its base; None if it can, as far as they say."""
    named = set() if isinstance(lora.target_modules, str) else {*lora.target_modules}
    return _reason(lora.rank, dora=lora.dora, whole=bool(lora.modules_to_save), experts=False, layers=named)


def _reason(rank: int, *, dora: bool, whole: bool, experts: bool, layers: set[str]) -> str | None:
    reasons = {
        "vLLM serves no DoRA": dora,
        "vLLM serves no modules that were trained whole (modules_to_save)": whole,
        "vLLM serves no adapters of experts' parameters": experts,
        # 0.32.0 adds such an adapter to the sampled tokens' logits only.
        "vLLM scores no prompts under an adapter of embeddings or the output head": bool(layers & _VOCABULARY),
        f"vLLM serves adapters up to rank {VLLM_RANKS[-1]}": rank > VLLM_RANKS[-1],
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
