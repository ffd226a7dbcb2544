"""A user's own `vllm serve`: each round's adapter is served, a stale one refused, its own model left at the end."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from flows.workers.messages import Load, SampleCall, Sampled, SamplerInit
from flows.workers.sampler_service import SamplerService
from pipeline import config
from pipeline.config import Lora
from pipeline.errors import RunError, UserError
from pipeline.models.handshake import read_probe
from pipeline.sampling.ports import free_port
from pipeline.sampling.sampler import SampleRequest
from tests.support.tiny_adapter import save_tiny_adapter
from tests.support.tiny_model import CONTEXT, save_tiny_model
from tests.support.tiny_sampler import write_true_probe

RUNTIME = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ENABLED = ("--enable-lora", "--max-loras", "1", "--max-lora-rank", "8", "--lora-target-modules", *LAYERS)
NEEDED = (
    "sampler.base_url",
    "--enable-lora",
    "--lora-target-modules",
    "--max-lora-rank",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
)


@contextmanager
def vllm_serve(model: Path, log: Path, flags: tuple[str, ...], environment: dict[str, str]) -> Iterator[str]:
    """vLLM's own server on 127.0.0.1, as a user starts it."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", "mine", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(CONTEXT), "--logprobs-mode", "raw_logprobs", "--generation-config", "vllm"]
    # See VllmEngine: seeded requests do not work with split prompts on CPU.
    command.append("--no-enable-chunked-prefill")
    variables = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **environment}
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.sampling.watchdog", str(os.getpid()), *command, *flags],
            stdout=out, stderr=out, env=variables, process_group=0,
        )  # fmt: skip
        try:
            with httpx.Client(trust_env=False) as client:
                while not _answers(client, f"{url}/health"):
                    assert process.poll() is None, log.read_text()[-3000:]
                    time.sleep(0.5)
            yield f"{url}/v1"
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def client_of(url: str, *, adapters: bool = True) -> Iterator[SamplerService]:
    settings = config.ServerSampler(base_url=url, dtype="float32").model_dump()
    service = SamplerService()
    service.init(SamplerInit(settings, {}, adapters=adapters), print)
    yield service
    service.close()


def sampled(service: SamplerService) -> list[tuple[int, ...]]:
    found: list[Sampled] = []
    asked = tuple(SampleRequest((9, 20, 33), seed) for seed in range(4))
    service.sample(SampleCall(asked, {"n": 2, "max_tokens": 6}), lambda one: found.append(one))  # type: ignore[arg-type]
    return [response.token_ids for one in found for response in one.responses]


@pytest.mark.whole
def test_each_rounds_adapter_is_served_and_a_stale_one_refused(tmp_path: Path) -> None:
    base = write_true_probe(save_tiny_model(tmp_path / "base"))
    first, second = (save_tiny_adapter(tmp_path / f"round_{n}", base, Lora(rank=4), seed=n) for n in (1, 2))
    other = save_tiny_adapter(tmp_path / "rslora", base, Lora(rank=8, rslora=True), seed=3)
    wide = save_tiny_adapter(tmp_path / "wide", base, Lora(rank=16), seed=4)
    stale = save_tiny_adapter(tmp_path / "stale", base, Lora(rank=4), seed=1)
    (stale / "probe.json").write_text((second / "probe.json").read_text())
    with vllm_serve(base, tmp_path / "log", ENABLED, RUNTIME) as url, httpx.Client(trust_env=False) as client:

        def served() -> list[str]:
            return [one["id"] for one in client.get(f"{url}/models").json()["data"]]

        with client_of(url) as service:
            assert service.load(Load(str(base)), print).how == "start"
            plain, answers, names = sampled(service), [], []
            for adapter in (first, second, other, first):
                loaded = service.load(Load(str(adapter)), print)
                assert (loaded.how, loaded.merged) == ("reload", None) and loaded.max_difference < 1e-4
                probe = read_probe(adapter)
                assert service._engine().score(probe.sequences)[0] == pytest.approx(probe.logprobs[0], abs=1e-4)
                answers.append(sampled(service))
                names.append(served())
            assert answers[0] == answers[3] and len({str(one) for one in [plain, *answers]}) == 4
            assert [len(one) for one in names] == [2] * 4 and len({one[1] for one in names}) == 4, (
                "one adapter, a new name"
            )
            with pytest.raises(UserError, match=r"not take the adapter in .*wide; allowed is .*--max-lora-rank.* 16 "):
                service.load(Load(str(wide)), print)
            service.load(Load(str(second)), print)
            assert service.load(Load(str(base)), print).how == "reload" and sampled(service) == plain
            assert served() == ["mine"]
            with pytest.raises(RunError, match="does not hold the policy's weights"):
                service.load(Load(str(stale)), print)
        assert served() == ["mine"], "what it was given is taken back"


@pytest.mark.whole
@pytest.mark.parametrize(
    ("flags", "environment"), [(ENABLED, {}), ((), RUNTIME), ((), {})], ids=["no updating", "no lora", "neither"]
)
def test_a_server_that_takes_no_adapters_is_refused_when_it_is_first_asked(
    tmp_path: Path, flags: tuple[str, ...], environment: dict[str, str]
) -> None:
    base = write_true_probe(save_tiny_model(tmp_path / "base"))
    with vllm_serve(base, tmp_path / "log", flags, environment) as url:
        with client_of(url) as service, pytest.raises(UserError, match="does not take adapters") as told:
            service.load(Load(str(base)), print)
        assert all(part in str(told.value) for part in NEEDED)
        with client_of(url, adapters=False) as plain:
            assert plain.load(Load(str(base)), print).how == "start", "without adapters, it is a server like any other"
