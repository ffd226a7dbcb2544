"""Policies on disk: what is saved is what was in memory, and comes back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from pipeline.config import ChatSettings as ChatSettings
from pipeline.config import Lora
from pipeline.errors import UserError
from pipeline.models.chat import Chat, load_chat
from pipeline.models.handshake import read_probe
from pipeline.models.loading.companions import copy_companions
from pipeline.models.policy import load_policy, save_policy
from pipeline.models.weights.average import average_policies
from pipeline.models.weights.lora import add_adapter
from pipeline.training.reference import reference_logps
from tests.support.tiny_families import FAMILIES, save_family
from tests.support.tiny_model import reference_scores, save_tiny_model, tiny_tokenizer
from tests.support.tiny_training import random_pairs


def chat(folder: Path) -> Chat:
    return load_chat(str(folder), ChatSettings())


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("origin"))


@pytest.mark.parametrize("tied", [False, True])
def test_a_changed_policy_comes_back_as_it_was(tied: bool, tmp_path: Path) -> None:
    start = save_tiny_model(tmp_path / "start", tied=tied)
    model = load_policy(str(start))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_policy(model, tmp_path / "new", tokenizer_source=str(start), chat=chat(start))
    again = load_policy(str(tmp_path / "new"))
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    assert again.dtype == torch.float32
    assert not again.training
    assert not [file for file in (tmp_path / "new").iterdir() if file.suffix in (".bin", ".pt", ".pkl")]


def test_tokenizer_and_template_go_along_unchanged(origin: Path, tmp_path: Path) -> None:
    save_policy(load_policy(str(origin)), tmp_path, tokenizer_source=str(origin), chat=chat(origin))
    assert (tmp_path / "tokenizer.json").read_bytes() == (origin / "tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tiny_tokenizer().chat_template
    assert chat(tmp_path).template_hash == chat(origin).template_hash


def test_all_files_besides_the_weights_go_along_and_no_others(tmp_path: Path) -> None:
    start, new = save_tiny_model(tmp_path / "start"), tmp_path / "new"
    (start / "additional_chat_templates").mkdir()
    theirs = {
        *(
            "tokenizer.model",
            "qwen.tiktoken",
            "added_tokens.json",
            "special_tokens_map.json",
            "vocab.bpe",
            "vocab.json",
        ),
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.json"),
        *("additional_chat_templates/tools.jinja", "tokenization_own.py", "modeling_own.py", "generation_config.json"),
    }
    for name in (*theirs, "steps.jsonl", "manifest.json", "README.md", "pytorch_model.bin", "consolidated.safetensors"):
        (start / name).write_text("{}" if name.endswith(".json") else name)
    copy_companions(str(start), new)
    copied = {str(file.relative_to(new)) for file in new.rglob("*") if file.is_file()}
    assert copied == {*theirs, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert all((new / name).read_bytes() == (start / name).read_bytes() for name in copied)


def test_the_class_is_named_as_its_authors_name_it(tmp_path: Path) -> None:
    start = save_family(FAMILIES["phi 3.5 moe"](), tmp_path / "start")
    settings = json.loads((start / "config.json").read_text())
    for theirs, kept in ((["PhiMoEForCausalLM"], True), (["PhimoeForSequenceClassification"], False)):
        (start / "config.json").write_text(json.dumps({**settings, "architectures": theirs}))
        new = tmp_path / theirs[0]
        save_policy(load_policy(str(start)), new, tokenizer_source=str(start), chat=chat(start))
        named = json.loads((new / "config.json").read_text())["architectures"]
        assert named == (theirs if kept else ["PhimoeForCausalLM"])


def test_the_probe_holds_the_log_probabilities_of_the_weights_in_memory(origin: Path, tmp_path: Path) -> None:
    save_policy(load_policy(str(origin)), tmp_path, tokenizer_source=str(origin), chat=chat(origin))
    probe = read_probe(tmp_path)
    assert probe.dtype == "float32"
    expected = reference_scores(tmp_path, [list(ids) for ids in probe.sequences])
    for ours, theirs in zip(probe.logprobs, expected, strict=True):
        assert list(ours) == pytest.approx(theirs, abs=1e-5)
    special = chat(origin).special_ids
    assert not any(token in special or token >= len(tiny_tokenizer()) for ids in probe.sequences for token in ids)


def test_an_adapter_is_merged_when_saved(origin: Path, tmp_path: Path) -> None:
    model = add_adapter(load_policy(str(origin)), Lora(rank=2), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    pairs = random_pairs(3)
    before = reference_logps(model, pairs)
    save_policy(model, tmp_path, tokenizer_source=str(origin), chat=chat(origin))
    merged = load_policy(str(tmp_path))
    assert not any("lora" in name for name in merged.state_dict())
    for (chosen, _), (expected, _) in zip(reference_logps(merged, pairs), before, strict=True):
        assert list(chosen) == pytest.approx(list(expected), abs=1e-4)
    assert before != reference_logps(load_policy(str(origin)), pairs)


def test_a_new_adapter_changes_nothing_and_alone_is_trained(origin: Path) -> None:
    pairs = random_pairs(3)
    plain = load_policy(str(origin))
    expected = reference_logps(plain, pairs)
    model = add_adapter(plain, Lora(rank=2, target_modules=("q_proj",)), seed=0)
    assert reference_logps(model, pairs) == expected
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4
    assert all("q_proj.lora_" in name for name in trained)


def test_an_adapter_is_a_function_of_its_seed(origin: Path) -> None:
    first, again, other = (add_adapter(load_policy(str(origin)), Lora(rank=2), seed=seed) for seed in (1, 1, 2))
    names = [name for name in first.state_dict() if "lora_A" in name]
    assert all(torch.equal(first.state_dict()[name], again.state_dict()[name]) for name in names)
    assert not any(torch.equal(first.state_dict()[name], other.state_dict()[name]) for name in names)


def test_target_modules_that_the_model_lacks_are_refused(origin: Path) -> None:
    with pytest.raises(UserError, match=r"training\.lora\.target_modules: .*c_attn"):
        add_adapter(load_policy(str(origin)), Lora(target_modules=("c_attn",)), seed=0)


def test_dropout_of_the_model_is_switched_off(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.5))
    model.save_pretrained(tmp_path)
    loaded = load_policy(str(tmp_path)).train()
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded(ids).logits, loaded.eval()(ids).logits)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("folder", "no such model folder"),
        ("config.json", "no config.json"),
        ("model.safetensors", r"no \*\.safetensors"),
    ],
)
def test_an_incomplete_model_folder_is_named(missing: str, message: str, origin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if missing != "folder":
        shutil.copytree(origin, folder)
        (folder / missing).unlink()
    with pytest.raises(UserError, match=f"{folder}: {message}"):
        load_policy(str(folder))


def test_a_model_that_cannot_be_loaded_is_named(origin: Path, tmp_path: Path) -> None:
    shutil.copytree(origin, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(UserError, match=f"{tmp_path / 'model'}: cannot load this model"):
        load_policy(str(tmp_path / "model"))


def test_damaged_weights_are_named(origin: Path, tmp_path: Path) -> None:
    shutil.copytree(origin, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match=f"{tmp_path / 'model'}: cannot load this model"):
        load_policy(str(tmp_path / "model"))


def test_the_average_is_taken_tensor_by_tensor_over_shards(tmp_path: Path) -> None:
    old, new = save_tiny_model(tmp_path / "old", seed=0), save_tiny_model(tmp_path / "new", seed=1)
    load_policy(str(new)).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    shutil.copy(new / "tokenizer.json", tmp_path / "sharded")
    (tmp_path / "sharded" / "probe.json").write_text("{}")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    average_policies(old, tmp_path / "sharded", 0.75, tmp_path / "out")
    a, b, mean = (load_policy(str(folder)).state_dict() for folder in (old, new, tmp_path / "out"))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.75 * a[name] + 0.25 * b[name])
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not (tmp_path / "out" / "probe.json").exists()


def test_policies_of_different_shape_are_not_averaged(tmp_path: Path) -> None:
    old, new = save_tiny_model(tmp_path / "old"), save_tiny_model(tmp_path / "new")
    tensors = load_file(old / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"old: model\.norm\.weight is \(3,\), in .*new \(64,\)"):
        average_policies(old, new, 0.5, tmp_path / "out")
    del tensors["model.norm.weight"]
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"old: has no tensor model\.norm\.weight"):
        average_policies(old, new, 0.5, tmp_path / "out")


def test_weights_that_lack_a_tensor_are_refused(origin: Path, tmp_path: Path) -> None:
    shutil.copytree(origin, tmp_path / "model")
    tensors = load_file(origin / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the weights lack 1 tensor of the model .*:\n  model\.norm\.weight"):
        load_policy(str(tmp_path / "model"))
