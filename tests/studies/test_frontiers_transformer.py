"""The study of frontiers on a tiny Llama, small: its enumeration is right, and the production trainer moves it."""

from itertools import product

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.studies import word_model as world
from tests.studies.frontiers_transformer import lines_of


@pytest.fixture(scope="module")
def start() -> LlamaForCausalLM:
    return world.start_model(0, steps=40)


def test_expectations_are_those_of_every_answer_written_out(
    start: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of at most two tokens, each scored by a pass of its own."""
    monkeypatch.setattr(world, "LONGEST", 2)
    liked, other = world.tastes_of(0).first, world.start_model(1, steps=20)
    answers = [(0,), *product(world.PROMPTS, range(world.WORDS + 1))]
    reward = divergence = total = 0.0
    for prompt in world.PROMPTS:
        for answer in answers:
            ours, theirs = (logp(model, prompt, answer) for model in (start, other))
            total += ours.exp().item()
            reward += ours.exp().item() * world.reward_of(liked, prompt, answer)
            divergence += ours.exp().item() * (ours - theirs).item()
    policy = world.next_words(start)
    assert total == pytest.approx(world.WORDS, abs=1e-4)
    assert world.reward(policy, liked) == pytest.approx(reward / world.WORDS, abs=1e-4)
    assert world.kl(policy, world.next_words(other)) == pytest.approx(divergence / world.WORDS, abs=1e-4)


def test_a_loss_raises_both_labellers_rewards_and_a_larger_beta_stays_nearer() -> None:
    found = lines_of(0, ["DPO", "SparsePO"], (0.3, 10.0), epochs=2)
    for near, far in ((line[1], line[0]) for line in found.values()):
        assert far[0] > 2 * near[0] > 0
        assert far[1] > near[1] > 0 and far[2] > 0


def logp(model: LlamaForCausalLM, prompt: int, answer: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[world.END, prompt, *answer]])).logits[0, 1:-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().double()
