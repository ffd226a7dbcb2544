"""An engine is given each round's adapter under a new name, and a stale one is refused."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.workers.messages import Load, SamplerInit
from flows.workers.pool.sampler_pool import SamplerPool
from flows.workers.sampler_service import SamplerService
from pipeline import config
from pipeline.config import Lora, Quantisation, SamplingSettings
from pipeline.errors import RunError
from pipeline.models.handshake import read_probe
from pipeline.models.weights.weight_format import WeightFormat
from pipeline.sampling.sampler import SampleRequest
from pipeline.sampling.served_adapters import why_merged
from tests.support.tiny_adapter import save_tiny_adapter
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_sampler import write_true_probe

ASKED = [SampleRequest((9, 20, 33), seed) for seed in range(4)]


def vllm_engine(log: Path) -> SamplerPool:
    settings = config.VllmSampler.model_validate({"dtype": "float32", "retries": 0, "start_timeout": 400})
    return SamplerPool(settings, config.ChatSettings(), log)


def sampled(engine: SamplerPool) -> list[tuple[int, ...]]:
    settings = SamplingSettings(n=2, max_tokens=6)
    return [response.token_ids for group in engine.sample(ASKED, settings) for response in group]


@pytest.mark.whole
def test_vllm_serves_the_base_then_each_rounds_adapter_and_refuses_a_stale_one(tmp_path: Path) -> None:
    base = write_true_probe(save_tiny_model(tmp_path / "base"))
    first, second = (save_tiny_adapter(tmp_path / f"round_{n}", base, Lora(rank=4), seed=n) for n in (1, 2))
    other = save_tiny_adapter(tmp_path / "rslora", base, Lora(rank=8, rslora=True), seed=3)
    stale = save_tiny_adapter(tmp_path / "stale", base, Lora(rank=4), seed=1)
    (stale / "probe.json").write_text((second / "probe.json").read_text())
    with vllm_engine(tmp_path / "log") as engine:
        assert engine.load(str(base)).how == "start"
        plain = sampled(engine)
        answers = []
        for adapter, how in ((first, "restart"), (second, "reload"), (other, "reload"), (first, "reload")):
            loaded = engine.load(str(adapter))
            assert (loaded.how, loaded.stale_reload, loaded.merged) == (how, None, None)
            assert loaded.max_difference < 1e-4, "the engine's own scores, against the trainer's"
            probe = read_probe(adapter)
            assert engine.score(probe.sequences)[0] == pytest.approx(probe.logprobs[0], abs=1e-4)
            answers.append(sampled(engine))
        assert answers[0] == answers[3] and len({str(one) for one in [plain, *answers]}) == 4
        assert engine.load(str(base)).how == "reload" and sampled(engine) == plain
        # The adapter of round 1 in the place of round 2's: what a reused name could serve.
        with pytest.raises(RunError, match="does not hold the policy's weights"):
            engine.load(str(stale))


@pytest.mark.whole
@pytest.mark.parametrize(
    ("lora", "reason"),
    [(Lora(rank=4, dora=True), "DoRA"), (Lora(rank=4, modules_to_save=("lm_head",)), "trained whole")],
    ids=["dora", "modules_to_save"],
)
def test_what_vllm_cannot_serve_is_merged_into_a_folder_that_goes_again(
    tmp_path: Path, lora: Lora, reason: str
) -> None:
    base = save_tiny_model(tmp_path / "base")
    adapters = [save_tiny_adapter(tmp_path / f"round_{n}", base, lora, seed=n) for n in (1, 2)]
    with vllm_engine(tmp_path / "log") as engine:
        for adapter in adapters:
            loaded = engine.load(str(adapter))
            assert loaded.merged is not None and reason in loaded.merged
            assert loaded.max_difference < 2e-3
            assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("held", "dtype"),
    [
        (WeightFormat(), "float32"),
        (WeightFormat("bfloat16", Quantisation()), "bfloat16"),
        (WeightFormat("bfloat16", Quantisation(bits=8)), "bfloat16"),
    ],
    ids=["float32", "4 bits", "8 bits"],
)
def test_an_engine_of_transformers_holds_the_base_as_the_trainer_does(
    tmp_path: Path, held: WeightFormat, dtype: str
) -> None:
    base = save_tiny_model(tmp_path / "base")
    lora = Lora(rank=4, dora=True, modules_to_save=("lm_head",))
    first, second = (save_tiny_adapter(tmp_path / f"round_{n}", base, lora, n, held) for n in (1, 2))
    service, loaded = transformers_service(held, tmp_path), []
    for adapter in (first, second):
        loaded.append(service.load(Load(str(adapter)), lambda progress: None))
    assert [one.dtype for one in loaded] == [dtype] * 2
    # The same weights, adapter and passes: only the batch's shape differs.
    assert all(one.max_difference < (1e-4 if dtype == "float32" else 0.1) for one in loaded)
    probe = json.loads((first / "probe.json").read_text())
    (second / "probe.json").write_text(json.dumps(probe))
    with pytest.raises(RunError, match="does not hold the policy's weights"):
        service.load(Load(str(second)), lambda progress: None)
    service.close()


def transformers_service(held: WeightFormat, folder: Path) -> SamplerService:
    settings: dict[str, Any] = config.TransformersSampler(dtype=held.dtype).model_dump()
    quantisation = None if held.quantisation is None else held.quantisation.model_dump()
    service = SamplerService()
    service.init(SamplerInit(settings, {}, quantisation=quantisation), lambda progress: None)
    return service


def test_what_is_merged_is_what_vllms_own_reader_refuses(tmp_path: Path) -> None:
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    base = save_tiny_model(tmp_path / "base")
    for name, lora in {
        "plain": Lora(rank=4),
        "rslora": Lora(rank=4, rslora=True),
        "dora": Lora(rank=4, dora=True),
        "whole": Lora(rank=4, modules_to_save=("lm_head",)),
        "wide": Lora(rank=513),
    }.items():
        adapter = save_tiny_adapter(tmp_path / name, base, lora)
        helper = PEFTHelper.from_local_dir(str(adapter), None)
        try:
            helper.validate_legal(LoRAConfig(max_lora_rank=512))
            refused = False
        except ValueError:
            refused = True
        assert refused == (why_merged(adapter) is not None), name


KILLED = """
import os, signal, sys
from pathlib import Path
from flows.workers.messages import Load, SamplerInit
from flows.workers.sampler_service import SamplerService

def engine_that_dies(settings, path, chat, options):
    print(sorted(file.name for file in Path(path).iterdir()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

adapter, evidence = sys.argv[1:]
service = SamplerService(engine_that_dies)
service.init(SamplerInit({"kind": "vllm"}, {}, evidence=evidence), print)
service.load(Load(adapter), print)
"""


def test_the_merged_copy_of_a_killed_engine_is_removed_at_the_next_start(tmp_path: Path) -> None:
    base, logs = save_tiny_model(tmp_path / "base"), tmp_path / "logs"
    adapter = save_tiny_adapter(tmp_path / "adapter", base, Lora(rank=4, dora=True))
    logs.mkdir()
    command = [sys.executable, "-c", KILLED, str(adapter), str(logs / "handshake.json")]
    for _ in range(2):
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL and "model.safetensors" in ended.stdout
        assert [path.name for path in logs.iterdir()] == ["merged"], "one name, so that copies do not pile up"
    SamplerService().init(
        SamplerInit({"kind": "vllm"}, {}, evidence=str(logs / "handshake.json")), lambda progress: None
    )
    assert [*logs.iterdir()] == []
