"""A run of images, stage by stage: what its files hold, and what a kill changes."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from flows.commands.export import export_policy
from flows.commands.pairs import export_pairs, show_pairs
from flows.report.html.tables import memory_table
from flows.report.write import run_facts
from flows.run_folder.redo import set_aside
from flows.run_folder.retention import free_room
from flows.run_folder.stage_keys import reference_name
from flows.stages.context import Context
from flows.stages.images.evaluation import _by_part, _ratios
from pipeline.config import ImageData
from pipeline.config.machines import Retention
from pipeline.data.pictures.image_rows import StoredPictures, image_response, read_images
from pipeline.data.pictures.rows import wanted_pictures
from pipeline.data.reading import read_preferences
from pipeline.errors import RunError, UserError
from pipeline.evaluation.breakdown import PartNames
from pipeline.images.image_folder import load_image_policy
from pipeline.storage.integrity import file_faults
from pipeline.storage.rows import read_groups, read_preference_rows, read_rows
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import read_steps
from pipeline.types import Pair, TextPair
from tests.support.finished_run import digests
from tests.support.image_run import killed, run_images


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    yield run_images(tmp_path_factory.mktemp("images") / "run")


def test_samples_hold_images_with_their_latents_and_seeds(done: RunFolder) -> None:
    folder = done.stage(1, "samples").folder
    stored = {image.id: image for image in read_images(folder / "images")}
    groups = list(read_groups(folder))
    assert len(groups) == 24 and {len(group.responses) for group in groups} == {4}
    named = [response.text for group in groups for response in group.responses]
    assert set(named) == set(stored) and len({image.seed for image in stored.values()}) == len(stored)
    for group in groups:
        assert group.prompt_ids == (int(group.prompt.answer or -1),)
        for response in group.responses:
            image = stored[response.text]
            assert response.token_ids == image_response(image.id).token_ids and image.prompt_id == group.prompt.id
            pixels = np.asarray(Image.open(io.BytesIO(image.png)), dtype=np.float32).transpose(2, 0, 1)
            assert image.shape == (3, 8, 8)
            assert np.abs(image.latents.reshape(image.shape) - (pixels / 127.5 - 1)).max() < 1e-6


def test_the_datasets_library_reads_the_images(done: RunFolder, tmp_path: Path) -> None:
    files = [str(file) for file in sorted((done.stage(1, "samples").folder / "images").glob("*.parquet"))]
    table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    shown = table.cast_column("image", datasets.Image())[0]["image"]
    assert shown.size == (8, 8) and shown.mode == "RGB"


def test_pairs_are_the_best_against_the_worst_by_the_rule(done: RunFolder) -> None:
    labelled = {group.prompt.id: group for group in read_groups(done.stage(1, "labels").folder)}
    pairs = [row for row in read_preference_rows(done.stage(1, "pairs").folder) if isinstance(row, Pair)]
    assert pairs
    for pair in pairs:
        scores = [score for score in labelled[pair.prompt.id].scores if score is not None]
        assert (pair.chosen_score, pair.rejected_score) == (max(scores), min(scores))


def test_the_first_step_starts_at_the_reference(done: RunFolder) -> None:
    first = read_steps(done.stage(1, "policy").folder / "steps.jsonl")[0]
    assert first.loss == pytest.approx(np.log(2), abs=1e-6) and first.margin == 0


def test_training_counts_no_tokens(done: RunFolder) -> None:
    facts = done.stage(1, "policy").require().metrics
    assert "seconds" in facts and not {"tokens", "response_tokens", "tokens_per_second", "padding"} & facts.keys()
    table = memory_table([run_facts(done, done.config())])
    assert table is not None and table.headings[2:4] == ["time", "rows a second"]


def test_stored_errors_are_of_every_draw_of_both_sides(done: RunFolder) -> None:
    rows = list(read_rows(done.stage(1, "reference").folder / reference_name(0)))
    assert {len(logps) for row in rows for logps in row["logps"]} == {7} and {len(row["logps"]) for row in rows} == {2}


def test_evaluation_measures_images_and_their_distance_from_the_start(done: RunFolder) -> None:
    start, after = (
        json.loads((done.stage(number, "evaluation").folder / "metrics.json").read_text()) for number in (0, 1)
    )
    assert start["kl_to_start"] == 0 and after["kl_to_start"] != 0
    assert after["image_kl_to_start"] == pytest.approx(192 * after["kl_to_start"])
    assert 0 <= after["clean"] <= 1 and after["right"] <= min(after["clean"], after["colour_right"])
    seeds = [
        {image.seed for image in read_images(done.stage(number, "evaluation_samples").folder / "sampled" / "images")}
        for number in (0, 1)
    ]
    assert seeds[0] == seeds[1] and len(seeds[0]) == 16


def test_parts_of_the_images_together_are_the_whole(done: RunFolder) -> None:
    context, folder = Context(done, done.config()), done.stage(1, "evaluation").folder
    whole, groups = json.loads((folder / "metrics.json").read_text()), list(read_groups(folder / "sampled"))
    ids = [group.prompt.id for group in groups]
    names = PartNames({"by_category": {one: "few" if n < 5 else "many" for n, one in enumerate(ids)}})
    wins = {"start": {one: float(n < 5) for n, one in enumerate(ids)}}
    parts = _by_part(context, 1, names, groups, wins, _ratios(context, 1, groups))["by_category"]
    few, many = parts["few"], parts["many"]
    assert isinstance(few, dict) and isinstance(many, dict)
    assert (few["prompts"], few["win_rate_vs_start"], many["win_rate_vs_start"]) == (5, 1, 0)
    assert few["kl_to_start"] != many["kl_to_start"]
    for name in ("reward", "kl_to_start", "image_kl_to_start", "right", "colour_right"):
        assert (5 * few[name] + (len(ids) - 5) * many[name]) / len(ids) == pytest.approx(whole[name], rel=1e-4), name


def test_damage_to_an_image_is_named(done: RunFolder) -> None:
    stage = done.stage(1, "samples")
    file = next((stage.folder / "images").glob("*.parquet"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :])
    try:
        assert [damage.file for damage in file_faults(stage, stage.require(), reread=True)] == [file]
    finally:
        file.write_bytes(whole)


def test_pictures_are_found_by_id(done: RunFolder) -> None:
    folder = done.stage(1, "samples").folder / "images"
    pictures = StoredPictures([folder])
    assert {key: pictures[key] for key in pictures} == {image.id: image.png for image in read_images(folder)}
    assert "absent" not in pictures


def test_a_kill_in_training_changes_no_bit(done: RunFolder, tmp_path: Path) -> None:
    root = tmp_path / "run"
    assert killed(root, "1:policy", 3) == -9
    assert not RunFolder(root).stage(1, "policy").folder.exists()
    assert digests(run_images(root)) == digests(done)


@pytest.mark.whole
@pytest.mark.parametrize(
    "place",
    ["0:policy", "0:evaluation_samples", "0:evaluation", "1:samples", "1:labels", "1:reference", "1:evaluation"],
)
def test_a_kill_in_any_stage_changes_no_bit(done: RunFolder, tmp_path: Path, place: str) -> None:
    root = tmp_path / "run"
    assert killed(root, place, 2 if place.split(":")[1] in ("policy", "samples") else 1) == -9
    assert digests(run_images(root)) == digests(done)


@pytest.mark.whole
@pytest.mark.parametrize("place", ["0:data", "1:pairs", "1:policy", "1:evaluation_samples", "1:gate"])
def test_a_kill_before_a_stage_is_committed_changes_no_bit(done: RunFolder, tmp_path: Path, place: str) -> None:
    root = tmp_path / "run"
    assert killed(root, place, 0) == -9
    round_, _, name = place.partition(":")
    assert not RunFolder(root).stage(int(round_), name).folder.exists()
    assert digests(run_images(root)) == digests(done)


@pytest.mark.whole
def test_stages_that_are_redone_have_the_same_bits(done: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(done.root, tmp_path / "run"))
    moved = {Path(title).name for title in set_aside(run, run.config(), 1, "reference")}
    assert moved == {"reference", "policy", "evaluation_samples", "evaluation", "gate"}
    shutil.rmtree(run.root / "set_aside")
    assert digests(run_images(run.root)) == digests(done)


def test_retention_removes_weights_of_diffusers_folders(done: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(done.root, tmp_path / "run"))
    kept = Retention(last=1, start=False, best=False)
    config = run.config().model_copy(update={"rounds": 1, "gate": None, "retention": kept})
    shutil.rmtree(run.stage(1, "gate").folder)
    assert [freed.title for freed in free_room(run, config)] == [run.stage(0, "policy").title]
    left = {file.relative_to(run.root).parts[0] for file in run.root.rglob("*.safetensors")}
    assert left == {"round_001"} and (run.stage(0, "policy").folder / "unet" / "config.json").is_file()
    assert not [*file_faults(run.stage(0, "policy"), run.stage(0, "policy").require(), reread=True)]


@pytest.mark.whole
@pytest.mark.parametrize("lifetime", ["run", "round"])
def test_adapters_are_trained_on_and_sampled_from(tmp_path: Path, lifetime: str) -> None:
    settings = ("training.lora.rank=4", f"training.lora.lifetime={lifetime}", "training.reference=previous")
    run = run_images(tmp_path / "run", *settings, rounds=2)
    export_policy(run.root, tmp_path / "out", 2)
    assert (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    weights = {file.name for file in run.stage(2, "policy").folder.rglob("*.safetensors")}
    assert weights == ({"adapter_model.safetensors"} if lifetime == "run" else {"diffusion_pytorch_model.safetensors"})
    assert read_steps(run.stage(2, "policy").folder / "steps.jsonl")[0].margin == 0
    shake = run.stage(2, "evaluation_samples").require().metrics["sampled"]
    assert isinstance(shake, dict) and shake["weight_handshake"]["max_difference"] < 1e-4


def test_exported_pairs_are_read_as_a_data_set_of_images(done: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    assert export_pairs(done.root, out, None).startswith(f"{done.stage(1, 'pairs').require().rows} rows of round 1")
    with pytest.raises(UserError, match="exists"):
        export_pairs(done.root, out, 1)
    given = ImageData(path=str(out), size=(8, 8), fit="exact")
    read = [row.value for row in read_preferences(given)]
    files = dict(wanted_pictures(given, {name for row in read if isinstance(row, TextPair) for name in (row.chosen,)}))
    stored = StoredPictures([done.stage(1, "samples").folder / "images"])
    pairs = [row for row in read_preference_rows(done.stage(1, "pairs").folder) if isinstance(row, Pair)]
    assert len(read) == len(pairs)
    for row, pair in zip(read, pairs, strict=True):
        assert isinstance(row, TextPair) and row.prompt.answer == pair.prompt.answer
        assert files[row.chosen] == stored[pair.chosen.text]


def test_a_preview_of_images_counts_no_tokens(done: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    show_pairs(done.root, [], None, recompute=False)
    said = capsys.readouterr().out
    assert "chosen: image " in said and "token" not in said and "longer" not in said


def test_an_exported_policy_is_a_folder_of_diffusers(done: RunFolder, tmp_path: Path) -> None:
    export_policy(done.root, tmp_path / "out", 1)
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {
        "README.md",
        "model_index.json",
        "scheduler",
        "unet",
    }
    ours, theirs = (load_image_policy(place) for place in (done.stage(1, "policy").folder, tmp_path / "out"))
    pairs = zip(ours.network.state_dict().values(), theirs.network.state_dict().values(), strict=True)
    assert all(bool((one == other).all()) for one, other in pairs)
    shutil.copytree(done.root, tmp_path / "damaged")
    file = next((tmp_path / "damaged" / "round_001" / "policy" / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(RunError, match="does not match its manifest"):
        export_policy(tmp_path / "damaged", tmp_path / "second", 1)
    assert not (tmp_path / "second").exists()
