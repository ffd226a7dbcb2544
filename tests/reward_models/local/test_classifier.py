"""A sequence-classification reward: its own template, streams that change nothing, truncation at the left."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from pipeline.config import ClassifierScorer, ScratchPolicy
from pipeline.errors import UserError
from pipeline.models.scratch import make_policy
from pipeline.types import Group, Message, Prompt, Response
from reward_models.answers.accounts import Accounts
from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Ledger
from reward_models.build import build_labeller
from reward_models.local import conversations
from reward_models.local.classifier import ClassifierReward

TEXTS = ["What is it?", "It is a pub.", "No idea, really, none at all."]


def make_classifier(folder: Path, pad: bool, labels: int = 2) -> Path:
    make_policy(TEXTS, ScratchPolicy(vocab_size=300, hidden_size=32, layers=1, context=128), 0, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        num_labels=labels, pad_token_id=tokenizer.pad_token_id if pad else None,
    )  # fmt: skip
    LlamaForSequenceClassification(shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["with pad", "without pad"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("reward"), request.param)


def group(prompt: str, *texts: str) -> Group:
    responses = tuple(Response(text, (1,), (), "stop") for text in texts)
    return Group(Prompt((Message("user", prompt),)), (1,), responses)


def expected(folder: Path, prompt: str, text: str, output: int, last: int | None = None) -> float:
    """The logit of one unpadded conversation, straight from the library."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    ids = ids[-last:] if last else ids
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits[0, output])


@pytest.mark.parametrize("output", [0, 1])
def test_batched_scores_are_those_of_single_conversations(folder: Path, output: int) -> None:
    scorer = ClassifierReward(ClassifierScorer(path=str(folder), outputs={output: 1}, batch_tokens=50))
    groups = [group("What?", *TEXTS), group("A longer question, this one", "Yes", TEXTS[2] * 3)]
    scores = scorer.score(groups)
    for asked, given in zip(groups, scores, strict=True):
        prompt = asked.prompt.messages[0].content
        want = [expected(folder, prompt, response.text, output) for response in asked.responses]
        assert given == pytest.approx(want, abs=1e-5)
    assert scorer.facts == {"truncated_conversations": 0, "broken_conversations": 0, "padded_because": None}


def test_long_conversations_keep_their_end_and_are_counted(folder: Path) -> None:
    scorer = ClassifierReward(ClassifierScorer(path=str(folder), max_tokens=8))
    ((score,),) = scorer.score([group(TEXTS[2], TEXTS[2])])
    assert score == pytest.approx(expected(folder, TEXTS[2], TEXTS[2], 0, last=8), abs=1e-5)
    assert scorer.facts["truncated_conversations"] == 1


def test_mistakes_name_the_setting(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scorer.path: .*no such model folder"):
        ClassifierReward(ClassifierScorer(path=str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"scorer.outputs: 2"):
        ClassifierReward(ClassifierScorer(path=str(folder), outputs={0: 1, 2: 1}))


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"scorer.path: .*pickled: cannot be loaded: .*safetensors"):
        ClassifierReward(ClassifierScorer(path=str(pickled)))


def test_a_language_model_is_no_classifier(tmp_path: Path) -> None:
    make_policy(TEXTS, ScratchPolicy(vocab_size=300, hidden_size=32, layers=1, context=128), 0, tmp_path)
    with pytest.raises(UserError, match=r"lacks the weights score\.weight"):
        ClassifierReward(ClassifierScorer(path=str(tmp_path)))


def test_labels_of_conversations_with_another_day_are_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, dated = (make_classifier(tmp_path / name, pad=True, labels=1) for name in ("plain", "dated"))
    template = "{{ strftime_now('%d %b %Y') }}" + (dated / "chat_template.jinja").read_text()
    (dated / "chat_template.jinja").write_text(template)
    accounts, cached = Accounts(LabelCache(None), Ledger(None)), []
    for path, day in ((plain, "2024-07-26"), (dated, "2024-07-26"), (plain, "2025-01-01"), (dated, "2025-01-01")):
        monkeypatch.setattr(conversations, "DAY", day)
        accounts.counts.clear()
        build_labeller(ClassifierScorer(path=str(path)), accounts).label([group("What?", *TEXTS)])
        cached.append(accounts.counts["cached"])
    assert cached == [0, 0, 3, 0]
