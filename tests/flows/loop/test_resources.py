"""What stages share with other runs, and that no two runs can wait for each other."""

from typing import Any

import pytest

from flows.loop.resources import used_by
from flows.run_folder.stage_table import names_in
from pipeline.config import RunConfig

JUDGE = {"kind": "judge", "server": {"base_url": "http://127.0.0.1:8000/v1", "model": "m"}}
CLASSIFIER = {"kind": "classifier", "path": "m"}


def config(**more: Any) -> RunConfig:
    plain = {"name": "x", "mode": "iterative", "policy": {"path": "m"}, "prompts": {"path": "p"}}
    return RunConfig.model_validate({**plain, "scorer": {"kind": "length"}, **more})


def shared(made: RunConfig) -> dict[str, tuple[str, ...]]:
    return {name: used_by(made, name) for name in names_in(made, 1)}


def test_rules_and_pairs_need_no_accelerator() -> None:
    used, ruled = shared(config()), ["suites", "gate"]
    assert [name for name, needs in used.items() if not needs] == ["added_prompts", "gold", "labels", "pairs", *ruled]
    assert {used[name] for name in ("samples", "reference", "policy", "evaluation")} == {("gpu",)}


def test_a_reward_model_takes_the_accelerator_and_a_judge_its_server() -> None:
    assert used_by(config(scorer=CLASSIFIER), "labels") == ("gpu",)
    judged = config(scorer=JUDGE, overlap=False)
    assert (used_by(judged, "labels"), used_by(judged, "evaluation")) == (("judge",), ("gpu", "judge"))
    seconded = config(gate={"second": CLASSIFIER})
    assert used_by(seconded, "gate") == ("gpu",)


def test_labels_beside_samples_wait_for_the_accelerator_before_the_judge() -> None:
    assert used_by(config(scorer=JUDGE), "labels") == ("gpu", "judge")


def test_an_engine_elsewhere_needs_no_accelerator_here() -> None:
    server = {"kind": "server", "base_url": "http://127.0.0.1:8000/v1"}
    made = config(sampler=server, scorer=JUDGE)
    assert (used_by(made, "samples"), used_by(made, "labels")) == ((), ("judge",))


def test_one_limit_for_both_is_refused() -> None:
    with pytest.raises(ValueError, match="judge: one is gpu's limit too"):
        config(resources={"gpu": "one", "judge": "one"})
