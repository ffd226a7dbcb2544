"""A tiny reward model of each local kind, groups for it to label, and what one process makes of them."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from pipeline.config import ClassifierScorer, PairwiseScorer
from pipeline.types import Group, Message, Prompt, Response
from reward_models.answers.parts import LocalModel
from reward_models.build import loaded
from reward_models.local.silver import ImplicitSettings
from tests.support.tiny_model import save_tiny_model, tiny_tokenizer

MODEL_KINDS = ("classifier", "pairwise", "members", "implicit")
WORDS = ("dog", "cat", "barn", "mat")


def group(number: int, count: int = 3) -> Group:
    texts = [" ".join(WORDS[(number + k + i) % 4] for i in range(1 + (7 * number + k) % 9)) for k in range(count)]
    ids = [tuple(3 + (number + k + i) % 20 for i in range(1 + (5 * number + k) % 7)) for k in range(count)]
    responses = tuple(Response(text, i, (-1.0,) * len(i), "stop") for text, i in zip(texts, ids, strict=True))
    return Group(Prompt((Message("user", f"the {WORDS[number % 4]} {number}"),)), (1, 2, 3 + number % 9), responses)


TO_LABEL = [group(number) for number in range(24)]
COMPARED = [group(number, 2) for number in range(24)]


def groups_for(kind: str) -> list[Group]:
    return COMPARED if kind == "pairwise" else TO_LABEL


def local_models(folder: Path) -> dict[str, LocalModel]:
    """One of each kind, with forward passes so short that there are many parts."""
    for seed in (0, 1):
        save_tiny_model(folder / f"policy_{seed}", seed=seed)
        tokenizer = tiny_tokenizer()
        shape = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        torch.manual_seed(seed)
        tokenizer.save_pretrained(folder / f"reward_{seed}")
        LlamaForSequenceClassification(shape).save_pretrained(folder / f"reward_{seed}")
    reward = str(folder / "reward_0")
    implicit = ImplicitSettings(str(folder / "policy_0"), str(folder / "policy_1"), 0.1, "float32", False)
    return {
        "classifier": LocalModel("classifier", ClassifierScorer(path=reward, batch_tokens=90).model_dump(mode="json")),
        "pairwise": LocalModel("pairwise", PairwiseScorer(path=reward, batch_size=5).model_dump(mode="json")),
        "members": LocalModel("members", {"folders": [reward, str(folder / "reward_1")]}),
        "implicit": LocalModel("implicit", implicit.plain),
    }


def alone(model: LocalModel, groups: list[Group]) -> list[float | None]:
    """All values, part by part in this process."""
    parts = loaded(model)
    found: list[float | None] = [None] * model.places(groups)
    for number in range(parts.start(groups)):
        for place, value in parts.part(number):
            found[place] = value
    return found
