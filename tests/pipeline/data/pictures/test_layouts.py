"""Public sets of image preferences in their own layouts, written by ``datasets`` itself, and what they are read as."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, Value

from pipeline.config.data.images import ImageData
from pipeline.data.pictures.cells import picture_name
from pipeline.data.pictures.picture import Frame, decoded_picture, fitted
from pipeline.data.pictures.rows import wanted_pictures
from pipeline.data.reading import PromptRow, SourceRow, read_preferences, read_prompts
from pipeline.errors import UserError
from pipeline.types import TextGroup, TextPair, TextPreference, UnpairedText
from tests.support.pictures import BLUE, GREEN, RED, halves, picture

YELLOW = (255, 255, 0)
FRAME = Frame(8, 8)


def name(data: bytes) -> str:
    return picture_name(fitted(decoded_picture(data), FRAME))


def data(path: Path, **given: Any) -> ImageData:
    return ImageData(path=str(path), size=(8, 8), **given)


def rows(source: ImageData) -> list[SourceRow[TextPreference]]:
    return [*read_preferences(source)]


def pickapic(file: Path, *given: tuple[bytes, bytes, float, bool]) -> Path:
    """The columns and types of yuvalkirstain/pickapic_v1 and _v2."""
    features = Features(
        {
            "are_different": Value("bool"), "best_image_uid": Value("string"), "caption": Value("string"),
            "created_at": Value("timestamp[ns]"), "has_label": Value("bool"),
            "image_0_uid": Value("string"), "image_0_url": Value("string"),
            "image_1_uid": Value("string"), "image_1_url": Value("string"),
            "jpg_0": Value("binary"), "jpg_1": Value("binary"),
            "label_0": Value("float64"), "label_1": Value("float64"),
            "model_0": Value("string"), "model_1": Value("string"), "ranking_id": Value("int64"),
            "user_id": Value("int64"), "num_example_per_prompt": Value("int64"), "__index_level_0__": Value("int64"),
        }
    )  # fmt: skip
    made = [
        {
            "are_different": True, "best_image_uid": "a", "caption": f"caption {number}", "created_at": None,
            "has_label": has, "image_0_uid": "a", "image_0_url": "https://images.example.com/a.png",
            "image_1_uid": "b", "image_1_url": "https://images.example.com/b.png", "jpg_0": one, "jpg_1": other,
            "label_0": label, "label_1": 1 - label, "model_0": "m", "model_1": "m", "ranking_id": number, "user_id": 1,
            "num_example_per_prompt": 1, "__index_level_0__": number,
        }
        for number, (one, other, label, has) in enumerate(given)
    ]  # fmt: skip
    Dataset.from_list(made, features=features).to_parquet(str(file))
    return file


def test_pick_a_pic_gives_pairs_ties_and_rows_that_nobody_labelled(tmp_path: Path) -> None:
    red, blue = picture(RED, (32, 32), "JPEG", quality=95), picture(BLUE, (32, 32), "JPEG", quality=95)
    file = pickapic(
        tmp_path / "train-00000-of-00001.parquet",
        (red, blue, 1.0, True), (red, blue, 0.0, True), (red, blue, 0.5, True), (red, blue, 0.0, False),
    )  # fmt: skip
    found = rows(data(file))
    pairs = [row.value for row in found[:3]]
    assert [(pair.chosen, pair.rejected, pair.soft_label) for pair in pairs if isinstance(pair, TextPair)] == [
        (name(red), name(blue), 1.0), (name(blue), name(red), 1.0), (name(red), name(blue), 0.5)
    ]  # fmt: skip
    assert [pair.prompt.messages[0].content for pair in pairs if pair] == ["caption 0", "caption 1", "caption 2"]
    assert (found[3].value, found[3].cause, found[3].number) == (None, "unlabelled", 4)


def test_the_images_of_kept_rows_come_once_each_and_at_the_policys_size(tmp_path: Path) -> None:
    red, blue = picture(RED, (64, 32)), picture(BLUE, (32, 64))
    file = pickapic(tmp_path / "a.parquet", (red, blue, 1.0, True), (blue, red, 1.0, True), (red, red, 1.0, True))
    found = dict(wanted_pictures(data(file), {name(blue)}))
    assert {*found} == {name(blue)} and decoded_picture(found[name(blue)]).size == (8, 8)
    assert decoded_picture(found[name(blue)]).getpixel((4, 4)) == BLUE
    assert [one for one, _ in wanted_pictures(data(file), {name(red), name(blue)})] == [name(red), name(blue)]


def test_hpd_v2_gives_pairs_for_training_and_ranks_for_tests(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for file, colour in (("1.jpg", RED), ("2.jpg", BLUE), ("3.jpg", GREEN)):
        (tmp_path / "train" / file).write_bytes(picture(colour, form="PNG"))
    names = [name(picture(colour)) for colour in (RED, BLUE, GREEN)]
    train = [
        {"human_preference": [0, 1], "prompt": "a", "file_path": ["1.jpg", "2.jpg"], "user_hash": "x"},
        {"human_preference": [1, 0], "prompt": "b", "file_path": ["3.jpg", "2.jpg"], "user_hash": "x"},
        {"human_preference": [0, 0], "prompt": "c", "file_path": ["3.jpg", "2.jpg"], "user_hash": "x"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(train))
    found = [row.value for row in rows(data(tmp_path / "train.json", root=str(tmp_path / "train")))]
    assert [(pair.chosen, pair.rejected, pair.soft_label) for pair in found if isinstance(pair, TextPair)] == [
        (names[1], names[0], 1.0), (names[2], names[1], 1.0), (names[2], names[1], 0.5)
    ]  # fmt: skip
    test = [{"prompt": "a", "image_path": ["1.jpg", "2.jpg", "3.jpg"], "rank": [2, 3, 1], "raw_annotations": []}]
    (tmp_path / "test.json").write_text(json.dumps(test))
    (row,) = rows(data(tmp_path / "test.json", root=str(tmp_path / "train")))
    assert isinstance(row.value, TextGroup)
    assert (row.value.responses, row.value.rewards) == (tuple(names), (-2.0, -3.0, -1.0))


def imagereward(file: Path, *given: tuple[str, bytes, int, int, int]) -> Path:
    """The columns and types of THUDM/ImageRewardDB: id, image, rank, overall rating, images of the prompt."""
    features = Features(
        {
            "image": Image(), "prompt_id": Value("string"), "prompt": Value("string"),
            "classification": Value("string"), "image_amount_in_total": Value("int8"), "rank": Value("int8"),
            "overall_rating": Value("int8"), "image_text_alignment_rating": Value("int8"),
            "fidelity_rating": Value("int8"),
        }
    )  # fmt: skip
    made = [
        {
            "image": {"bytes": one, "path": None}, "prompt_id": prompt, "prompt": f"text of {prompt}",
            "classification": "People", "image_amount_in_total": amount, "rank": rank, "overall_rating": rating,
            "image_text_alignment_rating": 4, "fidelity_rating": 5,
        }
        for prompt, one, rank, rating, amount in given
    ]  # fmt: skip
    Dataset.from_list(made, features=features).to_parquet(str(file))
    return file


def test_image_reward_gives_a_group_a_prompt_by_ranks_or_by_a_rating(tmp_path: Path) -> None:
    red, blue, green = picture(RED), picture(BLUE), picture(GREEN)
    file = imagereward(
        tmp_path / "train.parquet",
        ("p1", red, 2, 4, 2), ("p1", blue, 1, 6, 2),
        ("p2", green, 1, 3, 3), ("p2", red, 3, 3, 3), ("p2", blue, 2, 5, 3),
        ("p3", green, 1, 3, 1),
        ("p4", green, 1, 3, 4), ("p4", red, 1, 3, 4),
    )  # fmt: skip
    found = rows(data(file))
    groups = [row.value for row in found[:2]]
    assert [(one.responses, one.rewards) for one in groups if isinstance(one, TextGroup)] == [
        ((name(red), name(blue)), (-2.0, -1.0)),
        ((name(green), name(red), name(blue)), (-1.0, -3.0, -2.0)),
    ]
    assert [row.number for row in found] == [1, 3, 6, 7]
    assert (found[2].cause, found[2].value) == ("lone_response", None)
    assert found[3].value is None and "2 images of the prompt stand together, but image_amount_in_total is 4" in str(
        found[3].fault
    )
    rated = rows(data(file, columns={"rating": "overall_rating"}))[1].value
    assert isinstance(rated, TextGroup) and rated.rewards == (3.0, 3.0, 5.0)


def test_diffusion_kto_gives_single_images_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(picture(RED))
    (tmp_path / "train" / "b.jpg").write_bytes(picture(BLUE))
    with (tmp_path / "train_processed_v3.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows(
            [["file_path", "caption", "label"], ["train/a.jpg", "a cat, sat", 1], ["train/b.jpg", "a dog", 0]]
        )
    found = [row.value for row in rows(data(tmp_path / "train_processed_v3.csv"))]
    assert [(one.completion, one.desirable) for one in found if isinstance(one, UnpairedText)] == [
        (name(picture(RED)), True), (name(picture(BLUE)), False)
    ]  # fmt: skip
    assert [one.prompt.messages[0].content for one in found if one] == ["a cat, sat", "a dog"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "saved by datasets"])
def test_files_and_captions_are_prompts_with_an_image(tmp_path: Path, kind: str) -> None:
    (tmp_path / "one.png").write_bytes(halves(RED, BLUE))
    if kind == "csv":
        (tmp_path / "rows.csv").write_text("file_name,text,answer\none.png,half and half,3\n")
    elif kind == "jsonl":
        row = {"file_name": "one.png", "text": "half and half", "answer": 3}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    else:
        made = [{"image": {"bytes": halves(RED, BLUE), "path": "one.png"}, "text": "half and half", "answer": "3"}]
        features = Features({"image": Image(), "text": Value("string"), "answer": Value("string")})
        Dataset.from_list(made, features=features).save_to_disk(str(tmp_path / "saved"))
    place = {"jsonl": "rows.jsonl", "csv": "rows.csv"}.get(kind, "saved")
    (row,) = [*read_prompts(data(tmp_path / place))]
    assert isinstance(row.value, PromptRow) and row.value.texts == (name(halves(RED, BLUE)),)
    assert (row.value.prompt.messages[0].content, row.value.prompt.answer) == ("half and half", "3")
    (row,) = rows(data(tmp_path / place))  # type: ignore[assignment]
    assert row.value is None and "prefer nothing" in str(row.fault)


def test_pairs_of_ones_own_with_a_soft_label(tmp_path: Path) -> None:
    for file, colour in (("a.png", RED), ("b.png", BLUE)):
        (tmp_path / file).write_bytes(picture(colour))
    made = [{"prompt": "p", "chosen": "a.png", "rejected": "b.png", "soft_label": label} for label in (0.9, 0.2, 1.5)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    found = rows(data(tmp_path / "pairs.jsonl"))
    (first, second) = (row.value for row in found[:2])
    assert isinstance(first, TextPair) and isinstance(second, TextPair)
    assert (first.chosen, first.soft_label) == (name(picture(RED)), 0.9)
    assert (second.chosen, second.soft_label) == (name(picture(BLUE)), 0.8)
    assert found[2].fault == "soft_label: 1.5; must be from 0 to 1"


def one_pair(tmp_path: Path, chosen: object, **given: Any) -> SourceRow[TextPreference]:
    (tmp_path / "b.png").write_bytes(picture(BLUE))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "p", "chosen": chosen, "rejected": "b.png"}) + "\n")
    (row,) = rows(data(tmp_path / "rows.jsonl", **given))
    return row


@pytest.mark.parametrize(
    ("chosen", "cause", "said"),
    [
        ("https://example.com/a.png", "image_url", "chosen: 'https://example.com/a.png' is a URL; nothing is fetched"),
        ("data:image/png;base64,AAAA", "image_url", "is a URL"),
        ("s3://bucket/a.png", "image_url", "is a URL"),
        ("gone.png", "missing_image", "chosen: no file 'gone.png' in"),
        ("../outside.png", "missing_image", r"is outside .* \(root\)"),
        ("/etc/hostname", "missing_image", r"is outside .* \(root\)"),
        ("text.png", "unreadable_image", "chosen: not a picture .* begins with the bytes 68 65 6c 6c 6f"),
        ("cut.png", "unreadable_image", "chosen: damaged: "),
        ("wide.png", "image_size", "16 x 8 pixels, but the policy draws 8 x 8; fit: crop or stretch scales it"),
        ("large.png", "huge_image", "chosen: 100 x 100 pixels; at most 5,000"),
        ({"bytes": None, "path": None}, "missing_image", "chosen: is empty"),
        (["b.png"], "missing_image", "chosen: must be bytes or a path, not list"),
        (None, "malformed", "chosen: is null"),
        ("a\0b", "missing_image", "cannot be read"),
    ],
)
def test_faults_of_images_have_their_causes(tmp_path: Path, chosen: object, cause: str, said: str) -> None:
    (tmp_path.parent / "outside.png").write_bytes(picture(RED))
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(picture(RED, (40, 40), "BMP")[:1000])
    (tmp_path / "wide.png").write_bytes(picture(RED, (16, 8)))
    (tmp_path / "large.png").write_bytes(picture(RED, (100, 100)))
    row = one_pair(tmp_path, chosen, fit="exact", most_pixels=5_000)
    assert row.value is None and row.cause == cause
    assert re.search(said, str(row.fault)), row.fault


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.png").write_bytes(picture(YELLOW))
    (inner / "link.png").symlink_to(tmp_path / "secret.png")
    assert one_pair(inner, "link.png").cause == "missing_image"
    assert one_pair(inner, "inner/link.png", root=str(tmp_path)).cause == "missing_image"


def test_columns_of_no_layout_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "p", "output": "x"}) + "\n")
    with pytest.raises(UserError, match=r"row 1: columns of no layout of images: 'instruction', 'output'"):
        rows(data(tmp_path / "rows.jsonl"))
