"""Which stages a loss has, what their keys depend on, and what of the data reaches the trainer's examples."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.loop.rounds import Stages, learn
from flows.run_folder.stage_keys import stage_key
from flows.run_folder.stage_table import inputs_of
from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.stages.training.examples import examples_with_reference, round_examples
from pipeline.config import Composition
from pipeline.config.loss.needs import needs_of
from pipeline.errors import RunError
from tests.support.tiny_run import PAIRS, InventedResponses, begin, make_job, open_context, supply


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("inputs"))


def prepared(job: Path, root: Path, mode: str, *settings: str) -> Context:
    context = open_context(job, root, mode, *settings)
    begin(context)
    return context


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        ("dpo", ["reference"]),
        ("simpo", []),
        ("xpo", ["calibration", "reference"]),
        ("vpo_offline", ["reference"]),
        ("sft", []),
        ("mallows_theta", ["reference"]),
    ],
)
def test_stages_that_the_loss_does_not_read_are_left_out(
    job: Path, tmp_path: Path, preset: str, wanted: list[str]
) -> None:
    called: list[str] = []

    class Called(Stages):
        def __call__(self, name: str, round_: int, *inputs: str) -> str:
            called.append(name)
            return name

    for settings, gate in (([], ["gate"]), (["gate=null"], [])):
        called.clear()
        config = open_context(job, tmp_path, "offline", f"loss.preset={preset}", *settings).config
        learn(Called(), config, 1, "pairs", "policy")
        assert called == [*wanted, "policy", "evaluation_samples", "evaluation", *gate]


def test_keys_follow_what_a_stage_reads_of_the_loss(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "iterative")
    supply(context, 1)

    def key(name: str, *settings: str) -> str:
        config = open_context(job, tmp_path, "iterative", *settings).config
        return stage_key(context.run, config, 1, name).digest

    assert key("pairs") == key("pairs", "loss.preset=ipo") == key("pairs", "loss.beta=9")
    assert key("pairs") != key("pairs", "loss.preset=rpo_sqloo")
    assert key("reference") == key("reference", "loss.preset=ipo") != key("reference", "loss.preset=mallows_theta")
    further = "training.references=[other]"
    assert key("reference", "loss.preset=mrpo", further) != key("reference", "loss.preset=mrpo")
    assert key("policy") != key("policy", "loss.beta=9") and key("policy") != key("policy", "loss.preset=tdpo1")
    said = "loss={preset: dpo, summary: another line}"
    assert key("policy") == key("policy", said)


@pytest.mark.parametrize(
    ("loss", "beside"),
    [
        ("{preset: dpo}", False),
        ("{preset: tdpo1}", True),
        ("{preset: sparsepo}", True),
        ("{preset: mi_dpo}", True),
        ("{preset: simpo}", False),
        ("{preset: simpo, adversary: {weight: 1}}", True),
    ],
)
def test_a_policy_depends_on_the_model_that_it_is_trained_beside(
    job: Path, tmp_path: Path, loss: str, beside: bool
) -> None:
    context = open_context(job, tmp_path, "offline", f"loss={loss}", "training.reference=fixed")
    stages = inputs_of(context.run, context.config, 2, "policy")
    titles = {stage.title for stage in stages}
    assert ("round_000/policy" in titles) == beside and {"round_001/policy", "round_002/pairs"} <= titles
    assert ("round_002/reference" in titles) == needs_of(context.config.loss).stored_reference


def test_contrasting_models_are_read_before_training_whatever_the_prior() -> None:
    assert needs_of(
        Composition.model_validate({"link": "logistic", "weights": "given", "prior": "none"})
    ).stored_reference
    assert not needs_of(Composition.model_validate({"link": "logistic", "prior": "none"})).stored_reference


def with_columns(job: Path, folder: Path, columns: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps({**row, **columns}) + "\n" for row in PAIRS))
    return f"pairs.path={file}"


def test_soft_labels_reach_the_loss_as_labels_or_as_win_probabilities(job: Path, tmp_path: Path) -> None:
    unscored = {"soft_label": 0.75, "chosen_score": None}
    for preset, label in (("dpo", 0.75), ("sppo", 1.0)):
        data = with_columns(job, tmp_path / "data", unscored)
        context = prepared(job, tmp_path / preset, "offline", data, f"loss.preset={preset}")
        run_stage(context, 1, "pairs")
        (example, *_) = round_examples(context, 1)
        assert example.soft_label == label
        assert [response.win_probability for response in example.responses] == [0.75, 0.25]


def test_what_columns_say_reaches_each_side(job: Path, tmp_path: Path) -> None:
    columns = {"chosen_prior": -3.5, "rejected_prior": -7.0, "win_probability": 0.9, "win_probability_rejected": 0.4}
    data = with_columns(job, tmp_path / "data", {**columns, "chosen_score": 2.0})
    context = prepared(job, tmp_path / "run", "offline", data, "loss={preset: mi_dpo, prior: given}")
    supply(context, 1)
    (example, *_) = examples_with_reference(context, 1)
    assert [side.prior for side in example.responses] == [-3.5, -7.0]
    assert [side.reward for side in example.responses] == [2.0, 0.5]
    assert [side.win_probability for side in example.responses] == [0.9, 0.4]


def test_responses_of_a_group_that_were_cut_are_counted_once(job: Path, tmp_path: Path) -> None:
    data = (f"pairs.path={job / 'groups.jsonl'}", "chat.max_response_tokens=8", "rounds=1")
    for drop, rows in ((False, 16), (True, 0)):
        context = prepared(
            job, tmp_path / str(drop), "offline", *data, f"pairing.drop_cut={drop}", "loss.preset=nca_list"
        )
        if not rows:
            with pytest.raises(RunError, match=r"too_few: 16"):
                run_stage(context, 1, "pairs")
            continue
        run_stage(context, 1, "pairs")
        dropped = context.run.stage(1, "pairs").require().metrics["dropped"]
        assert isinstance(dropped, dict) and dropped["cut"] == 32 and dropped["long_prompt"] == 0


def test_prompts_that_the_template_refuses_are_not_counted_as_over_long(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    template = job / "model" / "chat_template.jinja"
    raises = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template.write_text(raises + template.read_text())
    turns = [{"role": "user", "content": "the dog"}]
    odd = [[{"role": "system", "content": f"Brief {n}."}, *turns] for n in range(3)] + ["the mat " * 400]
    plain = [f"the cat {n}" for n in range(6)]
    prompts = job / "prompts.jsonl"
    settings = ["prompts_per_round=null", "held_out.prompts=1", f"prompts.path={prompts}", "pairs=null"]
    for name, rows, said in (("some", [*odd, *plain], None), ("none", odd, "no prompt is left: 1 are longer than")):
        prompts.write_text("".join(json.dumps({"prompt": row, "answer": "barn"}) + "\n" for row in rows))
        held = tmp_path / f"{name}.jsonl"
        held.write_text(json.dumps({"prompt": "held out", "answer": "barn"}) + "\n")
        context = open_context(job, tmp_path / name, "iterative", *settings, f"held_out.path={held}")
        begin(context)
        workers: Any = InventedResponses(context.policy_path(0))
        if said is not None:
            with pytest.raises(RunError, match=f"{said} .*, and the chat template refuses 3"):
                run_stage(context, 1, "samples", workers)
            continue
        run_stage(context, 1, "samples", workers)
        metrics = context.run.stage(1, "samples").require().metrics
        assert (metrics["dropped_over_long_prompts"], metrics["dropped_refused_prompts"]) == (1, 3)
