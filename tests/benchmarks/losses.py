"""What the loss arithmetic costs beside a whole training step of the quickstart's model, preset by preset.

    python -m tests.benchmarks.losses [--json FILE]

A step is forward and backward of the policy over 32 pairs; the arithmetic is the loss of their log-probabilities, to
the gradient by these, and does not depend on the size of the model. Medians; prints a table.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.losses import GroupBatch, PairBatch, Side, load_preset, preset_names
from pipeline.models.token_logps import TokenLogps

PAIRS, PROMPT, RESPONSE, VOCABULARY = 32, 32, 32, 1000
REPEATS = 15


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median of ``repeats`` runs, after one that is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def quickstart_model() -> LlamaForCausalLM:
    """1.2 million parameters, the quickstart's shape."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=160,
            intermediate_size=432,
            num_hidden_layers=3,
            num_attention_heads=5,
            num_key_value_heads=5,
            tie_word_embeddings=False,
        )
    )


def side(policy: torch.Tensor, mask: torch.Tensor) -> Side:
    """Everything a loss could read, random."""
    draw = torch.rand(4, *policy.shape)
    return Side(
        policy=policy,
        mask=mask,
        reference=torch.stack([policy.detach() + 0.1 * draw[0], policy.detach() - 0.1 * draw[1]]),
        kl=draw[0].requires_grad_(),
        collision=draw[1],
        weights=draw[2].requires_grad_(),
        kl_weights=draw[3].requires_grad_(),
        edited=draw[0] > 0.5,
        prior=(draw[1] - 1).requires_grad_(),
    )


def pairs() -> PairBatch:
    """32 pairs with every field."""
    mask = torch.zeros(PAIRS, PROMPT + RESPONSE, dtype=torch.bool)
    mask[:, PROMPT:] = True
    sides = [side((-3 * torch.rand(PAIRS, PROMPT + RESPONSE)).requires_grad_(), mask) for _ in range(3)]
    numbers = {name: torch.rand(PAIRS) for name in ("reward_chosen", "reward_rejected", "win_probability")}
    learned = {name: torch.rand(PAIRS).requires_grad_() for name in ("value", "critic_chosen", "critic_rejected")}
    return PairBatch(
        chosen=sides[0],
        rejected=sides[1],
        calibration=sides[2],
        dispersion=torch.rand(PAIRS) + 0.5,
        seeds=torch.arange(PAIRS),
        **numbers,
        **learned,
    )


def measure() -> dict[str, float]:
    """Seconds of a step (``step``) and of each preset's arithmetic."""
    policy = TokenLogps(quickstart_model())
    ids = torch.randint(0, VOCABULARY, (2 * PAIRS, PROMPT + RESPONSE))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, PROMPT:] = True
    batch = pairs()
    assert batch.rejected is not None and batch.reward_chosen is not None and batch.reward_rejected is not None
    group = GroupBatch(
        responses=(batch.chosen, batch.rejected), rewards=torch.stack([batch.reward_chosen, batch.reward_rejected], 1)
    )
    found = {"step": seconds(lambda: policy(ids, mask).policy.sum().backward(), 5)}
    for name in preset_names():
        loss = load_preset(name)
        given = batch if loss.composition.head is None else group
        found[name] = seconds(lambda loss=loss, given=given: loss(given).per_pair.sum().backward())  # type: ignore[misc]
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="cost of the loss arithmetic")
    parser.add_argument("--json", type=Path, help="also write the seconds to this file")
    given = parser.parse_args()
    found = measure()
    step = found["step"]
    print(f"step (forward and backward, {PAIRS} pairs of {PROMPT}+{RESPONSE} tokens): {1e3 * step:.1f} ms")
    for name, taken in sorted(found.items(), key=lambda item: -item[1]):
        if name != "step":
            print(f"{name:24} {1e3 * taken:7.3f} ms {taken / step:8.2%}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
