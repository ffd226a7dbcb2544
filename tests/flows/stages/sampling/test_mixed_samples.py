"""The samples stage with a mixture: exact and resampled, refused, killed and resumed, and in its key."""

from pathlib import Path
from typing import Any

import pytest

from flows.run_folder.ancestry import mixed_stage
from flows.run_folder.stage_keys import stage_key
from flows.run_folder.stage_table import made_in
from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.stages.sampling import resampled
from pipeline.config.files import load_config
from pipeline.errors import RunError, UserError
from pipeline.sampling.sampler import SampleRequest
from pipeline.storage.rows import read_groups
from pipeline.types import Group
from tests.support.sampling_here import SamplesHere
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_run import begin, make_job, open_context

EXACT = "sampler={kind: transformers, dtype: float32}"
SMALL = ("sampling.max_tokens=6", "shard_size=3", "prompts_per_round=8")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_job(tmp_path_factory.mktemp("mixture"))
    save_tiny_model(folder / "other", seed=1)
    return folder


def sampled(job: Path, root: Path, *settings: str) -> tuple[Context, SamplesHere]:
    context = opened(job, root, *settings)
    workers: Any = SamplesHere(context.config)
    run_stage(context, 1, "samples", workers)
    return context, workers


def opened(job: Path, root: Path, *settings: str) -> Context:
    context = open_context(job, root, "iterative", *SMALL, *settings)
    begin(context)
    if made_in(context.config, 0, "mixed_model"):
        run_stage(context, 0, "mixed_model")
    return context


def mixture(job: Path, weight: float) -> str:
    return f"sampling.mixture={{reference: {job / 'other'}, weight: {weight}}}"


def groups(context: Context) -> list[Group]:
    return list(read_groups(context.run.stage(1, "samples").folder))


def test_transformers_samples_from_both_models_and_checks_the_weights_of_both(job: Path, tmp_path: Path) -> None:
    context, workers = sampled(job, tmp_path / "mixed", EXACT, mixture(job, 0.5))
    plain, _ = sampled(job, tmp_path / "plain", EXACT)
    metrics = context.run.stage(1, "samples").require().metrics
    assert metrics["mixture"] == {"reference": str(job / "other"), "weight": 0.5, "of": "round_000/mixed_model"}
    handshake: Any = metrics["weight_handshake"]
    assert 0 <= handshake["mixed_difference"] < 1e-3 and 0 <= handshake["max_difference"] < 1e-3
    assert [load.mixed for load in workers.loads] == [str(job / "other")]
    assert groups(context) != groups(plain)
    assert [len(group.responses) for group in groups(context)] == [3] * 8


def test_another_model_than_the_mixture_names_is_refused_by_the_handshake(job: Path, tmp_path: Path) -> None:
    workers, probe = SamplesHere(opened(job, tmp_path, EXACT).config), tmp_path / "round_000" / "policy"
    settings = load_config([job / "iterative.yaml"], [EXACT, mixture(job, 0.5)]).sampling
    with pytest.raises(RunError, match=r"sampling\.mixture: .*other: weight handshake"):
        next(workers.sample(job / "model", probe, [SampleRequest((9, 40), 0)], settings, (job / "other", probe)))


def test_other_engines_resample_what_the_policy_says_and_tell_how_many_count(job: Path, tmp_path: Path) -> None:
    context, workers = sampled(job, tmp_path / "mixed", mixture(job, 0.01))
    told: Any = context.run.stage(1, "samples").require().metrics["mixture"]
    assert 0.5 < told["lowest_effective_share"] <= told["effective_share"] < 1
    assert told["weight_handshake"]["max_difference"] < 1e-3 and told["proposals"] == 4
    assert (workers.sampled, workers.scored) == (8, 8 * 3 * 4)
    folder = context.run.stage(1, "samples").folder
    assert not (folder / resampled.PROPOSALS).exists()
    drawn, _ = sampled(job, tmp_path / "plain", "sampling.n=12")
    for kept, of in zip(groups(context), groups(drawn), strict=True):
        assert len(kept.responses) == 3 and set(kept.responses) <= set(of.responses)


def test_a_mixture_of_which_too_few_samples_count_is_refused_by_name(job: Path, tmp_path: Path) -> None:
    context = opened(job, tmp_path, mixture(job, 0.9))
    with pytest.raises(UserError, match=r"sampling\.mixture\.weight: 0\.9: in round 1 \d+% of .*at least 50%"):
        run_stage(context, 1, "samples", SamplesHere(context.config))  # type: ignore[arg-type]
    assert context.run.stage(1, "samples").manifest() is None


def test_a_kill_between_two_shards_costs_one_shard_and_changes_no_bit(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = sampled(job, tmp_path / "whole", mixture(job, 0.01))
    context = opened(job, tmp_path / "killed", mixture(job, 0.01))
    workers: Any = SamplesHere(context.config)
    score, calls = workers.score, iter(range(100))

    def killed(*asked: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return score(*asked)

    monkeypatch.setattr(workers, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(context, 1, "samples", workers)
    again: Any = SamplesHere(context.config)
    run_stage(context, 1, "samples", again)
    assert (again.sampled, again.scored) == (0, 5 * 3 * 4)
    assert groups(context) == groups(whole)
    told, wanted = (c.run.stage(1, "samples").require().metrics["mixture"] for c in (context, whole))
    assert {k: told[k] for k in ("effective_share", "lowest_effective_share")} == {  # type: ignore[index, call-overload]
        k: wanted[k]  # type: ignore[index, call-overload]
        for k in ("effective_share", "lowest_effective_share")
    }


def test_in_the_first_round_the_runs_own_policies_are_one_and_samples_are_plain(job: Path, tmp_path: Path) -> None:
    mixed, workers = sampled(job, tmp_path / "mixed", "sampling.mixture={reference: start}")
    plain, _ = sampled(job, tmp_path / "plain")
    assert groups(mixed) == groups(plain) and workers.scored == 0
    run, config = mixed.run, mixed.config
    assert mixed_stage(run, config, 1) is None
    later = [mixed_stage(run, config, round_) for round_ in (2, 3)]
    assert [stage.title for stage in later if stage] == ["round_000/policy"] * 2
    previous = load_config([job / "iterative.yaml"], ["sampling.mixture={reference: previous}"])
    third = mixed_stage(run, previous, 3)
    assert third is not None and third.title == "round_001/policy"


def test_the_key_holds_the_mixture_and_the_other_models_files(job: Path, tmp_path: Path) -> None:
    context = opened(job, tmp_path, mixture(job, 0.5))
    key = stage_key(context.run, context.config, 1, "samples")
    assert key.config["sampling"]["mixture"]["weight"] == 0.5  # type: ignore[index, call-overload]
    assert "round_000/mixed_model" in key.inputs
    assert (
        "mixture"
        not in stage_key(context.run, load_config([job / "iterative.yaml"], SMALL), 1, "samples").config["sampling"]
    )  # type: ignore[operator]
    assert stage_key(context.run, context.config, 0, "mixed_model").config["model_files"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["sampling.temperature=0.7", "sampling.mixture={}"], "temperature must be 1"),
        (["sampler={kind: server, base_url: http://127.0.0.1:1/v1}", "sampling.mixture={}"], "sampler.base_url"),
        (["mode=offline", "sampling.mixture={}"], "offline mode samples no responses"),
        (["policy.trust_remote_code=true", "sampling.mixture={reference: x/y}"], "allowed: start or previous"),
        (["sampling.mixture={weight: 1}"], "sampling.mixture.weight"),
    ],
)
def test_mixtures_that_cannot_be_drawn_are_refused(job: Path, settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config([job / "iterative.yaml"], settings)
