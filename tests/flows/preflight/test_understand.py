"""What is found about the data is said, written into the run's config, and kept by a run that goes on."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.preflight.understand import understood, understood_source
from pipeline.config import ChatSettings, FileData, PretrainedPolicy, RunConfig, UserData
from pipeline.config.files import dump_config
from pipeline.errors import UserError
from pipeline.models.chat import Chat
from pipeline.types import Message
from tests.pipeline.data.detection.public_shapes import SHAPES, Row
from tests.support.tiny_model import TEMPLATE, tiny_tokenizer


def config_of(path: str, **pairs: object) -> RunConfig:
    plain = {"name": "t", "mode": "offline", "policy": {"path": "m"}, "loss": {"preset": "dpo"}}
    return RunConfig.model_validate({**plain, "pairs": {"path": path, **pairs}})


def rows_file(folder: Path, rows: list[Row]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pairs_of_run(config: RunConfig) -> UserData:
    assert config.pairs is not None
    return config.pairs


def test_what_is_found_is_said_and_its_settings_say_the_same(tmp_path: Path) -> None:
    path = rows_file(tmp_path, SHAPES["llmbar"].rows)
    config, lines = understood(config_of(path))
    assert lines == [
        "pairs: prompt ← input · chosen ← output_1, or the other, by label: 1 (this), 2 (the other) · "
        "rejected ← output_2",
        "  the same as settings: pairs.columns.chosen=output_1 pairs.columns.rejected=output_2 "
        "pairs.columns.votes=label pairs.columns.prompt=input pairs.votes.chosen=1 pairs.votes.rejected=2 "
        "pairs.votes.tie=null",
    ]
    columns = {"prompt": "input", "chosen": "output_1", "rejected": "output_2", "votes": "label"}
    again, _ = understood(config_of(path, columns=columns, votes={"chosen": 1, "rejected": 2, "tie": None}))
    assert again == config


def test_several_readings_are_refused_with_the_settings_of_each(tmp_path: Path) -> None:
    path = rows_file(tmp_path, SHAPES["pku-saferlhf"].rows)
    with pytest.raises(UserError, match=r"2 readings fit; add the settings of the right one") as caught:
        understood(config_of(path))
    for criterion in ("better_response_id", "safer_response_id"):
        assert f"\n    pairs.columns.votes={criterion}\n" in f"{caught.value}\n"


def test_a_run_that_goes_on_keeps_what_it_was_made_with(tmp_path: Path) -> None:
    path, root = rows_file(tmp_path, SHAPES["ultrafeedback, binarised"].rows), tmp_path / "run"
    root.mkdir()
    given = config_of(path)
    found, _ = understood(given, root)
    assert pairs_of_run(found).columns.chosen_score == "score_chosen"
    for made in (found, given):
        (root / "config.yaml").write_text(dump_config(made))
        assert understood(given, root) == (made, [])
    Path(path).unlink()
    assert understood(given, root) == (given, [])
    other = config_of(path, columns={"chosen_score": "score"})
    with pytest.raises(UserError, match="no such file"):
        understood(other, root)
    (root / "config.yaml").write_text(dump_config(config_of(path, votes={"label": "majority"})))
    rows_file(tmp_path, SHAPES["ultrafeedback, binarised"].rows)
    assert understood(given, root)[0] == found


def test_data_without_a_reading_is_left_as_it_is_set_and_its_columns_named(tmp_path: Path) -> None:
    path = rows_file(tmp_path, [{"alpha": 1, "beta": "x"}] * 3)
    given = config_of(path)
    assert understood(given) == (given, ["pairs: no reading of the first rows was found; columns: alpha, beta"])


def test_a_name_that_is_no_file_is_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(path: str, *_: object, **more: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"{path}, split {more['split']}")

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = FileData(path="owner/name", split="test", columns={"prompt": "q"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="owner/name: cannot be read as a data set: owner/name, split test"):
        understood_source(source, "pairs")
    with pytest.raises(UserError, match=r"data/pairs.jsonl: no such file"):
        understood_source(FileData(path="data/pairs.jsonl"), "pairs")


def test_a_run_stays_with_the_day_that_its_template_writes(tmp_path: Path) -> None:
    path, root, model = rows_file(tmp_path, SHAPES["ultrafeedback, binarised"].rows), tmp_path / "run", tmp_path / "m"
    root.mkdir()
    tokenizer = tiny_tokenizer(template="{{ strftime_now('%d %b %Y') }}" + TEMPLATE)
    tokenizer.save_pretrained(model)
    given = config_of(path).model_copy(update={"policy": PretrainedPolicy(path=str(model))})
    found, lines = understood(given, root)
    today = found.chat.date
    assert today is not None
    assert abs(date.fromisoformat(today) - datetime.now(UTC).date()) <= timedelta(days=1)
    assert any(line.startswith(f"chat.date={today}: ") for line in lines)
    begun = found.model_copy(update={"chat": ChatSettings(date="2024-02-29")})
    (root / "config.yaml").write_text(dump_config(begun))
    assert understood(given, root)[0].chat.date == "2024-02-29"
    shown = Chat(tokenizer, ChatSettings(date="2024-02-29"))
    assert shown.decode(shown.prompt_ids((Message("user", "a"),))) == "29 Feb 2024a"
    assert shown.template_hash != Chat(tokenizer, ChatSettings(date="2024-03-01")).template_hash
    for settings in ({"template": "plain"}, {"date": "2024-02-29"}):
        asked = given.model_copy(update={"chat": ChatSettings.model_validate(settings)})
        assert understood(asked)[0].chat == asked.chat


def test_of_a_hub_name_only_a_cached_template_without_a_date_leaves_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[dict[str, object]] = []

    def cached(path: str, **options: object) -> str:
        asked.append({"path": path, **options})
        if not any(tmp_path.joinpath("cache").glob("*")):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    rows, root = rows_file(tmp_path, SHAPES["ultrafeedback, binarised"].rows), tmp_path / "run"
    given = config_of(rows).model_copy(update={"policy": PretrainedPolicy(path="owner/model")})
    found, lines = understood(given)
    assert found.chat.date is not None and asked == [
        {"path": "owner/model", "revision": None, "local_files_only": True}
    ]
    assert any(line.startswith(f"chat.date={found.chat.date}: owner/model is not here yet") for line in lines)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "config.json").write_text("{}")
    assert understood(given)[0].chat.date is not None, "a cache without the tokenizer's files does not say"
    tiny_tokenizer(template="{{ strftime_now('%d %b %Y') }}" + TEMPLATE).save_pretrained(tmp_path / "cache")
    assert understood(given)[0].chat.date is not None
    tiny_tokenizer().save_pretrained(tmp_path / "cache")
    assert understood(given)[0].chat.date is None
    root.mkdir()
    for day in ("2024-02-29", None):
        begun = found.model_copy(update={"chat": ChatSettings(date=day)})
        (root / "config.yaml").write_text(dump_config(begun))
        assert understood(given, root)[0].chat.date == day, "a run stays as it was begun, whatever is fetched later"


def test_a_template_without_a_date_leaves_the_setting_alone(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    path = rows_file(tmp_path, SHAPES["ultrafeedback, binarised"].rows)
    given = config_of(path).model_copy(update={"policy": PretrainedPolicy(path=str(tmp_path / "m"))})
    assert understood(given)[0].chat == ChatSettings()


@pytest.mark.parametrize("day", ["2026-02-30", "today", 20260230])
def test_a_date_that_is_none_is_refused(day: object) -> None:
    with pytest.raises(ValidationError, match="date"):
        ChatSettings.model_validate({"date": day})
    assert ChatSettings.model_validate({"date": date(2026, 1, 31)}).date == "2026-01-31"
