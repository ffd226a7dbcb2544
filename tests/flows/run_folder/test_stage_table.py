"""The table of stages: who makes them, in which order, and which of them a round has."""

from pathlib import Path

import pytest

from flows.run_folder.stage_keys import stage_key
from flows.run_folder.stage_table import STAGES, inputs_of, made_in, names_in, reads
from flows.stages.run import BODIES
from pipeline.config import RunConfig
from pipeline.config.files import load_config
from pipeline.storage.run_folder import RunFolder
from tests.support.places import CONFIGS

DISCRIMINATOR = ["training.reference=ema", "loss.preset=vpo_online"]


def config(*settings: str) -> RunConfig:
    return load_config([CONFIGS / "discriminator.yaml"], settings)


def test_every_stage_has_a_body_and_every_body_a_stage() -> None:
    assert BODIES.keys() == STAGES.keys()


def test_stages_are_asked_for_in_the_order_in_which_they_run() -> None:
    trained = ("policy", "evaluation_samples", "suite_samples", "suites", "evaluation")
    start = ("data", "mixed_model", "second_policy", *trained)
    in_both = ("pairs", "calibration", "reference", "advantages", *trained, "gate")
    iterative = config()
    offline = iterative.model_copy(update={"mode": "offline"})
    assert names_in(iterative, 0) == names_in(offline, 0) == start
    assert names_in(offline, 2) == in_both
    drawn = ("added_prompts", "samples", "second_samples", "gold", "discriminator", "labels")
    assert names_in(iterative, 2) == (*drawn, *in_both)


@pytest.mark.parametrize("silver", ["online", "static", "self", "none"])
def test_a_stage_reads_what_is_made_before_it(tmp_path: Path, silver: str) -> None:
    made, run = config(*DISCRIMINATOR, f"discriminator.silver={silver}"), RunFolder(tmp_path)
    there: list[str] = []
    for round_ in range(5):
        names = [name for name in names_in(made, round_) if made_in(made, round_, name)]
        # An average is made right after its policy; no stage of its own round reads it.
        for name in [*names, *(["average"] if round_ else [])]:
            wanted = {stage.title for stage in inputs_of(run, made, round_, name)}
            assert wanted <= set(there), (round_, name)
            assert wanted <= {stage.title for stage in reads(run, made, round_, name)}
            there.append(f"round_{round_:03d}/{name}")


@pytest.mark.parametrize(
    "settings, made",
    [
        ([], {"gold", "discriminator", "reference", "gate"}),
        (["discriminator.silver=self"], {"gold", "reference", "gate"}),
        (["discriminator.silver=static"], {"reference", "gate"}),
        (["loss.preset=vpo_online"], {"gold", "discriminator", "calibration", "reference", "gate"}),
        (["loss.preset=simpo"], {"gold", "discriminator", "gate"}),
        (["loss.preset=apa_token"], {"gold", "discriminator", "reference", "advantages", "gate"}),
        (["training.reference=ema", "gate=null"], {"gold", "discriminator", "reference", "average"}),
    ],
)
def test_what_nothing_reads_is_not_made(settings: list[str], made: set[str]) -> None:
    sometimes = ("added_prompts", "gold", "discriminator", "calibration", "reference", "advantages", "average", "gate")
    assert {name for name in sometimes if made_in(config(*settings), 2, name)} == made


def test_a_dry_run_counts_added_prompts_that_are_only_planned_as_read(tmp_path: Path) -> None:
    known = {f"round_{number:03d}/added_prompts": f"key {number}" for number in (1, 3)}
    known |= {"round_000/data": "data", "round_001/policy": "policy"}
    key = stage_key(RunFolder(tmp_path), config(), 2, "samples", known)
    assert key.inputs == {"round_000/data": "data", "round_001/added_prompts": "key 1", "round_001/policy": "policy"}


def test_no_other_stages_are_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stage is called 'rewards'"):
        stage_key(RunFolder(tmp_path), config(), 1, "rewards")
