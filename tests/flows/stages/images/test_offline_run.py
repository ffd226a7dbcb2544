"""Offline mode on images: a fixed set of comparisons, and the ranking of held-out pairs by their bounds."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.run_folder.stage_keys import stage_key
from flows.stages.context import Context
from flows.stages.images.held_out import image_held_out
from flows.stages.measures.held_out import HELD_OUT_MARGINS, HELD_OUT_PROMPTS
from pipeline.config import RunConfig
from pipeline.config.images.scoring import ImageScore, WeighedLoser
from pipeline.data.pictures.image_rows import IMAGES, read_images
from pipeline.images.draws import draw_rows
from pipeline.images.image_folder import load_image_policy
from pipeline.storage.rows import read_rows
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import read_steps
from pipeline.types import derive_seed
from tests.support.image_run import OFFLINE, SMALL, run_images

WHOLE_SCHEDULE = ImageScore()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    left = [one for one in SMALL if not one.startswith(("prompts_per_round", "held_out", "training.max_steps"))]
    root = tmp_path_factory.mktemp("offline") / "run"
    yield run_images(
        root, *OFFLINE, "loss.beta=0.1", "training.score.levels=[0,1]", size=left, file="images_offline.yaml"
    )


def metrics_of(run: RunFolder, round_: int) -> dict[str, float]:
    found: dict[str, float] = json.loads((run.stage(round_, "evaluation").folder / "metrics.json").read_text())
    return found


def test_held_out_pairs_are_ranked_by_the_change_from_the_start(done: RunFolder) -> None:
    start, after = metrics_of(done, 0), metrics_of(done, 1)
    assert start["held_out_pairs"] == after["held_out_pairs"] == 16
    assert (start["held_out_accuracy"], start["held_out_margin"]) == (0.5, 0)
    assert start["held_out_log_loss"] == pytest.approx(np.log(2))
    assert after["held_out_margin"] != 0 and "held_out_accuracy_of_longer" not in after
    rows = [*read_rows(done.stage(0, "data").folder / "held_out_pairs")]
    margins = json.loads((done.stage(1, "evaluation").folder / HELD_OUT_MARGINS).read_text())
    prompts = json.loads((done.stage(1, "evaluation").folder / HELD_OUT_PROMPTS).read_text())
    stored = {image.prompt_id: image for image in read_images(done.stage(0, "data").folder / IMAGES)}
    asked = {row["prompt"]["id"]: row for row in rows}
    key = next(iter(margins))
    row = asked[prompts[key]]
    condition = int(row["prompt"]["answer"])
    sides = [bound(done, stored[row[side]].latents, condition, key) for side in ("chosen", "rejected")]
    assert margins[key] == pytest.approx(0.1 * (sides[0] - sides[1]), rel=1e-3, abs=1e-5)


def scored(run: RunFolder, score: ImageScore) -> RunConfig:
    training = run.config().training.model_copy(update={"score": score})
    return run.config().model_copy(update={"training": training})


def test_held_out_pairs_are_scored_in_the_unit_and_at_the_levels_of_training(done: RunFolder, tmp_path: Path) -> None:
    score = ImageScore(score_scale="mean_error", levels=(0.4, 1.0), empty_prompts=0.5)
    image_held_out(Context(done, scored(done, score)), 1, tmp_path, {})
    margins = json.loads((tmp_path / HELD_OUT_MARGINS).read_text())
    prompts = json.loads((tmp_path / HELD_OUT_PROMPTS).read_text())
    stored = {image.prompt_id: image for image in read_images(done.stage(0, "data").folder / IMAGES)}
    row = next(iter(read_rows(done.stage(0, "data").folder / "held_out_pairs")))
    key = next(key for key, prompt in prompts.items() if prompt == row["prompt"]["id"])
    condition = int(row["prompt"]["answer"])
    sides = [
        bound(done, stored[row[side]].latents, condition, key, ImageScore(levels=(0.4, 1.0)), 0.5)
        for side in ("chosen", "rejected")
    ]
    assert margins[key] == pytest.approx(0.1 * (sides[0] - sides[1]), rel=1e-3, abs=1e-8)


def test_other_draws_are_another_reference_and_another_evaluation(done: RunFolder) -> None:
    def key(score: ImageScore, name: str) -> str:
        return stage_key(done, scored(done, score), 1, name).digest

    own = done.config().training.score
    for name in ("reference", "evaluation"):
        assert key(own, name) == done.stage(1, name).require().key
        assert key(own.model_copy(update={"levels": (0.2, 1.0)}), name) != key(own, name)
        assert key(own.model_copy(update={"loser": WeighedLoser()}), name) == key(own, name)
    assert key(own.model_copy(update={"draws": 3}), "reference") != key(own, "reference")
    assert key(own.model_copy(update={"draws": 3}), "evaluation") == key(own, "evaluation")


def bound(
    run: RunFolder,
    latents: np.ndarray,
    condition: int,
    pair: str,
    score: ImageScore = WHOLE_SCHEDULE,
    unit: float | None = None,
) -> float:
    """-W d (m - m_start) of an image, from the formula: the mean over the eight draws of a held-out pair.

    ``unit``: in the place of W d.
    """
    seed = derive_seed(derive_seed(run.config().seed, "evaluation draws"), "draws", pair)
    draws = draw_rows([(seed, number) for number in range(8)], (3, 8, 8), 1000, score)
    errors = []
    for round_ in (1, 0):
        policy = load_image_policy(run.stage(round_, "policy").folder)
        kept = policy.scheduler.alphas_cumprod.double()[draws.level].view(-1, 1, 1, 1)
        clean = torch.from_numpy(latents.reshape(1, 3, 8, 8)).double()
        noisy = (kept.sqrt() * clean + (1 - kept).sqrt() * draws.noise).float()
        with torch.no_grad():
            said = policy.network(noisy, draws.level, torch.full((8,), condition)).sample
        errors.append(float((said - draws.noise).double().square().mean()))
    kept = policy.scheduler.alphas_cumprod.double()
    half = 0.5 * float((kept / (1 - kept)).log()[0] - (kept / (1 - kept)).log()[-1])
    return -(half * 192 if unit is None else unit) * (errors[0] - errors[1])


def test_training_reads_the_set_and_starts_at_the_reference(done: RunFolder) -> None:
    first = read_steps(done.stage(1, "policy").folder / "steps.jsonl")[0]
    assert first.loss == pytest.approx(np.log(2), abs=1e-6) and first.margin == 0
    assert done.stage(1, "pairs").require().rows == 24 and not done.stage(1, "samples").folder.exists()


def test_the_gate_measures_no_lengths_and_no_words(done: RunFolder) -> None:
    decision = json.loads((done.stage(1, "gate").folder / "decision.json").read_text())
    measured = {name for name in decision["measures"] if not name.endswith("_ci")}
    assert {"kl", "win_rate_vs_best", "reward_gain"} <= measured
    assert not {name for name in measured if "length" in name or name.startswith(("lc_", "distinct", "repet", "stop"))}
