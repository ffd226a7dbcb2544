"""``training.lag: 1``: which policy a round samples, and that it does not matter when it does so."""

from pathlib import Path
from typing import Any

import pytest

from flows.report.findings.lag import lag_line
from flows.run_folder.ancestry import parent, sampled_round
from flows.run_folder.approvals import record_approval
from flows.run_folder.stage_keys import stage_key
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config.files import dump_config
from pipeline.errors import UserError
from pipeline.storage.atomic import write_text
from tests.support.finished_run import digests, evaluate, finished
from tests.support.gates import decided
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context, train

LAGGED = ("rounds=3", "training.lag=1", "gate=null")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def lagged(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return finished(job, tmp_path_factory.mktemp("runs") / "lagged", *LAGGED)


def sampled(context: Context) -> list[str]:
    """The policies that rounds 1 to 3 sampled, by their samples' keys."""
    inputs = [context.run.stage(number, "samples").require().inputs for number in (1, 2, 3)]
    return [next(title for title in told if title.endswith("/policy")) for told in inputs]


def test_a_round_samples_what_the_round_before_started_from(lagged: Context) -> None:
    assert sampled(lagged) == ["round_000/policy", "round_000/policy", "round_001/policy"]
    for number in (1, 2, 3):
        metrics = lagged.run.stage(number, "evaluation").require().metrics
        assert metrics["kl_to_sampled"] == metrics["kl_to_previous"] != 0


def test_samples_may_be_drawn_before_the_round_before_has_trained(lagged: Context, job: Path, tmp_path: Path) -> None:
    context = open_context(job, tmp_path / "run", "iterative", *LAGGED)
    begin(context)
    evaluate(context, 0)
    workers: Any = InventedResponses(context.policy_path(0))
    for number in (1, 2, 3):
        if number < 3:
            for name in ("samples", "labels", "pairs", "reference"):
                run_stage(context, number, name, workers)
            run_stage(context, number + 1, "samples", workers)
        train(context, number)
        evaluate(context, number)
    assert digests(context.run) == digests(lagged.run)


def test_only_a_lag_is_in_the_keys(lagged: Context, job: Path, tmp_path: Path) -> None:
    def key(name: str, *settings: str) -> str:
        config = open_context(job, tmp_path, "iterative", "rounds=3", "gate=null", *settings).config
        return stage_key(lagged.run, config, 2, name).digest

    assert key("samples") == key("samples", "training.lag=0") != key("samples", "training.lag=1")
    assert key("policy") == key("policy", "training.lag=0") != key("policy", "training.lag=1")
    assert key("samples", "training.lag=1") == lagged.run.stage(2, "samples").require().key


def test_a_gate_changes_what_is_sampled_one_round_later(job: Path, tmp_path: Path) -> None:
    context = open_context(job, tmp_path / "run", "iterative", "rounds=5", "training.lag=1")
    run, config = context.run, context.config
    for number, verdict, best in ((1, "promote", 1), (2, "roll_back", 1), (3, "promote", 3)):
        decided(run, number, verdict, best)  # type: ignore[arg-type]
    rounds = range(1, 6)
    assert [parent(run, config, number) for number in rounds] == [0, 1, 1, 3, 4]
    assert [sampled_round(run, config, number) for number in rounds] == [0, 0, 1, 1, 3]
    plain = config.model_copy(update={"training": config.training.model_copy(update={"lag": 0})})
    assert [sampled_round(run, plain, number) for number in rounds] == [0, 1, 1, 3, 4]


@pytest.mark.parametrize(("lag", "begun"), [(1, False), (0, True)])
def test_samples_drawn_ahead_leave_time_for_an_answer(job: Path, tmp_path: Path, lag: int, begun: bool) -> None:
    context = open_context(job, tmp_path / "run", "iterative", f"training.lag={lag}")
    run = context.run
    run.root.mkdir(parents=True)
    write_text(run.config_file, dumped(context))
    decided(run, 1, "pause", 0)
    run.stage(2, "samples").partial.mkdir(parents=True)
    if begun:
        with pytest.raises(UserError, match=r"round 2 of .* has begun"):
            record_approval(run.root, 1, "promote")
        return
    record_approval(run.root, 1, "promote")
    run.stage(2, "labels").partial.mkdir()
    with pytest.raises(UserError, match=r"round 2 of .* has begun"):
        record_approval(run.root, 1, "stop")


def dumped(context: Context) -> str:
    return dump_config(context.config)


def test_growth_is_a_warning() -> None:
    def rounds(*values: float, low: float) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{"kl_to_sampled": value} for value in values]
        found[-1]["kl_to_sampled_ci"] = [low, 9.0]
        return found

    assert lag_line(rounds(0.2, low=0.1))[1] is False
    assert lag_line(rounds(0.2, 0.2, 0.4, low=0.25)) == (
        "the policy is 0.4 nats a token (KL) from the one that the next round samples",
        False,
    )
    line, warns = lag_line(rounds(0.1, 0.3, 0.5, low=0.31))
    assert warns and line.startswith("the policy is 0.5 nats") and "0.2 in earlier rounds" in line


def test_offline_runs_have_none(job: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.lag: 1, but offline mode samples nothing; allowed: 0"):
        open_context(job, tmp_path, "offline", "training.lag=1")
