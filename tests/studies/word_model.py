"""A tiny Llama that writes answers of a few words, small enough that every expectation over its answers is exact.

Token 0 starts a prompt and ends an answer; the others are words. A prompt is one word, an answer at most ``LONGEST``
tokens. A labeller's reward is the sum of what it likes of each word after the word before it, given the prompt. All
answers are enumerated, so reward and KL have no sampling error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config import Optimisation
from pipeline.losses import Loss
from pipeline.training.batches.examples import Example
from pipeline.training.reference import ReferenceValues, dispersions, reference_values, with_references
from pipeline.training.train import Trainee, train

WORDS, LONGEST, END = 7, 5, 0
PROMPTS = range(1, WORDS + 1)
FOLLOWS = 0.5  # how much the word before counts in what a labeller likes
SHARED = 0.7  # correlation of the second labeller's taste with the first's
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}

Answer = tuple[int, ...]


@dataclass(frozen=True)
class Tastes:
    """What two labellers like, [prompt, word before, word] each; the second one is never trained on."""

    first: Tensor
    second: Tensor


def tastes_of(seed: int) -> Tastes:
    draw = torch.Generator().manual_seed(seed)
    one, other = (_taste(draw) for _ in range(2))
    return Tastes(one, SHARED * one + (1 - SHARED**2) ** 0.5 * other)


def _taste(draw: torch.Generator) -> Tensor:
    size = WORDS + 1
    of_prompt, of_pair = (torch.randn(size, size, generator=draw) for _ in range(2))
    liked = (of_prompt[:, None, :] + FOLLOWS * of_pair[None]) / (1 + FOLLOWS**2) ** 0.5
    liked[:, :, END] = 0
    return liked.double()


def new_model(seed: int) -> LlamaForCausalLM:
    """A Llama of about 80,000 weights, not trained."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=WORDS + 1, max_position_embeddings=16, bos_token_id=0, eos_token_id=0, **SHAPE)
    return LlamaForCausalLM(config).eval()


def copied(model: LlamaForCausalLM) -> LlamaForCausalLM:
    twin = LlamaForCausalLM(model.config)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def start_model(seed: int, steps: int = 300) -> LlamaForCausalLM:
    """A language model of answers whose next word depends on the one before, trained from nothing."""
    draw = torch.Generator().manual_seed(1000 + seed)
    logits = torch.randn(WORDS + 1, WORDS + 1, generator=draw)
    logits[:, END] = logits.logsumexp(1) - 1.8
    chain, model = logits.softmax(1), new_model(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        words = [torch.randint(1, WORDS + 1, (128, 1), generator=draw)]
        for _ in range(LONGEST):
            words.append(torch.multinomial(chain[words[-1][:, 0]], 1, generator=draw))
        rows = torch.cat([torch.zeros(128, 1, dtype=torch.int64), *words], dim=1)
        ended = (rows[:, 2:] == END).long().cumsum(1).roll(1, 1)
        ended[:, 0] = 0
        logps = model(input_ids=rows).logits[:, 1:-1].log_softmax(-1)
        of_words = logps.gather(2, rows[:, 2:, None])[:, :, 0]
        optimiser.zero_grad()
        (-(of_words * (ended == 0)).sum() / (ended == 0).sum()).backward()
        optimiser.step()
    return model.eval()


@torch.inference_mode()
def next_words(model: LlamaForCausalLM) -> list[Tensor]:
    """For each number of words said, [prompt, all words said so far in order, next token] log-probabilities."""
    said = torch.tensor([*product(PROMPTS, repeat=LONGEST - 1)])
    levels: list[list[Tensor]] = [[] for _ in range(LONGEST)]
    for prompt in PROMPTS:
        begin = torch.tensor([[END, prompt]]).expand(len(said), 2)
        logps = model(input_ids=torch.cat([begin, said], 1)).logits[:, 1:].double().log_softmax(-1)
        for level, found in enumerate(levels):
            # The rows whose later words are all the first word: each beginning once.
            found.append(logps[:: WORDS ** (LONGEST - 1 - level), level])
    return [torch.stack(found) for found in levels]


def expected(policy: Sequence[Tensor], of_token: Sequence[Tensor]) -> float:
    """The mean over prompts of Σ_t E[value of token t], ``of_token`` [prompt, words said, token] for each level."""
    total, reached = 0.0, torch.ones(WORDS, 1, dtype=torch.float64)
    for logps, values in zip(policy, of_token, strict=True):
        joint = reached[:, :, None] * logps.exp()
        total += float((joint * values).sum()) / WORDS
        reached = joint[:, :, 1:].flatten(1)
    return total


def kl(policy: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """KL of whole answers to the start policy, nats, exact."""
    return expected(policy, [ours - theirs for ours, theirs in zip(policy, start, strict=True)])


def reward(policy: Sequence[Tensor], liked: Tensor) -> float:
    """Expected reward of an answer, exact."""
    values = []
    for level, logps in enumerate(policy):
        before = torch.tensor(PROMPTS)[torch.arange(logps.shape[1]) % WORDS]
        of_words = liked[1:, before] if level else liked[torch.tensor(PROMPTS), torch.tensor(PROMPTS)][:, None]
        values.append(of_words)
    return expected(policy, values)


def reward_of(liked: Tensor, prompt: int, answer: Answer) -> float:
    before = (prompt, *answer)
    return float(sum(liked[prompt, one, word] for one, word in zip(before, answer, strict=False)))


def sampled(policy: Sequence[Tensor], prompt: int, draw: torch.Generator) -> Answer:
    """An answer to ``prompt``; one of ``LONGEST`` words is cut, as in a run."""
    answer, place = [], 0
    for logps in policy:
        word = int(torch.multinomial(logps[prompt - 1, place].exp(), 1, generator=draw))
        answer.append(word)
        if word == END:
            break
        place = place * WORDS + word - 1
    return tuple(answer)


def compared(start: LlamaForCausalLM, tastes: Tastes, count: int, seed: int) -> list[Example]:
    """``count`` pairs of different answers of the start policy, as the first labeller compares them (Bradley-Terry)."""
    draw, policy, pairs = torch.Generator().manual_seed(100 + seed), next_words(start), list[Example]()
    while len(pairs) < count:
        prompt = PROMPTS[len(pairs) % WORDS]
        one, other = (sampled(policy, prompt, draw) for _ in range(2))
        if one == other:
            continue
        gap = reward_of(tastes.first, prompt, one) - reward_of(tastes.first, prompt, other)
        won = float(torch.rand((), generator=draw)) < torch.sigmoid(torch.tensor(gap))
        better, worse = (one, other) if won else (other, one)
        pairs.append(Example.pair(str(len(pairs)), (END, prompt), better, worse))
    return with_start(pairs, reference_values(start, pairs, 256, entropy=True))


def with_start(pairs: Sequence[Example], values: Sequence[ReferenceValues]) -> list[Example]:
    """The pairs with the start's log-probabilities, and the dispersion that its entropy tells."""
    told = dispersions([value.entropy or 0.0 for value in values])
    scored = with_references(pairs, [[value.logps for value in values]])
    return [replace(pair, dispersion=one) for pair, one in zip(scored, told, strict=True)]


def trained(
    start: LlamaForCausalLM, pairs: Sequence[Example], loss: Loss, seed: int, **settings: Any
) -> LlamaForCausalLM:
    """The policy that the production trainer makes of ``start``."""
    model = copied(start)
    asked = {"batch_size": 40, "micro_batch_size": 40, "learning_rate": 1e-3, "epochs": 6, "warmup": 0.0} | settings
    train(Trainee(model, start), pairs, loss, Optimisation.model_validate(asked), seed=seed)
    return model.eval()
