"""Offline mode on a public layout of image preferences: from the table to trained weights."""

from pathlib import Path

import numpy as np
import pytest

from flows.loop.preparation import prepare_run
from flows.loop.rounds import learn, start_run
from flows.preflight.check import check_run
from flows.stages.images.imported import imported_image
from flows.workers.local import Workers
from pipeline.config import RunConfig
from pipeline.data.pictures.image_rows import IMAGES, read_images
from pipeline.data.pictures.picture import decoded_picture
from pipeline.errors import UserError
from pipeline.images.image_folder import load_image_policy
from pipeline.storage.rows import read_preference_rows
from pipeline.types import Pair
from tests.pipeline.data.pictures.test_layouts import pickapic
from tests.support.image_run import ImageStages
from tests.support.pictures import BLUE, RED, halves, picture
from tests.support.tiny_diffusion import unconditional


def config(folder: Path, table: Path, **more: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "offline-images", "modality": "image", "mode": "offline", "rounds": 1,
            "policy": {"path": str(folder)}, "sampler": {"steps": 2, "batch": 4},
            "pairs": {"kind": "images", "path": str(table), "size": [8, 8]}, "held_out": {"prompts": 4},
            "loss": {"preset": "dpo", "beta": 0.1}, "limits": {"tie": "drop"},
            "training": {
                "learning_rate": 1e-3, "batch_size": 8, "micro_batch_size": 8, "epochs": 4, "reference": "fixed",
            },
            "evaluation": {"samples": 2, "bootstrap": 100}, "gate": None, **more,
        }
    )  # fmt: skip


def blues(count: int) -> list[tuple[bytes, bytes, float, bool]]:
    """Pairs of which the bluer image is preferred, wherever it stands; a tie, a row without a label, equal images."""
    made: list[tuple[bytes, bytes, float, bool]] = []
    for number in range(count):
        shade = (0, number % 50, 255 - number % 40)
        one, other = picture(shade, (16, 16)), picture((255 - number, 0, 0), (16, 16))
        made.append((one, other, 1.0, True) if number % 2 else (other, one, 0.0, True))
    return [*made, (picture(RED), picture(BLUE), 0.5, True), (picture(RED), picture(BLUE), 0.0, False)]


def test_pairs_of_a_table_are_checked_stored_once_and_trained_on(tmp_path: Path) -> None:
    policy, table = unconditional(tmp_path / "policy"), pickapic(tmp_path / "train.parquet", *blues(24))
    given = config(policy, table)
    contents, log = check_run(given, tmp_path / "faults.jsonl")
    assert (contents.pairs, contents.held_out_pairs, contents.held_out) == (20, 4, 4)
    assert "1 tie" in log.account[0] and "1 unlabelled" in log.account[0]
    run = prepare_run(given, tmp_path / "run")
    with Workers(run.root, given) as workers:
        stage = ImageStages(run, workers, die=None)
        _, start = start_run(stage, given)
        learn(stage, given, 1, stage("pairs", 1, start), start)
    images = [*read_images(run.stage(0, "data").folder / IMAGES)]
    assert len({image.id for image in images}) == len(images) == 48
    assert {image.shape for image in images} == {(3, 8, 8)}
    named = {image.id: image for image in images}
    rows = [row for row in read_preference_rows(run.stage(1, "pairs").folder) if isinstance(row, Pair)]
    assert len(rows) == 20
    for row in rows:
        chosen, rejected = (
            decoded_picture(named[side.text].png).getpixel((0, 0)) for side in (row.chosen, row.rejected)
        )
        assert isinstance(chosen, tuple) and isinstance(rejected, tuple)
        assert chosen[2] > 200 and rejected[0] > 200
    metrics = run.stage(1, "policy").require().metrics
    assert metrics["first_loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert float(str(metrics["loss"])) < 0.6 and float(str(metrics["accuracy"])) > 0.6


def test_an_image_is_stored_as_what_the_policys_autoencoder_makes_of_it(tmp_path: Path) -> None:
    pixels = imported_image(halves(RED, BLUE), None)
    found = np.frombuffer(pixels.latents, "<f4").reshape(pixels.shape)
    assert (
        pixels.shape == (3, 8, 8) and found[:, 0, 0].tolist() == [1, -1, -1] and found[:, 0, 7].tolist() == [-1, -1, 1]
    )
    with pytest.raises(UserError, match=r"pairs\.size: 16 x 16 pixels are 3 x 16 x 16 to .* which draws 3 x 8 x 8"):
        imported_image(picture(RED, (16, 16)), load_image_policy(unconditional(tmp_path / "policy")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"modality": "text", "policy": {"kind": "pretrained", "path": "m"}, "sampler": {"kind": "vllm"}},
            "pairs.kind: ",
        ),
        ({"pairs": {"kind": "file", "path": "rows.jsonl"}}, "pairs.kind: file holds texts"),
    ],
)
def test_tables_of_the_other_modality_are_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        config(tmp_path, tmp_path / "rows.parquet", **change)
