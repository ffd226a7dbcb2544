"""Scores of packed streams are those of each conversation alone; models that cannot take streams get padded rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

import reward_models.local.classifier
from pipeline.config import ClassifierScorer
from pipeline.errors import RunError
from pipeline.models.attention.packing import Packed, pack
from pipeline.types import Group, Message, Prompt, Response
from reward_models.local.classifier import ClassifierReward
from tests.support.tiny_model import tiny_tokenizer

SIZES: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 64, "initializer_range": 0.3, "num_labels": 3}
LLAMA_LIKE = SIZES | {"num_key_value_heads": 1, "pad_token_id": 0}
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3, "num_labels": 3}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA_LIKE)),
    "qwen2": lambda: Qwen2ForSequenceClassification(Qwen2Config(**LLAMA_LIKE)),
    "gpt2 without padding": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2, eos_token_id=2)),
    "gpt2 that pads with the end token": lambda: GPT2ForSequenceClassification(
        GPT2Config(**GPT2, pad_token_id=2, eos_token_id=2)
    ),
    "mistral with a window": lambda: MistralForSequenceClassification(MistralConfig(**LLAMA_LIKE, sliding_window=16)),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES, pad_token_id=0)),
}
PADDED = {
    "bert": "BertForSequenceClassification has no linear score at the last token",
}
WEIGHTS = {0: 0.7, 2: -0.3}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    place = tmp_path_factory.mktemp("classifier")
    tokenizer = tiny_tokenizer(template=None if request.param == "gpt2 without padding" else ending_template())
    tokenizer.save_pretrained(place)
    torch.manual_seed(0)
    MODELS[request.param]().save_pretrained(place)
    return request.param, place


def ending_template() -> str:
    """Ends in the end token, which some models pad with."""
    return "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}</s>"


def group(prompt: str, *texts: str) -> Group:
    return Group(Prompt((Message("user", prompt),)), (1,), tuple(Response(t, (1,), (), "stop") for t in texts))


GROUPS = [
    group("the cat sat on the mat", "a dog", "a dog ran to the old barn", "", "a dog ran to the old barn"),
    group("what?", "Zizzi serves cheap food. " * 4),
    group("the cat sat on the mat", "food", "the cat sat on the mat and on the mat"),
]


def alone(place: Path) -> list[tuple[float, ...]]:
    """What the library says of each conversation by itself, mixed by hand."""
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    found = []
    for asked in GROUPS:
        scores = []
        for response in asked.responses:
            turns = [("user", asked.prompt.messages[0].content), ("assistant", response.text)]
            if tokenizer.chat_template:
                text = "".join(f"<|{role}|>{content}" for role, content in turns) + "</s>"
            else:
                text = "\n".join(content for _, content in turns)
            with torch.no_grad():
                logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
            scores.append(0.7 * float(logits[0]) - 0.3 * float(logits[2]))
        found.append(tuple(scores))
    return found


@pytest.mark.parametrize("tokens", [1, 40, 10_000], ids=["one row a pass", "groups cut up", "one pass"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_scores_are_those_of_each_conversation_alone(folder: tuple[str, Path], tokens: int, packing: bool) -> None:
    name, place = folder
    settings = ClassifierScorer(path=str(place), outputs=WEIGHTS, batch_tokens=tokens, packing=packing)
    scorer = ClassifierReward(settings)
    scores = scorer.score(GROUPS)
    for given, want in zip(scores, alone(place), strict=True):
        assert given == pytest.approx(want, abs=2e-5)
    assert len({round(score or 0, 3) for given in scores for score in given}) == 6
    assert scorer.facts["padded_because"] == (PADDED.get(name) if packing else "packing is off")


def test_a_prompt_is_computed_once_for_its_responses(folder: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, place = folder
    if name in PADDED:
        pytest.skip("padded")
    streams: list[Packed] = []

    def watched(rows: Any) -> Packed:
        streams.append(pack(rows))
        return streams[-1]

    monkeypatch.setattr(reward_models.local.classifier, "pack", watched)
    ClassifierReward(ClassifierScorer(path=str(place))).score(GROUPS[:1])
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert len(streams) == 1
    prompt, answer = (
        len(tokenizer(text)["input_ids"])
        for text in (GROUPS[0].prompt.messages[0].content, "a dog ran to the old barn")
    )
    # Prompt, role and end marks aside: the shorter answer is a beginning of the longer, which is there once.
    assert len(streams[0].ids) <= prompt + answer + len("a dog") + 6


def test_a_row_that_sees_others_is_refused(folder: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, place = folder
    if name in PADDED:
        pytest.skip("padded")

    def leaking(rows: Any) -> Packed:
        packed = pack(rows)
        packed.branch.zero_()
        return packed

    scorer = ClassifierReward(ClassifierScorer(path=str(place)))
    monkeypatch.setattr(reward_models.local.classifier, "pack", leaking)
    with pytest.raises(RunError, match=r"together with others; set scorer\.packing to false"):
        scorer.score(GROUPS)


def test_conversations_without_tokens_have_no_score(folder: tuple[str, Path]) -> None:
    name, place = folder
    if name != "gpt2 without padding":
        pytest.skip("its template always writes something")
    scorer = ClassifierReward(ClassifierScorer(path=str(place)))
    # The separator of the two turns is a token, so only a prompt without turns has none.
    ((score,),) = scorer.score([Group(Prompt(()), (1,), (Response("", (1,), (), "stop"),))])
    assert score is None
