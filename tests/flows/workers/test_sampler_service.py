"""The sampler's service: stale weights are replaced or refused, in any precision."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.workers.messages import Load, SamplerInit, Score
from flows.workers.sampler_service import SamplerService
from pipeline import config
from pipeline.errors import RunError
from pipeline.models.handshake import write_probe
from tests.support.tiny_model import save_tiny_model, tiny_tokenizer
from tests.support.tiny_sampler import write_true_probe


class FakeSampler:
    """Scores nothing right until it is a fresh engine."""

    dtype = "float32"

    def __init__(self, right: list[list[float]], ever_right: bool = True) -> None:
        self._right, self._ever_right = right, ever_right
        self._stale = False
        self.asked_fresh: list[bool] = []

    def load(self, path: str, fresh: bool = False) -> str:
        self.asked_fresh.append(fresh)
        self._stale = not fresh
        return "restart" if fresh else "reload"

    def score(self, sequences: Any) -> list[list[float]]:
        wrong = self._stale or (bool(self.asked_fresh) and not self._ever_right)
        return [[x - wrong for x in row] for row in self._right]


def service_with(sampler: FakeSampler, folder: Path) -> SamplerService:
    (folder / "tokenizer.json").write_text(tiny_tokenizer().backend_tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    write_probe(folder, [[7, 8, 9]], [[-1.0, -2.0]], "float32")
    service = SamplerService(lambda *args: sampler)  # type: ignore[arg-type]
    service.init(SamplerInit({"kind": "vllm"}, {}), lambda progress: None)
    return service


def load(service: SamplerService, folder: Path) -> tuple[str, bool]:
    loaded = service.load(Load(str(folder)), lambda progress: None)
    return loaded.how, loaded.stale_reload is not None


def test_a_stale_swap_is_followed_by_a_fresh_engine_and_not_tried_again(tmp_path: Path) -> None:
    sampler = FakeSampler([[-1.0, -2.0]])
    service = service_with(sampler, tmp_path)
    assert load(service, tmp_path) == ("start", False)
    assert load(service, tmp_path) == ("restart", True)
    assert load(service, tmp_path) == ("restart", False)
    assert sampler.asked_fresh == [False, True, True]


def test_a_fresh_engine_with_wrong_weights_ends_the_round(tmp_path: Path) -> None:
    service = service_with(FakeSampler([[-1.0, -2.0]], ever_right=False), tmp_path)
    load(service, tmp_path)
    with pytest.raises(RunError, match="does not hold the policy's weights"):
        load(service, tmp_path)


def test_a_failed_handshake_says_that_positions_may_be_scaled_otherwise(tmp_path: Path) -> None:
    service = service_with(FakeSampler([[-1.0, -2.0]], ever_right=False), tmp_path)
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 64, "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    settings = {"model_type": "llama", "head_dim": 32, "max_position_embeddings": 320, "rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    load(service, tmp_path)
    with pytest.raises(RunError, match=r"scaled otherwise beyond 64 tokens \(RoPE 'longrope'\): .* 64 tokens at most"):
        load(service, tmp_path)


class Bfloat16Sampler:
    """Holds one number: every log-probability. Swaps as it is told to."""

    dtype = "bfloat16"

    def __init__(self, how: str, moves: bool) -> None:
        self.how, self.moves, self.value = how, moves, -1.01
        self.asked_fresh: list[bool] = []

    def load(self, path: str, fresh: bool = False) -> str:
        self.asked_fresh.append(fresh)
        if self.moves or fresh:
            self.value -= 0.05
        return "restart" if fresh else self.how

    def score(self, sequences: Any) -> list[list[float]]:
        return [[self.value] * 2]


def two_policies(folder: Path, sampler: Bfloat16Sampler) -> SamplerService:
    """A service that holds ``folder``/old; the policy in ``folder``/new is 0.05 nats away, bfloat16 allows 0.15."""
    for name, value in (("old", -1.0), ("new", -1.05)):
        (folder / name).mkdir()
        service = service_with(sampler, folder / name)  # type: ignore[arg-type]
        write_probe(folder / name, [[7, 8, 9]], [[value] * 2], "float32")
    assert load(service, folder / "old") == ("start", False)
    return service


@pytest.mark.parametrize(("moves", "outcome"), [(True, ("reload", False)), (False, ("restart", True))])
def test_a_reload_in_bfloat16_must_move_as_the_policy_did(
    tmp_path: Path, moves: bool, outcome: tuple[str, bool]
) -> None:
    sampler = Bfloat16Sampler("reload", moves)
    service = two_policies(tmp_path, sampler)
    assert load(service, tmp_path / "new") == outcome
    assert sampler.value == pytest.approx(-1.06)
    assert sampler.asked_fresh == ([False] if moves else [False, True])


def test_a_user_s_server_that_still_holds_the_old_weights_is_refused(tmp_path: Path) -> None:
    service = two_policies(tmp_path, Bfloat16Sampler("unchanged", moves=False))
    for _ in range(2):  # asking again does not make it right
        with pytest.raises(RunError, match=r"server does not hold the weights of .*new \(or"):
            load(service, tmp_path / "new")
    load(service, tmp_path / "old")


def test_a_user_s_server_that_was_given_the_new_weights_passes(tmp_path: Path) -> None:
    service = two_policies(tmp_path, Bfloat16Sampler("unchanged", moves=True))
    assert load(service, tmp_path / "new") == ("unchanged", False)


def test_planted_weights_are_refused_by_a_real_engine(tmp_path: Path) -> None:
    true, planted = (save_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate(("true", "planted")))
    write_true_probe(true)
    write_true_probe(planted, weights=true)
    service = SamplerService()
    settings = config.TransformersSampler(dtype="float32")
    kept = tmp_path / "handshake.json"
    service.init(SamplerInit(settings.model_dump(), {}, evidence=str(kept)), lambda progress: None)
    assert load(service, true) == ("start", False) and not kept.exists()
    with pytest.raises(RunError, match=f"differ by up to .*both sides' log-probabilities are in {kept}"):
        load(service, planted)
    evidence = json.loads(kept.read_text())
    shapes = [[len(row) for row in evidence[side]] for side in ("sampler", "trainer")]
    assert shapes[0] == shapes[1] == [len(row) - 1 for row in evidence["sequences"]]
    service.close()


def test_sampling_before_a_policy_is_loaded() -> None:
    service = SamplerService()
    service.init(SamplerInit({"kind": "vllm"}, {}), lambda progress: None)
    with pytest.raises(RunError, match="before it loaded a policy"):
        service.score(Score(((1, 2),)), lambda progress: None)


def test_a_folder_without_a_probe_is_refused_before_an_engine_starts(tmp_path: Path) -> None:
    def build(*args: object) -> Any:
        raise AssertionError("an engine was started")

    service = SamplerService(build)
    service.init(SamplerInit(config.VllmSampler().model_dump(), {}), lambda progress: None)
    with pytest.raises(RunError, match=r"probe\.json: missing"):
        service.load(Load(str(tmp_path)), lambda progress: None)
