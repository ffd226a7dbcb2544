"""Stale weights are caught: by arithmetic on planted numbers, and with a real engine that really is stale."""

import random
from pathlib import Path

import pytest

from pipeline.config import SamplingSettings
from pipeline.errors import RunError
from pipeline.models.handshake import (
    TOLERANCES,
    Held,
    Probe,
    Tolerance,
    check_swap,
    check_weights,
    coarser_dtype,
    probe_sequences,
    read_probe,
    write_probe,
)
from pipeline.sampling.sampler import SampleRequest
from tests.support.tiny_model import reference_scores, save_tiny_model
from tests.support.tiny_sampler import vllm_process, write_true_probe

TRAINER = [[-1.0, -2.0], [-3.0]]


def test_probe_sequences_are_fixed_ordinary_and_reach_the_whole_vocabulary() -> None:
    sequences = probe_sequences(20, {0, 1, 2})
    assert sequences == probe_sequences(20, {2, 1, 0})
    assert sequences != probe_sequences(20, {0, 1, 2}, seed=1)
    assert [len(s) for s in sequences] == [16] * 8
    assert {i for s in sequences for i in s} == set(range(3, 20))


def test_largest_difference_is_returned() -> None:
    assert check_weights([[-1.0001, -2.0], [-2.9995]], TRAINER, "float32") == pytest.approx(0.0005)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_single_token_beyond_the_largest_difference_is_refused(dtype: str) -> None:
    off = TOLERANCES[dtype].largest * 1.01
    with pytest.raises(RunError, match=r"does not hold the policy's weights.*differ by up to"):
        check_weights([[-1.0 - off, -2.0], [-3.0]], TRAINER, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_small_differences_everywhere_are_refused_by_their_mean(dtype: str) -> None:
    off = TOLERANCES[dtype].mean
    assert off * 1.1 < TOLERANCES[dtype].largest
    check_weights([[-1.0 - off * 0.9, -2.0 - off * 0.9], [-3.0 + off * 0.9]], TRAINER, dtype)
    with pytest.raises(RunError, match="on average"):
        check_weights([[-1.0 - off * 1.1, -2.0 - off * 1.1], [-3.0 + off * 1.1]], TRAINER, dtype)


def test_message_holds_the_numbers() -> None:
    with pytest.raises(
        RunError, match=r"3 probe tokens differ by up to 1\.6 nats, 0\.533 on average \(allowed in float32"
    ):
        check_weights([[-2.6, -2.0], [-3.0]], TRAINER, "float32")


@pytest.mark.parametrize(
    "scores", [[[-1.0, float("nan")], [-3.0]], [[-1.0, -float("inf")], [-3.0]], [[-1.0], [-3.0]], []]
)
def test_missing_or_broken_scores_never_pass(scores: list[list[float]]) -> None:
    with pytest.raises(RunError, match="weight handshake"):
        check_weights(scores, TRAINER if scores else [], "bfloat16")


SEQUENCES = tuple(tuple(range(i, i + 16)) for i in range(8))
SIZE = 8 * 15


def rows(values: list[float]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(values[i : i + 15]) for i in range(0, SIZE, 15))


def noisy(values: list[float], seed: int, sd: float) -> list[float]:
    draw = random.Random(seed)
    return [value + draw.gauss(0, sd) for value in values]


OLD = noisy([-5.0] * SIZE, 1, 1.0)
STEP = noisy([0.0] * SIZE, 2, 0.05)  # 0.04 nats on average: under a quantised engine's 0.3
NEW = [o + s for o, s in zip(OLD, STEP, strict=True)]


def swap(before: list[float], after: list[float], new: list[float] = NEW) -> None:
    """``check_weights`` lets all of these through in a quantised engine; what ``check_swap`` says."""
    check_weights(rows(after), rows(new), "quantised")
    held = Held(Probe(SEQUENCES, rows(OLD), "float32"), rows(before))
    check_swap(held, rows(after), Probe(SEQUENCES, rows(new), "float32"))


def test_scores_that_did_not_move_are_stale_however_small_the_step() -> None:
    before = noisy(OLD, 3, 0.06)
    with pytest.raises(RunError, match=r"new weights.*moved by 0\.04.* and by 0 in the engine, 0% of the way"):
        swap(before, before)
    with pytest.raises(RunError, match="new weights"):
        swap(before, before, [o + s / 100 for o, s in zip(OLD, STEP, strict=True)])


def test_a_remainder_over_twice_the_noise_is_stale() -> None:
    before = noisy(OLD, 3, 0.002)
    # Three quarters of the tokens moved: an engine that took over all but one part of the weights.
    part = [b + (i % 4 > 0) * s for i, (b, s) in enumerate(zip(before, STEP, strict=True))]
    with pytest.raises(RunError, match=r"new weights.*68% of the way"):
        swap(before, part)


@pytest.mark.parametrize("seed", range(5))
def test_old_weights_whose_scores_jitter_are_stale_below_twice_the_noise(seed: int) -> None:
    before = noisy(OLD, seed + 1000, 0.04)
    with pytest.raises(RunError, match="new weights"):
        swap(before, noisy(before, seed + 2000, 0.001))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sd", [1e-6, 0.002, 0.04, 0.1])
def test_an_engine_that_did_move_passes_at_any_noise(seed: int, sd: float) -> None:
    swap(noisy(OLD, seed + 1000, sd), noisy(NEW, seed + 2000, sd))


def test_nothing_to_compare_passes() -> None:
    before = noisy(OLD, 3, 0.01)
    swap(before, before, OLD)
    other = Probe(tuple(s[::-1] for s in SEQUENCES), rows(NEW), "float32")
    check_swap(Held(Probe(SEQUENCES, rows(OLD), "float32"), rows(before)), rows(before), other)


def test_the_coarser_precision_decides() -> None:
    assert coarser_dtype("float32", "bfloat16") == coarser_dtype("bfloat16", "float16") == "bfloat16"


def test_quantised_engines_and_experts_have_limits_of_their_own() -> None:
    off = [[-1.1, -2.1], [-2.9]]
    with pytest.raises(RunError, match=r"0\.1 on average \(allowed in bfloat16: 1 and 0\.05, sampler\.handshake\)"):
        check_weights(off, TRAINER, "bfloat16")
    assert check_weights(off, TRAINER, "quantised") == check_weights(off, TRAINER, "experts") == pytest.approx(0.1)
    with pytest.raises(RunError, match=r"allowed in quantised: 0\.05 and 0\.2"):
        check_weights(off, TRAINER, "quantised", Tolerance(0.05, 0.2))


def test_probe_file_is_read_back(tmp_path: Path) -> None:
    write_probe(tmp_path, [[1, 2, 3]], [[-0.25, -1.5]], "float32")
    probe = read_probe(tmp_path)
    assert (probe.sequences, probe.logprobs, probe.dtype) == (((1, 2, 3),), ((-0.25, -1.5),), "float32")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"sequences": [[1]], "logprobs": [["x"]], "dtype": "float32"}'])
def test_missing_or_broken_probe_file(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "probe.json").write_text(content)
    with pytest.raises(RunError, match=r"probe\.json: (missing|not a weight probe)"):
        read_probe(tmp_path)


def test_probe_of_unknown_precision(tmp_path: Path) -> None:
    write_probe(tmp_path, [[1, 2]], [[-1.0]], "int4")
    with pytest.raises(RunError, match="one of float32, float16, bfloat16"):
        read_probe(tmp_path)


# ---------------------------------------------------------------- with a real engine


def assert_holds(process: object, folder: Path) -> None:
    """Scores and samples are those of ``folder``, on a prompt whose prefix the old weights have cached."""
    draw = random.Random(3)
    prompt = [draw.randrange(7, 290) for _ in range(280)]  # two full blocks of vLLM's prefix cache
    assert process.score([prompt])[0] == pytest.approx(reference_scores(folder, [prompt])[0], abs=1e-4)
    settings = SamplingSettings(n=2, max_tokens=8)
    (responses,) = process.sample([SampleRequest(tuple(prompt), 1)], settings)
    for response in responses:
        expected = reference_scores(folder, [[*prompt, *response.token_ids]])[0][len(prompt) - 1 :]
        assert response.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two untied policies, two tied ones, each with the probe of its own weights."""
    made = {}
    for name, seed, tied in (
        ("first", 0, False),
        ("second", 1, False),
        ("tied first", 0, True),
        ("tied second", 1, True),
    ):
        folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
        made[name] = write_true_probe(save_tiny_model(folder, seed=seed, tied=tied))
    return made


@pytest.mark.whole
def test_swaps_of_real_weights(policies: dict[str, Path], tmp_path: Path) -> None:
    with vllm_process(tmp_path / "log") as process:
        assert process.load(str(policies["first"])).how == "start"
        assert_holds(process, policies["first"])
        # Untied embeddings: the swap in place is exact, and nothing of the old weights' cache is read.
        swap = process.load(str(policies["second"]))
        assert (swap.how, swap.stale_reload) == ("reload", None)
        assert swap.max_difference < 1e-4
        assert_holds(process, policies["second"])
    with vllm_process(tmp_path / "log") as process:
        process.load(str(policies["tied first"]))
        assert_holds(process, policies["tied first"])
        # Tied embeddings: the engine reports success with a stale head; the handshake says so, and a new
        # engine is exact.
        swap = process.load(str(policies["tied second"]))
        assert swap.how == "restart"
        assert swap.stale_reload is not None and "differ by up to" in swap.stale_reload
        assert swap.max_difference < 1e-4
        assert_holds(process, policies["tied second"])


@pytest.mark.whole
def test_a_real_engine_takes_further_arguments(policies: dict[str, Path], tmp_path: Path) -> None:
    given = {"engine_args": {"max_num_batched_tokens": 512, "num_gpu_blocks_override": 5}}
    with vllm_process(tmp_path / "log", **given) as process:
        process.load(str(policies["first"]))
        assert_holds(process, policies["first"])
    log = (tmp_path / "log").read_text()
    assert "num_gpu_blocks_override=5" in log or "num_gpu_blocks=5" in log or "5 (num_gpu_blocks_override" in log
