import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from flows.preflight.check import check_config, check_new
from pipeline.config.files import load_config
from tests.support.places import ROOT
from tests.support.small_config import write_small_config
from tests.support.suite_files import IFEVAL, write_rows
from tests.support.tiny_model import save_tiny_model

ONE_GOLD = "discriminator.gate={held_out: 0.25, comparisons: 1, error: 1}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    return write_small_config(
        tmp_path, model, "rounds: 2", "sampling: {max_tokens: 16}", "sampler: {kind: transformers}"
    )


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prefloop", "plan", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert call(monkeypatch, *arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_plan_names_parameters_memory_disk_and_the_time_at_given_rates(
    config: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(monkeypatch, capsys, config, "--rates", "sampling=10,labelling=100,training=20")
    weights = (model / "model.safetensors").stat().st_size
    assert plan["parameters"]["total"] * 4 == pytest.approx(weights, rel=0.05)
    training = plan["memory"]["training"]
    assert training["gradients"] == training["weights"] and training["optimiser"] == 2 * training["weights"]
    assert training["activations"] > 0 and training["engine"] > 0
    assert plan["needed"]["memory"] == max(sum(parts.values()) for parts in plan["memory"].values())
    # 6 prompts of 4 responses, and 2 held-out ones of 2.
    assert plan["round"]["tokens"]["sampling"] == 16 * (6 * 4 + 2 * 2)
    assert plan["seconds"]["sampling"] == 44.8 and plan["rates_from"] == "given"
    assert plan["seconds"]["scoring"] == pytest.approx(plan["round"]["tokens"]["scoring"] / 60)
    assert plan["fits"] and plan["disk"]["round"]["policy"] == 4 * plan["parameters"]["total"]


def test_a_round_that_asks_for_more_prompts_than_there_are_is_told_so(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "prompts_per_round: 7, but there are 6 prompts to train on: a round samples them all"
    assert planned(monkeypatch, capsys, config, "prompts_per_round=7")["notes"] == [said]
    assert call(monkeypatch, config, "prompts_per_round=7") == 0 and said in capsys.readouterr().out
    assert planned(monkeypatch, capsys, config, "prompts_per_round=6")["notes"] == []
    check_config([config], ["prompts_per_round=7"])
    assert said in capsys.readouterr().out
    check_new(load_config([config], ["prompts_per_round=7"]), config.parent / "run")
    assert said in capsys.readouterr().err


@pytest.mark.whole
def test_rates_are_measured_with_the_parts_of_the_run(
    config: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in model.glob("*.safetensors"):
        file.rename(file.with_suffix(".away"))
    try:
        plan = planned(monkeypatch, capsys, config, "training.lora={rank: 2}", "loss.preset=tdpo1", "--probe")
    finally:
        for file in model.glob("*.away"):
            file.rename(file.with_suffix(".safetensors"))
    assert plan["rates_from"] == "measured" and {"sampling", "labelling", "training"} <= plan["rates"].keys()
    assert all(rate > 0 for rate in plan["rates"].values()) and all(plan["seconds"].values())
    assert 0 < plan["parameters"]["trained"] < plan["parameters"]["total"] / 4


def test_processes_on_one_machine_are_planned_with_what_all_of_them_hold(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = ROOT / "configs/accelerate/ddp_cpu.yaml"
    plan = planned(monkeypatch, capsys, config, f"accelerate={launch}")
    training = plan["memory"]["training"]
    assert training["weights"] == training["gradients"] == 2 * 4 * plan["parameters"]["total"]
    scoring = plan["memory"]["reference, evaluation"]
    assert scoring["weights"] == 2 * 4 * plan["parameters"]["total"]
    assert training["processes"] == scoring["processes"] > plan["memory"]["sampling"]["processes"]
    line, learns = "discriminator: one of the training processes trains it", ("discriminator.budget=4", ONE_GOLD)
    for settings, told in ((learns, False), ((*learns, f"accelerate={launch}"), True)):
        call(monkeypatch, config, *settings)
        assert (line in capsys.readouterr().out) is told


def test_suites_are_planned_with_answers_judge_calls_and_seconds(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ifeval = write_rows(tmp_path / "ifeval.jsonl", IFEVAL)
    baseline = [{"instruction": f"the cat {n}", "output": "sat", "generator": "b"} for n in range(5)]
    judge = {"kind": "judge", "mode": "pairwise", "server": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}}
    suites = [
        {"kind": "ifeval", "file": str(ifeval), "max_tokens": 8, "every": 3},
        {"kind": "alpaca_eval", "file": str(write_rows(tmp_path / "b.jsonl", baseline)), "judge": judge, "limit": 3},
        {"kind": "lm_eval", "tasks": ["arc_easy"]},
    ]
    given = f"evaluation.suites={json.dumps(suites)}"
    plan = planned(monkeypatch, capsys, config, given, "--rates", "sampling=10,labelling=100,training=20")
    checked, compared, tasks = plan["suites"]
    assert (checked["rows"], checked["sampled"], checked["every"], checked["calls"]) == (len(IFEVAL), 32, 3, 0)
    assert checked["seconds"] == 3.2
    # Three questions, of which each is asked in both orders.
    assert (compared["rows"], compared["sampled"], compared["calls"]) == (3, 3 * 16, 6)
    assert compared["seconds"] == pytest.approx(4.8 + compared["tokens_labelled"] / 100)
    assert tasks["rows"] is None and tasks["seconds"] is None
    assert call(monkeypatch, config, given) == 0
    said = capsys.readouterr().out
    assert "suite: ifeval" in said and "judge calls" in said and "each 3" in said and "None" not in said


@pytest.mark.whole
def test_what_does_not_fit_ends_with_exit_code_1_and_says_what(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(monkeypatch, config, "sampling.n=1024", "rounds=1000", "training.lora={rank: 1}", "prompts_per_round=6",
                "evaluation.samples=100000000")  # fmt: skip
    said = capsys.readouterr().out
    assert code == 1
    assert "disk: " in said and "does not fit" in said.partition("disk: ")[2]
    assert "No rate is known" in said


def test_a_model_far_too_large_is_refused_without_being_made(
    config: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "large"
    large.mkdir()
    for file in model.glob("*.json"):
        (large / file.name).write_text(file.read_text())
    shape = json.loads((model / "config.json").read_text())
    shape |= {"hidden_size": 32_768, "intermediate_size": 131_072, "num_hidden_layers": 80, "head_dim": 128}
    shape |= {"num_attention_heads": 256, "num_key_value_heads": 256}
    (large / "config.json").write_text(json.dumps(shape))
    assert call(monkeypatch, config, f"policy.path={large}") == 1
    said = capsys.readouterr().out
    # 80 · (4 · 32,768² + 3 · 32,768 · 131,072 + 2 · 32,768) + 32,768 · (2 · 294 + 1), the vocabulary apart.
    assert "parameters: 1,374," in said and "too little memory to measure" in said
    assert "does not fit" in said.partition("memory: ")[2].splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rates", "sampling=0"], ["--rates", "sampling", "above 0"]),
        (["--rates", "speed=3"], ["--rates", "speed", "sampling, labelling, scoring, training"]),
        (["--rates", "training=nan"], ["--rates", "training", "nan"]),
        (["--rates", "/no/such/rates.yaml"], ["/no/such/rates.yaml", "cannot read"]),
        (["policy.path=/no/such/model"], ["policy.path", "/no/such/model"]),
        (["accelerate=/no/such/launch.yaml"], ["/no/such/launch.yaml"]),
        (["training.optimiser=adamw_offload"], ["training.optimiser", "adamw_offload", "adamw_8bit"]),
        (["loss.preset=mrpo"], ["training.references: 0", "2 references"]),
        (["chat.max_prompt_tokens=2"], ["chat.max_prompt_tokens"]),
    ],
)
def test_mistakes_end_with_exit_code_2(
    arguments: list[str],
    expected: list[str],
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, config, *arguments) == 2
    shown = capsys.readouterr()
    assert not shown.out and "Traceback" not in shown.err and len(shown.err.splitlines()) <= 10
    assert all(part in shown.err for part in expected), shown.err


def test_a_plan_without_prompts_says_why_none_is_left(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, config, "chat.max_prompt_tokens=1", "limits.long_for_policy=1") == 2
    assert "no prompt is left: 6 are longer, and the chat template refuses 0" in capsys.readouterr().err


def test_a_plan_says_how_rows_are_computed_why_and_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("rounds: 1", "sampling: {max_tokens: 16}", "sampler: {kind: transformers}")
    for name in "ab":
        (tmp_path / name).mkdir()
    llama = write_small_config(tmp_path / "a", save_tiny_model(tmp_path / "llama"), *settings)
    passes = planned(monkeypatch, capsys, llama)["passes"]
    assert (passes["kind"], passes["padded_because"]) == ("shared", None)
    # Prompts of P tokens with two responses of 16 each: P + 32 against 2 P + 32.
    prompts = passes["packed"] - passes["shared"]
    responses = passes["shared"] - prompts
    assert prompts > 0 and responses % 32 == 0 and passes["padded"] >= passes["packed"]
    states = {"model_type": "mamba", "architectures": ["MambaForCausalLM"], "vocab_size": 320, "hidden_size": 32}
    mamba = save_tiny_model(tmp_path / "mamba")
    for file in mamba.glob("*.safetensors"):
        file.unlink()
    (mamba / "config.json").write_text(json.dumps({**states, "num_hidden_layers": 2, "state_size": 4}))
    config = write_small_config(tmp_path / "b", mamba, *settings)
    found = planned(monkeypatch, capsys, config)
    reason = "MambaForCausalLM: layer 0 keeps a recurrent state (a state-space layer): MambaBlock"
    assert found["passes"] == {**passes, "kind": "padded", "padded_because": reason}
    assert not found["round"]["packing"]
    assert call(monkeypatch, config) == 0
    times = passes["padded"] / passes["shared"]
    assert (
        f"rows are padded: {reason}; {passes['padded']:,} tokens in a pass over the data, {times:.2f} times those"
        in (capsys.readouterr().out)
    )


def test_a_frozen_base_counts_as_it_is_held(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(monkeypatch, capsys, config, "training.lora={rank: 2}", "policy.dtype=bfloat16")
    trained, total = plan["parameters"]["trained"], plan["parameters"]["total"]
    assert plan["memory"]["training"]["weights"] == 2 * (total - trained) + 4 * trained
    assert plan["memory"]["training"]["gradients"] == 4 * trained
    assert plan["memory"]["reference, evaluation"]["weights"] == plan["memory"]["training"]["weights"]
