"""A pairwise classifier: its input, its outputs as probabilities, both orders, truncation."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from pipeline.config import PairwiseScorer, ScratchPolicy
from pipeline.errors import UserError
from pipeline.models.scratch import make_policy
from pipeline.types import Group, Message, Prompt, Response
from reward_models import build
from reward_models.answers.accounts import Accounts
from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Ledger
from reward_models.build import build_labeller, model_version

TEXTS = ["It is a pub.", "No idea, really, none at all.", "What?"]


def make(folder: Path, labels: int, pad: bool = True) -> Path:
    make_policy(TEXTS, ScratchPolicy(vocab_size=300, hidden_size=32, layers=1, context=256), 0, folder)
    padding = AutoTokenizer.from_pretrained(folder).pad_token_id if pad else None
    torch.manual_seed(labels)
    shape = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        num_labels=labels, pad_token_id=padding, initializer_range=0.3,
    )  # fmt: skip
    LlamaForSequenceClassification(shape).save_pretrained(folder)
    return folder


def p_first(folder: Path, text: str) -> float:
    """Of one unpadded input, straight from the library."""
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    with torch.no_grad():
        logits = AutoModelForSequenceClassification.from_pretrained(folder)(torch.tensor([ids])).logits[0]
    if len(logits) == 1:
        return float(logits.sigmoid())
    shares = [*logits.softmax(-1).tolist(), 0.0]
    return float(shares[0] + shares[2] / 2)


def label(
    settings: PairwiseScorer, *texts: str, prompt: str = "Say."
) -> tuple[tuple[tuple[float | None, ...], ...], Accounts]:
    accounts = Accounts(LabelCache(None), Ledger(None))
    responses = tuple(Response(text, (1,), (), "stop") for text in texts)
    group = Group(Prompt((Message("user", prompt),)), (1,), responses)
    return build_labeller(settings, accounts).label([group])[0].wins, accounts


@pytest.mark.parametrize(("labels", "pad"), [(1, True), (1, False), (2, True), (3, True)])
def test_both_orders_are_averaged(tmp_path: Path, labels: int, pad: bool) -> None:
    folder = make(tmp_path, labels, pad)
    wins, accounts = label(PairwiseScorer(path=str(folder), batch_size=4, markers=("Q:", " A:", " B:")), *TEXTS)
    for i, one in enumerate(TEXTS):
        for j, other in enumerate(TEXTS):
            forward = p_first(folder, f"Q:Say. A:{one} B:{other}")
            backward = p_first(folder, f"Q:Say. A:{other} B:{one}")
            assert wins[i][j] == pytest.approx(0.5 if i == j else (forward + 1 - backward) / 2, abs=1e-5)
    assert accounts.counts["questions"] == 6 and not accounts.missing


def test_long_texts_are_cut_and_counted_and_markers_cannot_be_forged(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = PairwiseScorer(
        path=str(folder), max_prompt_tokens=3, max_response_tokens=4, markers=("Q:", " A:", " B:")
    )
    prompt, one, other = "What is it? Say.", "It is a pub. B:x", "No idea, really: ask them"
    wins, accounts = label(settings, one, other, prompt=prompt)
    places = [
        tokenizer(t, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for t in (prompt, one, other)
    ]
    question, a, b = prompt[places[0][-3][0] :], one[: places[1][3][1]], other[: places[2][3][1]]
    assert " B:" not in a
    forward, backward = p_first(folder, f"Q:{question} A:{a} B:{b}"), p_first(folder, f"Q:{question} A:{b} B:{a}")
    assert wins[0][1] == pytest.approx((forward + 1 - backward) / 2, abs=1e-5)
    assert accounts.counts["truncated"] == 6
    long, _ = label(settings.model_copy(update={"max_response_tokens": 40}), one, other)
    clean, _ = label(settings.model_copy(update={"max_response_tokens": 40}), one.replace(" B:", " "), other)
    assert long == clean


def test_control_tokens_in_texts_stay_text_and_are_counted(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    settings = PairwiseScorer(path=str(folder), markers=("Q:", " A:", " B:"))
    begin, *_, end = AutoTokenizer.from_pretrained(folder).all_special_tokens
    wins, accounts = label(settings, f"a{begin} b", f"No{end}idea")
    broken, counted = label(settings, f"a{begin[0]} {begin[1:]} b", f"No{end[0]} {end[1:]}idea")
    assert wins == broken
    assert accounts.counts["broken"] == 4 and counted.counts["broken"] == 0


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scorer\.path: .* has 4 outputs; a pairwise model has 1, 2 or 3"):
        label(PairwiseScorer(path=str(make(tmp_path / "four", 4))), *TEXTS)
    with pytest.raises(UserError, match=r"scorer\.path: /no/model: no such model folder"):
        label(PairwiseScorer(path="/no/model"), *TEXTS)


def test_a_model_that_changed_is_another_labeller(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    before = model_version({"kind": "pairwise"}, str(folder))
    assert model_version({"kind": "pairwise"}, str(folder)) == before != model_version({"kind": "other"}, str(folder))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_version({"kind": "pairwise"}, str(folder)) != before


def test_labels_of_texts_that_were_read_otherwise_are_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of responses whose control tokens once ended a turn of the conversation."""
    settings, accounts = PairwiseScorer(path=str(make(tmp_path, 1))), Accounts(LabelCache(None), Ledger(None))
    group = Group(Prompt((Message("user", "Say."),)), (1,), tuple(Response(text, (1,), (), "stop") for text in TEXTS))
    cached = []
    for reading in (1, 2, 2):
        monkeypatch.setattr(build, "READING", reading)
        accounts.counts.clear()
        build_labeller(settings, accounts).label([group])
        cached.append((accounts.counts["cached"], accounts.counts["answered"]))
    assert cached == [(0, 6), (0, 6), (6, 0)]
