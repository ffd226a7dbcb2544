"""Tiny random models of real architectures: exact log-probs, and every weight and setting in what is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from pipeline.config import ChatSettings, TransformersSampler
from pipeline.errors import UserError
from pipeline.models.architectures import attention_cap
from pipeline.models.attention.shared_prompts import why_not_shared
from pipeline.models.chat import load_chat
from pipeline.models.policy import load_policy, save_policy
from pipeline.sampling.transformers_engine import TransformersEngine
from tests.support.tiny_families import GEMMA, WORDS, save_family
from tests.support.tiny_model import save_tiny_model


def gemma_2(**others: Any) -> Any:
    return hf.Gemma2Config(**{**GEMMA, "attn_logit_softcapping": 2.0, **others})


@torch.no_grad()
def logps(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    return found


@pytest.mark.parametrize("kinds", [{}, {"layer_types": ["full_attention"] * 2}])
def test_an_attention_cap_is_computed(kinds: dict[str, Any], tmp_path: Path) -> None:
    folder = save_family(gemma_2(**kinds), tmp_path)
    ids = torch.randint(7, WORDS, (1, 20), generator=torch.Generator().manual_seed(0))
    capped = logps(hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval(), ids)
    uncapped = logps(hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval(), ids)
    assert float((capped - uncapped).abs().max()) > 0.1
    model = load_policy(str(folder))
    assert torch.allclose(logps(model, ids), capped, atol=1e-5)
    assert why_not_shared(model) is None
    assert torch.allclose(logps(model, ids), capped, atol=1e-5), "the trial of shared prompts changed the attention"
    chat = load_chat(str(folder), ChatSettings())
    scores = TransformersEngine(str(folder), chat, TransformersSampler()).score(ids.tolist())
    assert scores[0] == pytest.approx(capped[0, :-1].gather(1, ids[0, 1:, None])[:, 0].tolist(), abs=1e-5)


def test_a_cap_on_logits_alone_is_no_attention_cap() -> None:
    assert attention_cap(gemma_2())
    assert not attention_cap(gemma_2(attn_logit_softcapping=None))


def test_settings_for_sampling_that_transformers_refuses_to_save_are_saved_unchanged(tmp_path: Path) -> None:
    start = save_tiny_model(tmp_path / "start")
    text = json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 6]})
    (start / "generation_config.json").write_text(text)
    save_policy(
        load_policy(str(start)),
        tmp_path / "new",
        tokenizer_source=str(start),
        chat=load_chat(str(start), ChatSettings()),
    )
    assert (tmp_path / "new" / "generation_config.json").read_text() == text


def test_a_config_that_cannot_be_saved_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, folder: Any) -> None:
        raise ValueError("fix these issues to save the configuration")

    start = save_tiny_model(tmp_path)
    monkeypatch.setattr(hf.LlamaConfig, "save_pretrained", broken)
    with pytest.raises(UserError, match="cannot be saved after training: fix these issues"):
        load_policy(str(start))


def test_weights_that_the_config_does_not_know_are_refused(tmp_path: Path) -> None:
    start = save_tiny_model(tmp_path)
    settings = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"hold 9 tensors that the model of its config.json does not have"):
        load_policy(str(start))
