"""Chat templates that are named or given values: refused before the data is read, part of keys, with pinned dates."""

import json
from pathlib import Path

import pytest

from flows.preflight.check import check_run
from flows.preflight.understand import understood
from flows.run_folder.key_parts import IDS_ONLY, plain_section, shared_template
from pipeline.config import ClassifierScorer, LengthScorer, PretrainedPolicy, RunConfig, ScratchPolicy
from pipeline.config.files import load_config
from pipeline.errors import UserError
from tests.support.small_config import write_small_config
from tests.support.tiny_model import TEMPLATE, save_tiny_model, tiny_tokenizer

READS = "{{ greeting if greeting is defined else '' }}{{ mood | default('calm') }}" + TEMPLATE


def made(folder: Path, template: str | None = READS, *settings: str) -> RunConfig:
    model = save_tiny_model(folder / "model")
    tokenizer = tiny_tokenizer(template=template)
    tokenizer.save_pretrained(model)
    if template is None:
        (model / "chat_template.jinja").unlink(missing_ok=True)
    return load_config([write_small_config(folder, model)], settings)


def test_a_variable_that_the_template_does_not_read_is_refused_with_those_that_it_reads(tmp_path: Path) -> None:
    config = made(tmp_path, READS, "chat.template_kwargs={greetin: hi}", "prompts.path=/nowhere")
    said = r"chat\.template_kwargs: greetin: .*model: its chat template does not read it; it reads greeting, mood; did"
    with pytest.raises(UserError, match=said):
        check_run(config)
    check_run(load_config([tmp_path / "run.yaml"], ["chat.template_kwargs={greeting: hi}"]))


def test_values_without_a_template_are_refused(tmp_path: Path) -> None:
    config = made(tmp_path, None, "chat.template_kwargs={greeting: hi}")
    with pytest.raises(UserError, match=r"greeting: .*model has no chat template that could read it"):
        check_run(config)
    with pytest.raises(UserError, match="greeting: a policy of kind scratch has no chat template"):
        check_run(config.model_copy(update={"policy": ScratchPolicy()}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"chat\.template_file: .*own\.jinja: no such file"),
        ("a\nb\n{% if %}", r"chat\.template_file: .*own\.jinja, line 3: "),
        (b"\xff", r"own\.jinja: cannot be read \(not UTF-8 text\)"),
    ],
)
def test_a_template_file_that_cannot_be_read_is_refused_with_its_line(
    tmp_path: Path, text: str | bytes | None, said: str
) -> None:
    file = tmp_path / "own.jinja"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = made(tmp_path, READS, f"chat.template_file={file}", "prompts.path=/nowhere")
    with pytest.raises(UserError, match=said):
        check_run(config)
    uncached = config.model_copy(update={"policy": PretrainedPolicy(path="owner/none")})
    with pytest.raises(UserError, match=said):
        check_run(uncached)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["chat.template=plain", "chat.template_kwargs={a: 1}"], "template_kwargs: template: plain reads no chat"),
        (["chat.template=plain", "chat.template_file=x"], "template_file: template: plain reads no chat template"),
        (["chat.template_kwargs={tools: []}"], "template_kwargs: tools is no variable to set"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config([write_small_config(tmp_path, tmp_path)], settings)


def test_values_and_the_file_s_content_are_in_the_keys_and_defaults_in_none(tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "own.jinja", tmp_path / "moved.jinja"
    for place in (file, elsewhere):
        place.write_text(TEMPLATE)
    config = made(tmp_path)

    def key(**chat: object) -> str:
        given = config.model_copy(update={"chat": config.chat.model_copy(update=chat)})
        scorer = ClassifierScorer(path="m")
        return json.dumps(
            [plain_section(given, "chat"), plain_section(given, f"chat{IDS_ONLY}"), shared_template(given, scorer)],
            sort_keys=True,
        )

    before = key(template_file=str(file))
    assert key(template_file=str(elsewhere)) == before != key()
    file.write_text(TEMPLATE + " ")
    assert key(template_file=str(file)) != before
    assert key(template_kwargs={"mood": "gay"}) != key(template_kwargs={"mood": "sad"}) != key()
    plain = plain_section(config, "chat")
    assert isinstance(plain, dict) and {"template_kwargs", "template_file"}.isdisjoint(plain)
    assert shared_template(config, ClassifierScorer(path="m")) == {}
    given = config.model_copy(update={"chat": config.chat.model_copy(update={"template_kwargs": {"mood": "sad"}})})
    assert shared_template(given, LengthScorer()) == {}, "no reward model reads it"


def test_a_file_that_writes_the_day_pins_it(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ strftime_now('%A %-d %B, %H:%M') }}" + TEMPLATE)
    found, lines = understood(made(tmp_path, READS, f"chat.template_file={file}"))
    assert found.chat.date is not None and any("own.jinja writes today's date" in line for line in lines)
    file.write_text(TEMPLATE)
    assert (
        understood(found.model_copy(update={"chat": found.chat.model_copy(update={"date": None})}))[0].chat.date is None
    )
