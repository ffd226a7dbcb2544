"""Arguments for vLLM's engine that prefloop does not know: refused, passed on, and in the key where they matter."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.workers.sampler_service import further_rounding
from pipeline.config import ServerSampler, TransformersSampler, VllmSampler
from pipeline.config.sampling import SPEED_ARGS
from pipeline.errors import UserError
from pipeline.sampling.engine_args import OWNED, as_flags, formats_of, installed_args, is_quantised, require_engine_args
from pipeline.sampling.sampler import eager


def test_every_name_that_prefloop_sorts_is_one_of_the_installed_vllm() -> None:
    known = installed_args()
    assert len(known) > 200 and known["block_size"] == "int | None"
    assert set(OWNED) | SPEED_ARGS <= set(known) and not set(OWNED) & SPEED_ARGS


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            {"offload_grup_size": 2},
            r"offload_grup_size: 2: the installed vLLM has no such engine argument; near: offload_group_size",
        ),
        ({"xyz": 1}, r"xyz: 1: the installed vLLM has no such engine argument$"),
        ({"max_model_len": 100}, r"max_model_len: 100: prefloop sets this argument itself; set sampler\.context"),
        ({"tensor_parallel_size": 2}, r"tensor_parallel_size: 2: .* set sampler\.tensor_parallel_size"),
        ({"data_parallel_size": 2}, r"data_parallel_size: 2: .* set sampler\.engines"),
        ({"block_size": "big"}, r'block_size: "big": must be int or None'),
        ({"max_logprobs": True}, r"max_logprobs: true: must be int"),
        ({"enable_expert_parallel": 1}, r"enable_expert_parallel: 1: must be bool"),
    ],
)
def test_unknown_owned_and_ill_typed_arguments_are_refused(args: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^sampler\.engine_args\.{said}"):
        require_engine_args(args)


def test_arguments_that_vllm_knows_pass() -> None:
    require_engine_args({"max_logprobs": 2, "kv_cache_dtype": "fp8", "compilation_config": {"mode": 0}})


def test_only_arguments_that_change_results_are_in_the_key() -> None:
    plain = VllmSampler().identity()
    assert VllmSampler(engine_args={"max_num_batched_tokens": 4096}).identity() == plain
    assert VllmSampler(engine_args={"quantization": "fp8", "block_size": 32}).identity() == plain | {
        "engine_args": {"quantization": "fp8"}
    }
    assert "engine_args" in ServerSampler(engine_args={"kv_cache_dtype": "fp8"}).identity()


def test_cards_of_a_layer_are_in_the_key_and_numbers_of_engines_and_stages_are_not() -> None:
    plain = VllmSampler().identity()
    assert VllmSampler(engines=3, pipeline_parallel_size=2).identity() == plain
    assert VllmSampler(tensor_parallel_size=2).identity() == plain | {"tensor_parallel_size": 2}


def test_graphs_are_on_where_there_is_an_accelerator() -> None:
    assert not eager(None, accelerator=True) and eager(None, accelerator=False)
    assert eager(True, accelerator=True) and not eager(False, accelerator=False)


def test_a_server_gets_the_arguments_as_options() -> None:
    args: dict[str, Any] = {"kv_cache_dtype": "fp8", "enable_dbo": True, "async_scheduling": False, "block_size": None}
    assert as_flags(args) == ["--kv-cache-dtype", "fp8", "--enable-dbo", "--no-async-scheduling"]


def test_quantised_engines_and_experts_are_recognised(tmp_path: Path) -> None:
    def kinds(settings: Any, dtype: str = "bfloat16", **config: object) -> list[str]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return further_rounding(dtype, settings, tmp_path)

    assert kinds(VllmSampler()) == kinds(TransformersSampler()) == []
    assert kinds(VllmSampler(engine_args={"quantization": "fp8"})) == ["quantised"]
    assert kinds(ServerSampler(engine_args={"kv_cache_dtype": "fp8"})) == ["quantised"]
    assert kinds(VllmSampler(), quantization_config={"quant_method": "gptq"}) == ["quantised"]
    assert (
        kinds(VllmSampler(), num_local_experts=8) == kinds(VllmSampler(), text_config={"num_experts": 4}) == ["experts"]
    )
    assert kinds(VllmSampler(), "float32", num_local_experts=8) == []
    assert not is_quantised({"kv_cache_dtype": "auto"})


def test_of_a_folder_in_two_formats_vllm_reads_the_trainer_s(tmp_path: Path) -> None:
    assert formats_of(tmp_path) == {}
    (tmp_path / "params.json").touch()
    assert formats_of(tmp_path) == {"config_format": "hf", "load_format": "hf", "tokenizer_mode": "hf"}
    assert set(formats_of(tmp_path)) <= set(OWNED) & set(installed_args())
    (tmp_path / "params.json").rename(tmp_path / "consolidated-00001-of-1.safetensors")
    assert formats_of(tmp_path)["load_format"] == "hf"
