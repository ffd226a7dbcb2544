"""A policy from nothing: an ordinary model folder that loads, decodes what it encodes and repeats by seed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import ChatSettings, ScratchPolicy
from pipeline.models.chat import load_chat
from pipeline.models.scratch import make_policy
from pipeline.types import Message

TEXTS = ["name[Bluebell], food[Thai]", "Bluebell serves Thai food.", "Preise unter £20 – günstig"] * 5
SETTINGS = ScratchPolicy(vocab_size=300, hidden_size=64, layers=1, context=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scratch") / "policy"
    make_policy(TEXTS, SETTINGS, 5, place)
    return place


def test_tokenizer_has_at_most_the_vocabulary_and_loses_no_text(folder: Path) -> None:
    chat = load_chat(str(folder), ChatSettings())
    assert chat.vocab_size == 300
    for text in (*TEXTS, "unseen: ½ 漢字\n\ttab"):
        assert chat.decode(chat.response_ids([Message("user", "x")], text)) == text


def test_template_frames_turns_with_one_bos(folder: Path) -> None:
    chat = load_chat(str(folder), ChatSettings())
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = chat.prompt_ids([Message("system", "s"), Message("user", "Thai")])
    assert tokenizer.decode(ids) == "<bos><system>s<end><user>Thai<end><assistant>"
    assert chat.response_ids([Message("user", "Thai")], "food")[-1] == tokenizer.convert_tokens_to_ids("<end>")


def test_model_has_the_shape_asked_for(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = model.config
    assert (shape.model_type, shape.hidden_size, shape.num_hidden_layers, shape.vocab_size) == ("llama", 64, 1, 300)
    assert shape.num_attention_heads == 2 and shape.max_position_embeddings == 64
    assert model.generation_config.eos_token_id == load_chat(str(folder), ChatSettings()).end_id
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_tied_only_on_demand(tmp_path: Path, tied: bool) -> None:
    make_policy(TEXTS, SETTINGS.model_copy(update={"tied_embeddings": tied}), 5, tmp_path)
    assert ("lm_head.weight" not in load_file(tmp_path / "model.safetensors")) is tied


def test_weights_follow_the_seed_and_leave_the_callers_random_state(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    make_policy(TEXTS, SETTINGS, 5, tmp_path / "same")
    assert torch.rand(1) == expected
    make_policy(TEXTS, SETTINGS, 6, tmp_path / "other")
    weights, same, other = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "same", tmp_path / "other"))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not torch.equal(weights["lm_head.weight"], other["lm_head.weight"])
