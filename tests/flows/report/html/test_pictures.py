"""Images on the page and in Prefect's artefacts: which are shown, what they hold, and how much room they take."""

import base64
import io
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.report.html.page import PAGE_BYTES, render_report
from flows.report.html.pictures.artefact import pictures_page
from flows.report.html.pictures.section import evenly_spaced, pictures_data
from flows.report.html.pictures.shown import RoundPictures, ShownImage, ShownPair, round_pictures
from flows.report.html.training import training_panels
from pipeline.config import RunConfig
from pipeline.data.pictures.image_rows import IMAGES, image_response, write_images
from pipeline.data.pictures.picture import decoded_picture
from pipeline.storage.rows import write_groups, write_preferences
from pipeline.storage.run_folder import RunFolder
from pipeline.types import DrawnImage, Group, Message, Pair, Prompt
from tests.flows.report.html.test_page import EVIL, STEP, full, run
from tests.support.pictures import BLUE, GREEN, RED, halves, picture


def urls(html: str) -> list[Image.Image]:
    """The images of a page, from their URLs."""
    found = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in found]


def shown(round_: int, *files: bytes, prompt: str = "a sea", pair: bool = True) -> RoundPictures:
    images = tuple(ShownImage(data, float(place)) for place, data in enumerate(files))
    pairs = (ShownPair(prompt, images[0], images[-1]),) if pair else ()
    return RoundPictures(round_, ((prompt, images),), pairs)


def test_the_page_has_a_grid_a_round_and_pairs_with_scores() -> None:
    rounds = {0: shown(0, picture(RED), picture(BLUE), pair=False), 1: shown(1, picture(GREEN), halves(RED, BLUE))}
    html = render_report([replace(run(full(0), full(1)), pictures=rounds)])
    pixels = [image.getpixel((0, 0)) for image in urls(html)]
    assert pixels == [RED, BLUE, GREEN, RED, GREEN, RED] and {image.size for image in urls(html)} == {(8, 8)}
    titles = re.findall(r'<section class="pictures"><h3>([^<]+)', html)
    assert titles == ["round 0", "round 1"] and html.count("Trained on:") == 1
    assert re.findall(r"<small>([^<]+)</small>", html)[:4] == ["0", "1", "0", "1"]
    assert 'href="#images"' in html and 'href="#images"' not in render_report([run(full(0))])


def test_images_have_no_temperature() -> None:
    text = full(0)
    images = replace(text, metrics={**text.metrics, "image_kl_to_start": 2.0})
    assert "have temperature 1" in render_report([run(text)]) and "temperature" not in render_report([run(images)])
    assert "have temperature 1" in render_report([run(text), run(images)])


def test_captions_are_text_and_nothing_else() -> None:
    html = render_report([replace(run(full(0)), pictures={0: shown(0, picture(RED), prompt=EVIL + '" onerror="x')})])
    section = html[html.index('id="images"') : html.index('id="time"')]
    assert "<script" not in section and 'onerror="x' not in section and "&lt;" in section
    page = pictures_page("run", shown(1, picture(RED), prompt="![x](https://example.com/a.png) | <b>"))
    assert "](https" not in page and "<b>" not in page


def noise(side: int, seed: int) -> bytes:
    made = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side)).save(made, "PNG")
    return made.getvalue()


def test_large_images_of_many_rounds_leave_the_page_below_its_size() -> None:
    files = [noise(256, seed) for seed in range(8)]
    grid = tuple((f"prompt {row}", tuple(ShownImage(files[(row + n) % 8], 1.0) for n in range(4))) for row in range(8))
    pair = ShownPair("p", ShownImage(files[0], 1.0), ShownImage(files[1], 0.0))
    rounds = {number: RoundPictures(number, grid, (pair,) * 6) for number in range(12)}
    html = render_report([replace(run(full(0), full(1)), pictures=rounds)])
    assert 100_000 < len(html.encode()) <= PAGE_BYTES
    titles = re.findall(r'<section class="pictures"><h3>round (\d+)', html)
    assert titles[0] == "0" and titles[-1] == "11"
    assert len(urls(html)) == len(titles) * (8 * 4 + 12)


def test_no_room_shows_no_images_and_a_damaged_one_is_grey() -> None:
    of_run = replace(run(full(0)), pictures={0: shown(0, picture(RED))})
    assert pictures_data([of_run], 100) == []
    (image,) = urls(render_report([replace(of_run, pictures={0: shown(0, b"damaged", pair=False)})]))
    assert image.getpixel((0, 0)) == (128, 128, 128)


def test_rounds_are_evenly_spaced_with_the_first_and_the_newest() -> None:
    assert evenly_spaced(dict.fromkeys(range(21)), 5) == [0, 5, 10, 15, 20]
    assert evenly_spaced(dict.fromkeys([0, 3]), 5) == [0, 3] and evenly_spaced(dict.fromkeys(range(9)), 1) == [8]


def test_an_artefact_holds_one_picture_of_the_grid_and_one_of_pairs() -> None:
    page = pictures_page("run", shown(2, picture(RED), picture(BLUE)))
    grid, pairs = urls(page)
    assert grid.size == (64 + 2 + 64, 64) and pairs.size == grid.size
    assert (grid.getpixel((30, 30)), grid.getpixel((100, 30))) == (RED, BLUE)
    assert "| 1 | a sea | 0, 1 |" in page and len(page) < 10_000


def drawn(data: bytes, seed: int) -> DrawnImage:
    return DrawnImage(data, bytes(4 * 3 * 8 * 8), (3, 8, 8), seed)


def config(**more: Any) -> RunConfig:
    plain: dict[str, Any] = {
        "name": "x", "modality": "image", "mode": "iterative", "policy": {"kind": "diffusion", "path": "m"},
        "sampler": {"kind": "diffusers"}, "prompts": {"kind": "conditions"}, "scorer": {"kind": "dots"},
    }  # fmt: skip
    return RunConfig.model_validate({**plain, **more})


def test_what_stages_wrote_is_shown_by_prompt_and_pair(tmp_path: Path) -> None:
    given = RunFolder(tmp_path)
    files = [picture(RED), picture(BLUE), picture(GREEN), halves(RED, BLUE), halves(BLUE, GREEN)]
    images = [drawn(data, seed) for seed, data in enumerate(files)]
    named = [image_response(image.id) for image in images]
    prompt = [Prompt((Message("user", f"class {n}"),)) for n in range(2)]
    samples = given.stage(1, "samples").folder
    evaluated, sampled = given.stage(1, "evaluation").folder, given.stage(1, "evaluation_samples").folder / "sampled"
    for folder in (samples / IMAGES, sampled / IMAGES, evaluated / "sampled", given.stage(1, "pairs").folder):
        folder.mkdir(parents=True)
    for place in (samples, sampled):
        write_images(place / IMAGES / "rows.parquet", [("p", image) for image in images])
    groups = [
        Group(prompt[0], (0,), tuple(named[:2]), (0.5, None)),
        Group(prompt[0], (0,), tuple(named[2:4]), (1.0, 2.0)),
        Group(prompt[1], (1,), (named[4],), (3.0,)),
    ]
    write_groups(evaluated / "sampled" / "rows.parquet", groups)
    pair = Pair(prompt[0], (0,), named[1], named[0], 2.0, 1.0, round=1)
    write_preferences(given.stage(1, "pairs").folder / "rows.parquet", [pair])
    found = round_pictures(given, config(), 1)
    colours = [(words, [decoded_picture(one.png).getpixel((0, 0)) for one in row]) for words, row in found.grid]
    assert colours == [("class 0", [RED, BLUE, GREEN, RED]), ("class 1", [BLUE])]
    assert [one.score for one in found.grid[0][1]] == [0.5, None, 1.0, 2.0]
    (side,) = found.pairs
    assert (decoded_picture(side.chosen.png).getpixel((0, 0)), side.chosen.score) == (BLUE, 2.0)
    assert (decoded_picture(side.rejected.png).getpixel((0, 0)), side.rejected.score) == (RED, 1.0)
    assert round_pictures(given, config(), 2) == RoundPictures(2, (), ())


def test_errors_of_both_sides_are_drawn_in_place_of_log_probs() -> None:
    steps = tuple(
        replace(
            STEP, step=n, chosen_logp_per_token=-20.0 - n, chosen_change_per_token=-float(n),
            rejected_logp_per_token=-40.0, rejected_change_per_token=-20.0,
        )
        for n in (1, 2)
    )  # fmt: skip
    trained = replace(full(1), training=replace(full(1).training, steps=steps))  # type: ignore[type-var]
    (panel,) = [one for one in training_panels([run(trained, modality="image")]) if one.title == "Denoising errors"]
    drawn_lines = re.findall(r'data-y="([^"]*)"', panel.figure)
    assert [float(value) for value in drawn_lines[0].split()] == pytest.approx([0.0488, 0.0953], abs=1e-3)
    assert [float(value) for value in drawn_lines[1].split()] == pytest.approx([0.693, 0.693], abs=1e-3)
    assert "Denoising errors" not in {one.title for one in training_panels([run(trained)])}
