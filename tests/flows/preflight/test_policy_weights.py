"""Adapters, bits and engines that do not fit each other are refused in words, before anything is loaded."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from flows.__main__ import main
from flows.preflight.policy_weights import require_quick_patterns
from pipeline.config import Lora
from pipeline.errors import UserError
from tests.support.small_config import write_small_config
from tests.support.tiny_adapter import save_tiny_adapter
from tests.support.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    base = save_tiny_model(folder / "base")
    save_tiny_adapter(folder / "adapter", base, Lora(rank=4))
    other = save_tiny_adapter(folder / "other", base, Lora(rank=4), named="meta-llama/Llama-3-8B")
    # The base's name, and the shapes of another.
    for name, named in {"shapes": str(base), "bias": str(base), "pissa": str(base), "ia3": str(base)}.items():
        save_tiny_adapter(folder / name, base, Lora(rank=4), named=named)
    wide = save_tiny_model(folder / "wide")
    settings = LlamaConfig.from_pretrained(wide)
    settings.hidden_size, settings.head_dim = 96, 48
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(settings).save_pretrained(wide)
    change(folder / "shapes" / "adapter_config.json", base_model_name_or_path=str(wide))
    change(folder / "bias" / "adapter_config.json", bias="all")
    change(folder / "pissa" / "adapter_config.json", init_lora_weights="pissa")
    change(folder / "ia3" / "adapter_config.json", layer_replication=[[0, 1]])
    assert other.is_dir()
    empty = save_tiny_model(folder / "empty")
    settings = LlamaConfig.from_pretrained(empty)
    settings.num_hidden_layers = 0
    LlamaForCausalLM(settings).save_pretrained(empty)
    for method in ("awq", "mxfp4", "fp8"):
        change(save_tiny_model(folder / method) / "config.json", quantization_config={"quant_method": method})
    save_tiny_adapter(folder / "dora", base, Lora(rank=4, dora=True))
    save_tiny_adapter(folder / "alike", base, Lora(rank=4), named="/elsewhere/base")
    few = save_tiny_adapter(folder / "layers", base, Lora(rank=4))
    change(few / "adapter_config.json", target_modules=["q_proj", "v_proj"])
    return folder


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path, *settings: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["prefloop", "check", str(file), *settings])
    for name in ("pipeline.models.policy.load_policy", "pipeline.models.policy.load_for_scoring"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    return (code if isinstance(code, int) else int(code is not None)), capsys.readouterr().err


LORA = "training.lora={}"
BAD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "another base by its name": (
        (LORA, "policy.adapter={}/other"),
        ("policy.adapter", "'meta-llama/Llama-3-8B'", "allowed are adapters of that model"),
    ),
    "another base by its shapes": (
        (LORA, "policy.path={}/wide", "policy.adapter={}/shapes"),
        ("policy.adapter", "is 64 x 4", "of policy.path", "is 96 x 128", "allowed"),
    ),
    "biases": ((LORA, "policy.adapter={}/bias"), ("policy.adapter", "bias: 'all'; allowed: none")),
    "a changed base": ((LORA, "policy.adapter={}/pissa"), ("init_lora_weights: 'pissa'; allowed: True, False",)),
    "other computations": ((LORA, "policy.adapter={}/ia3"), ("layer_replication: [[0, 1]]: not computed",)),
    "no adapter": ((LORA, "policy.adapter={}/base"), ("policy.adapter", "adapter_config.json: no adapter here")),
    "no folder": ((LORA, "policy.adapter={}/none"), ("policy.adapter", "none: no such folder")),
    "another rank": (
        ("training.lora={rank: 8}", "policy.adapter={}/adapter"),
        ("training.lora.rank: 8", "has 4; allowed: 4, or nothing"),
    ),
    "an adapter without training it": (
        ("policy.adapter={}/adapter",),
        ("training.lora: null, but policy.adapter", "allowed with it: a section training.lora"),
    ),
    "an adapter that is merged": (
        ("training.lora={lifetime: round}", "policy.adapter={}/adapter"),
        ("training.lora.lifetime: round", "allowed"),
    ),
    "full training of quantised weights": (
        ("policy.quantisation={bits: 4}",),
        ("policy.quantisation.bits: 4", "full training (training.lora: null)", "allowed: a section training.lora"),
    ),
    "merging into quantised weights": (
        ("training.lora={lifetime: round}", "policy.quantisation={bits: 8}"),
        ("training.lora.lifetime: round", "8 bits", "allowed with policy.quantisation: run"),
    ),
    "nothing to quantise": (
        (LORA, "policy.quantisation={bits: 4}", "policy.path={}/empty"),
        ("policy.quantisation", "no linear layers to quantise but its output head; allowed: null"),
    ),
    "a file that is quantised": (
        (LORA, "policy.path={}/awq"),
        ("policy.path", "quantised weights (awq)", "allowed are the model's own weights", "was made from"),
    ),
    "a file in MXFP4": (
        (LORA, "policy.path={}/mxfp4"),
        ("quantised weights (mxfp4)", "a copy in 16 bits", "Mxfp4Config(dequantize=True)).save_pretrained(FOLDER)"),
    ),
    "a file in 8-bit floats": (
        ("policy.path={}/fp8",),
        ("quantised weights (fp8)", "a copy in 16 bits", "FineGrainedFP8Config(dequantize=True)"),
    ),
    "DoRA for a server that is running": (
        ("training.lora={dora: true}", "sampler={kind: server, base_url: http://127.0.0.1:9/v1}"),
        ("sampler.base_url: http://127.0.0.1:9/v1: vLLM serves no DoRA", "allowed are LoRA or rsLoRA", "base_url=null"),
    ),
    "modules trained whole for a server that is running": (
        ("training.lora={modules_to_save: [norm]}", "sampler={kind: server, base_url: http://127.0.0.1:9/v1}"),
        ("sampler.base_url", "vLLM serves no modules that were trained whole (modules_to_save)", "allowed"),
    ),
    "somebody's DoRA for a server that is running": (
        (LORA, "policy.adapter={}/dora", "sampler={kind: server, base_url: http://127.0.0.1:9/v1}"),
        ("sampler.base_url", "vLLM serves no DoRA", "allowed"),
    ),
    "another base whose name ends alike": (
        (LORA, "policy.adapter={}/alike"),
        ("policy.adapter", "an adapter of '/elsewhere/base'", "allowed are adapters of that model"),
    ),
    "the same name of another owner": (
        (LORA, "policy.path=owner/llama-8b", "policy.adapter={}/other"),
        ("policy.adapter", "'meta-llama/Llama-3-8B'", "'owner/llama-8b'", "allowed"),
    ),
    "other layers": (
        (LORA, "policy.adapter={}/layers"),
        ("policy.adapter", "tensors are missing, unknown or of another shape", "allowed are those", "down_proj"),
    ),
    "a dropout that the adapter has not": (
        ("training.lora={dropout: 0.1}", "policy.adapter={}/adapter"),
        ("training.lora.dropout: 0.1", "has 0.0; allowed: 0.0, or nothing"),
    ),
    "targets that the adapter has not": (
        ("training.lora={target_modules: [q_proj, v_proj]}", "policy.adapter={}/adapter"),
        ("training.lora.target_modules: ['q_proj', 'v_proj']", "has ['down_proj', 'gate_proj'", "or nothing"),
    ),
    "a pattern that the adapter has not": (
        ("training.lora={target_modules: '.*q_proj'}", "policy.adapter={}/adapter"),
        ("training.lora.target_modules: .*q_proj, but the adapter", "or nothing"),
    ),
    "5 bits": ((LORA, "policy.quantisation={bits: 5}"), ("policy.quantisation.bits", "5")),
    "a mean of adapters": (
        (LORA, "training.reference=ema"),
        ("reference: ema", "allowed with lora.lifetime run: fixed, previous, every_n"),
    ),
    "state of an adapter that goes": (
        ("training.lora={lifetime: round}", "training.optimiser_state=carried"),
        ("optimiser_state: carried", "allowed: fresh, or lora.lifetime run"),
    ),
    "no pattern": (("training.lora={target_modules: '(q_proj'}",), ("target_modules", "not a regular expression")),
    "16-bit weights in float32 passes": (
        ("training.weights=bfloat16",), ("dtype: float32, but weights of bfloat16", "allowed: bfloat16"),
    ),
    "16-bit weights of an adapter": (
        (LORA, "training.weights=bfloat16", "training.dtype=bfloat16"), ("weights: bfloat16", "allowed: float32"),
    ),
    "a 16-bit reference of float32 passes": (
        ("policy.dtype=bfloat16",), ("training.dtype: float32, but policy.dtype: bfloat16", "allowed"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_with_field_value_and_what_is_allowed(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    settings, told = BAD[case]
    file = write_small_config(tmp_path, places / "base")
    given = [one.replace("{}/", f"{places}/") for one in settings]
    code, error = refused(monkeypatch, capsys, file, *given)
    assert code == 2 and "Traceback" not in error
    for part in told:
        assert part in error, error


def test_quantisation_without_its_library(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name))
    file = write_small_config(tmp_path, places / "base")
    code, error = refused(monkeypatch, capsys, file, LORA, "policy.quantisation={bits: 4}")
    assert code == 2 and "policy.quantisation: needs bitsandbytes" in error and "prefloop[low-bit]" in error


@pytest.mark.parametrize("processes", ["MULTI_CPU", "FSDP"])
def test_processes_that_cannot_share_such_weights(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], processes: str
) -> None:
    plain = f"distributed_type: {processes}\nnum_processes: 2\nuse_cpu: true\nfsdp_config: {{fsdp_version: 2}}\n"
    (tmp_path / "accelerate.yaml").write_text(plain)
    file = write_small_config(tmp_path, places / "base", f"accelerate: {tmp_path / 'accelerate.yaml'}")
    settings = ("training.weights=bfloat16", "training.dtype=bfloat16")
    code, error = refused(monkeypatch, capsys, file, *settings)
    assert code == 2 and "training.weights: bfloat16 is for one process" in error and "asks for 2" in error
    if processes == "FSDP":
        code, error = refused(monkeypatch, capsys, file, LORA, "policy.quantisation={bits: 4}")
        assert code == 2 and "policy.quantisation.bits: 4" in error and "FSDP2 shards weights" in error


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("training.lora={dora: true}",), "vLLM serves no DoRA"),
        (("training.lora={modules_to_save: [lm_head]}",), "trained whole"),
        (("training.lora={target_modules: [q_proj, lm_head]}",), "the output head"),
        ((LORA,), None),
        (("training.lora={dora: true, lifetime: round}",), None),
        (("training.lora={dora: true}", "sampler.kind=transformers"), None),
    ],
)
def test_check_says_what_is_merged_for_sampling(
    places: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: tuple[str, ...],
    told: str | None,
) -> None:
    file = write_small_config(tmp_path, places / "base")
    monkeypatch.setattr(sys, "argv", ["prefloop", "check", str(file), *settings])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert ("merged into a temporary copy" in said) == (told is not None) and (told or "") in said


# The first two would take years; the last has 2³⁰ ways to fail.
ENDLESS = [
    ("target_modules", "(.*)*(.*)*(.*)*(.*)*(.*)*(.*)*(.*)*x!"),
    ("rank_pattern", {"q_proj": 4, "(([a-z_.0-9])+)+!": 4}),
    ("exclude_modules", "(.|.)" * 30 + "!"),
]


@pytest.mark.parametrize(("name", "value"), ENDLESS, ids=[name for name, _ in ENDLESS])
def test_an_expression_that_takes_years_to_match_is_refused_by_its_place(
    places: Path, tmp_path: Path, name: str, value: Any
) -> None:
    adapter = shutil.copytree(places / "adapter", tmp_path / "adapter")
    change(adapter / "adapter_config.json", **{name: value})
    with pytest.raises(UserError, match=rf"^policy\.adapter: .*json: {name}: '.*takes over 1 s .*allowed are expre"):
        require_quick_patterns(str(adapter), str(places / "base"), seconds=1.0)


def test_expressions_that_people_write_are_quick(places: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(places / "adapter", tmp_path / "adapter")
    usual = r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp)"
    change(adapter / "adapter_config.json", target_modules=usual, rank_pattern={r"layers\.\d+\.mlp": 2, "(?i)q": 2})
    require_quick_patterns(str(adapter), str(places / "base"))
