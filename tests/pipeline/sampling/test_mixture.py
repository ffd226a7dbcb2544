"""Mixtures of two models: each token exactly with transformers, whole responses by resampling."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from pipeline import config
from pipeline.config import SamplingMixture, SamplingSettings
from pipeline.errors import RunError
from pipeline.models.chat import load_chat
from pipeline.sampling.resampling import effective_share, kept_places, log_weights, overall_share
from pipeline.sampling.sampler import SampleRequest
from pipeline.sampling.transformers_engine import TransformersEngine, mixed
from tests.support.tiny_model import save_tiny_model

WEIGHT = 0.4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models whose next tokens differ by nats."""
    root = tmp_path_factory.mktemp("models")
    return save_tiny_model(root / "policy", seed=0), save_tiny_model(root / "other", seed=1)


@pytest.fixture(scope="module")
def models(folders: tuple[Path, Path]) -> list[LlamaForCausalLM]:
    return [LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders]


@pytest.fixture(scope="module")
def engine(folders: tuple[Path, Path]) -> TransformersEngine:
    chat = load_chat(str(folders[0]), config.ChatSettings())
    made = TransformersEngine(str(folders[0]), chat, config.TransformersSampler(dtype="float32", batch_size=64))
    made.mix(str(folders[1]))
    return made


def settings(**given: object) -> SamplingSettings:
    return SamplingSettings.model_validate({"mixture": {"weight": WEIGHT}, **given})


def next_logprobs(models: list[LlamaForCausalLM], ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the mixture, and of the policy: by whole forward passes, the formula written out."""
    with torch.no_grad():
        ours, theirs = (model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1) for model in models)
    joined = torch.exp(ours) ** (1 - WEIGHT) * torch.exp(theirs) ** WEIGHT
    return torch.log(joined / joined.sum()), ours


def test_each_greedy_token_is_the_mixtures_best_and_its_logprob_the_policys(
    engine: TransformersEngine, models: list[LlamaForCausalLM]
) -> None:
    """Prompts of several lengths in one batch: padding, positions and both caches are right."""
    draw = random.Random(1)
    asked = [SampleRequest(tuple(draw.randrange(7, 290) for _ in range(3 + 2 * n)), n) for n in range(8)]
    alone = 0
    answers = engine.sample(asked, settings(n=1, temperature=0, max_tokens=10))
    for request, (response,) in zip(asked, answers, strict=True):
        ids = list(request.prompt_ids)
        for token, logprob in zip(response.token_ids, response.logprobs, strict=True):
            joined, ours = next_logprobs(models, ids)
            assert token == int(joined.argmax())
            assert logprob == pytest.approx(float(ours[token]), abs=1e-4)
            alone += token != int(ours.argmax())
            ids.append(token)
    assert alone > 10


def test_sampled_tokens_have_the_mixtures_distribution(
    engine: TransformersEngine, models: list[LlamaForCausalLM]
) -> None:
    """Total variation of counts is at most what as many draws from the enumerated distribution have."""
    prompt, n = (9, 40, 77, 102), 10_000
    asked = [SampleRequest(prompt, seed) for seed in range(10)]
    answers = engine.sample(asked, settings(n=n // 10, max_tokens=1))
    tokens = [response.token_ids[0] for group in answers for response in group]
    counts, (joined, ours) = Counter(tokens), next_logprobs(models, list(prompt))
    expected = joined.exp()

    def apart(other: torch.Tensor) -> float:
        return 0.5 * sum(abs(counts[place] / n - float(p)) for place, p in enumerate(other))

    bound = 0.5 * float((expected * (1 - expected) / n).sqrt().sum())
    assert apart(expected) < 1.1 * bound
    assert apart(ours.exp()) > 2 * bound


def test_tokens_that_only_one_model_has_are_not_drawn() -> None:
    ours, theirs = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.25, 0.75]]).log()
    found = mixed(ours, theirs, 0.5)[0].exp()
    weights = torch.tensor([math.sqrt(0.5 * 0.25), math.sqrt(0.3 * 0.75), 0.0])
    assert torch.allclose(found, weights / weights.sum())
    assert mixed(theirs, ours, 0.5).shape == theirs.shape


def test_a_mixture_without_its_other_model_is_refused(folders: tuple[Path, Path]) -> None:
    chat = load_chat(str(folders[0]), config.ChatSettings())
    alone = TransformersEngine(str(folders[0]), chat, config.TransformersSampler(dtype="float32"))
    with pytest.raises(RunError, match="before it loaded the other model"):
        next(alone.sample([SampleRequest((9, 40), 0)], settings()))


def test_resampled_responses_tend_to_the_sequence_level_mixture() -> None:
    """Six whole responses; 64 of the policy's, of which four are kept, many times over."""
    draw = random.Random(3)
    ours, theirs = ([draw.random() for _ in range(6)] for _ in range(2))
    ours, theirs = ([p / sum(of) for p in of] for of in (ours, theirs))
    wanted = [p ** (1 - WEIGHT) * q**WEIGHT for p, q in zip(ours, theirs, strict=True)]
    wanted = [w / sum(wanted) for w in wanted]
    counts, rounds = Counter[int](), 3000
    for number in range(rounds):
        drawn = draw.choices(range(6), ours, k=64)
        logs = log_weights([math.log(ours[y]) for y in drawn], [math.log(theirs[y]) for y in drawn], WEIGHT)
        counts.update(drawn[place] for place in kept_places(logs, 4, number))
    found = [counts[y] / (4 * rounds) for y in range(6)]
    apart = [0.5 * sum(abs(f - p) for f, p in zip(found, of, strict=True)) for of in (wanted, ours)]
    assert apart[0] < 0.015 < 0.05 < apart[1]


def test_the_effective_share_is_that_of_normal_log_ratios() -> None:
    """e^(−b² d²): 87 % at b = 0.125, and 11 % at 0.5, of log-ratios with a deviation of 3 nats."""
    draw = random.Random(0)
    ratios = [draw.gauss(0, 3) for _ in range(200_000)]
    for weight, share in ((0.125, 0.869), (0.5, 0.105)):
        assert effective_share([weight * ratio for ratio in ratios]) == pytest.approx(share, abs=0.02)
    assert effective_share([0.3, 0.3, 0.3]) == pytest.approx(1)
    assert effective_share([0.0, -1e9]) == pytest.approx(0.5)
    assert overall_share([1.0, 0.5]) == pytest.approx(2 / 3)


def test_what_is_kept_depends_on_its_seed_alone() -> None:
    logs = [0.1 * place for place in range(12)]
    assert kept_places(logs, 4, 1) == kept_places(logs, 4, 1) != kept_places(logs, 4, 2)
    assert kept_places(logs, 6, 1)[:4] == kept_places(logs, 4, 1)
    assert SamplingMixture(reference="previous").path is None and SamplingMixture(reference="./m").path == "./m"
