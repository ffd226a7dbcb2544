"""Every preset in every mode: what the stages supply is what the loss needs, and training moves the policy."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from flows.preflight.check import check_run
from flows.stages.context import Context
from flows.stages.data import held_out_prompts
from flows.stages.training.examples import round_examples
from pipeline.config import Composition, preset_names, resolve
from pipeline.config.loss.needs import needs_of
from pipeline.models.chat import load_chat
from pipeline.models.policy import load_policy
from pipeline.training.batches.examples import Example
from pipeline.training.reference import reference_logps
from pipeline.training.watch.alarms import read_alarms
from pipeline.types import Message
from tests.support.tiny_run import PAIRS, begin, make_job, open_context, supply, train

UNPAIRED = [name for name in preset_names() if needs_of(Composition.model_validate(resolve(name, {}))).accepts_unpaired]
CASES = [
    *((name, mode, "pairs") for name in preset_names() for mode in ("offline", "iterative")),
    *((name, "offline", "marked") for name in UNPAIRED),
    *((name, "offline", "groups") for name in ("dpo", "rpo_sqloo", "nca_list", "apa", "apa_token", "sppo")),
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("presets"))


@pytest.fixture(scope="module")
def begun(job: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Run folders that have begun, by mode and form of the data: what comes first does not depend on the loss."""
    found = {}
    for mode, form in sorted({(mode, form) for _, mode, form in CASES}):
        root = tmp_path_factory.mktemp(f"{mode}_{form}")
        context = open_context(job, root, mode, *data_of(job, mode, form))
        begin(context)
        if mode == "iterative":
            supply(context, 1)
            for name in ("pairs", "reference"):
                folder = context.run.stage(1, name).folder
                folder.rename(root / f"{name}_of_dpo")
        found[mode, form] = root
    return found


def data_of(job: Path, mode: str, form: str) -> list[str]:
    return [f"pairs.path={job / form}.jsonl"] if mode == "offline" else []


def settings_of(name: str, job: Path) -> list[str]:
    """What the preset needs of the config, or what lets it learn from the first step."""
    if name == "discopop":
        # At the published τ its slope at z = 0 has the wrong sign, as its authors remark.
        return ["loss.tau=1"]
    if name.startswith(("rpo", "ipo")):
        # The others' rate overshoots the target that a margin has here.
        return ["training.learning_rate=3e-4"]
    if name == "mrpo":
        return [f"training.references=[{job / 'model'}]"]
    if name in ("inpo", "egpo"):
        return ["training.references=[start]", "training.learning_rate=3e-4"]
    return [f"training.contrastive={{positive: {job / 'model'}, negative: {job / 'model'}}}"] * (name == "tis_dpo")


@pytest.mark.parametrize(
    ("name", "mode", "form"),
    [pytest.param(*case, marks=[pytest.mark.whole] * (case[1] == "iterative")) for case in CASES],
)
def test_a_round_raises_chosen_over_rejected_on_held_out_pairs(
    name: str, mode: str, form: str, job: Path, begun: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    settings = [f"loss.preset={name}", *data_of(job, mode, form), *settings_of(name, job), "training.epochs=2"]
    context = open_context(job, tmp_path, mode, *settings, base=begun[mode, form])
    check_run(context.config)
    train(context, 1)
    steps = history(context, 1)
    assert len(steps) >= 4 and all(math.isfinite(step["loss"]) for step in steps) and steps[0]["grad_norm"] > 0
    assert margin(context, 1) > margin(context, 0) + 0.1
    assert read_alarms(context.run.stage(1, "policy").folder)[0] == ()


@pytest.mark.parametrize(
    "loss",
    [
        "{preset: simpo, adversary: {weight: 0.1, hidden_size: 32, heads: 2, layers: 1}}",
        "{preset: dpo, advantage: {weight: 0.1}}",
        "{preset: rainbowpo, weights: {kind: decay}, nll: 0.1}",
        "{preset: mi_dpo, prior: {kind: length, alpha: 0.1}}",
        "{preset: mi_dpo, prior: none}",
        "{preset: sparsepo, masks: independent}",
        "{preset: rpo_sqloo, kl: 0.5, eta: 5}",
        "{preset: rpo_list_bwd, weights: activation, eta: 5}",
        "{preset: kto, aggregate: mean, beta: 1, kl: 0.1}",
        "{preset: xpo, link: {kind: hinge, delta: 1}, dispersion: {}, weights: {kind: edits}}",
        "{preset: dpo, label: wins}",
        "{prior: reference, link: cauchy, shape: {kind: alpha, alpha: 0.1}, scale: {}, beta: 0.5}",
        "{preset: simpo, margin: {kind: rewards, eta: 0.1}, pair_weight: policy}",
        "{sum: [{preset: tdpo1, weight: 0.5}, {preset: mallows_theta, beta: 0.2}, {preset: sft, weight: 0.1}]}",
    ],
)
@pytest.mark.parametrize("mode", ["offline", pytest.param("iterative", marks=pytest.mark.whole)])
def test_components_may_be_combined(
    loss: str, mode: str, job: Path, begun: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    context = open_context(job, tmp_path, mode, f"loss={loss}", "training.epochs=2", base=begun[mode, "pairs"])
    check_run(context.config)
    train(context, 1)
    assert margin(context, 1) > margin(context, 0) + 0.1
    assert read_alarms(context.run.stage(1, "policy").folder)[0] == ()


def test_each_part_of_a_sum_is_in_the_log(job: Path, begun: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    settings = ["loss.preset=mpo", "loss.sum.1.weight=0.5", *data_of(job, "offline", "pairs")]
    context = open_context(job, tmp_path, "offline", *settings, base=begun["offline", "pairs"])
    train(context, 1)
    steps = history(context, 1)
    assert {"dpo", "bco", "sft"} == steps[0]["parts"].keys()
    assert steps[0]["parts"]["dpo"] == pytest.approx(math.log(2), abs=1e-5)
    for step in steps:
        parts = step["parts"]
        assert step["loss"] == pytest.approx(0.8 * parts["dpo"] + 0.5 * parts["bco"] + parts["sft"], rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_moves_within_a_round(
    lora: bool, job: Path, begun: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    def steps(root: Path, *settings: str) -> list[dict[str, Any]]:
        given = [
            *data_of(job, "offline", "pairs"),
            "training.epochs=2",
            *(["training.lora={rank: 2}"] * lora),
            *settings,
        ]
        context = open_context(job, root, "offline", *given, base=begun["offline", "pairs"])
        check_run(context.config)
        train(context, 1)
        return history(context, 1)

    moved = steps(tmp_path / "moved", "training.reference_sync={every: 2, mix: 1}")
    plain = steps(tmp_path / "plain")
    assert [step["loss"] for step in moved[:2]] == [step["loss"] for step in plain[:2]]
    assert moved[2]["loss"] == pytest.approx(math.log(2), abs=1e-5) != plain[2]["loss"]
    assert moved[2]["chosen_change_per_token"] == pytest.approx(0, abs=1e-5)


def margin(context: Context, round_: int) -> float:
    """Mean of log π(chosen) − log π(rejected) over held-out pairs, nats."""
    chat = load_chat(str(context.policy_path(0)), context.config.chat)
    held_out = {prompt.messages for prompt in held_out_prompts(context)}
    examples = []
    for row in PAIRS:
        prompt = (Message("user", row["prompt"]),)
        sides = (chat.response_ids(prompt, row[side]) for side in ("chosen", "rejected"))
        examples += [Example.pair(row["chosen"], chat.prompt_ids(prompt), *sides)] if prompt in held_out else []
    assert len(examples) == 4
    found = reference_logps(load_policy(str(context.policy_path(round_))), examples)
    return sum(sum(chosen) - sum(rejected) for chosen, rejected in found) / len(found)


def history(context: Context, round_: int) -> list[dict[str, Any]]:
    lines = (context.run.stage(round_, "policy").folder / "steps.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_rewards_are_divided_by_their_deviation_over_the_round(
    job: Path, begun: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    def rewards(*settings: str) -> list[float]:
        root = tmp_path / str(len(settings))
        data = data_of(job, "offline", "groups")
        context = open_context(
            job, root, "offline", "loss.preset=apa", *data, *settings, base=begun["offline", "groups"]
        )
        train(context, 1)
        return [float(c.reward or 0) for example in round_examples(context, 1) for c in example.responses]

    scaled, plain = rewards(), rewards("loss.deviation=none")
    assert statistics.pstdev(scaled) == pytest.approx(1) and statistics.pstdev(plain) != pytest.approx(1)
    assert scaled == pytest.approx([reward / statistics.pstdev(plain) for reward in plain])
