"""Settings of a model folder that somebody else wrote."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.models.foreign import embedding_rows, load_tokenizer, model_end_ids, model_settings, refused
from pipeline.sampling.sampler import engine_context
from tests.support.tiny_model import tiny_tokenizer


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "must hold a JSON object, not list"),
        ("{", "Expecting"),
        ('{"eos_token_id": "2"}', "eos_token_id: '2' is not a whole number"),
        ('{"eos_token_id": [[2]]}', r"eos_token_id: \[2\] is not a whole number"),
        ('{"eos_token_id": 1e400}', "eos_token_id: inf is not a whole number"),
        ('{"eos_token_id": true}', "eos_token_id: True is not a whole number"),
        ('{"x": ' + "[" * 100_000, "RecursionError"),
    ],
)
def test_odd_settings_are_named(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=rf"generation_config\.json: .*{said}"):
        model_end_ids(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff{}")
    with pytest.raises(UserError, match=r"config\.json: cannot be read: .*utf-8"):
        model_settings(tmp_path / "config.json")


def test_numbers_come_from_the_part_for_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"eos_token_id": [5], "vocab_size": 9, "text_config": {"vocab_size": 7, "max_position_embeddings": 30}}'
    )
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": -1}')
    assert model_end_ids(tmp_path) == (5,) and embedding_rows(tmp_path) == 7
    assert engine_context(100, str(tmp_path)) == 30
    assert embedding_rows(tmp_path / "none") is None


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"model": 3}', '{"model": {"type": "BPE", "vocab": [], "merges": 1}}']
)
def test_a_tokenizer_that_is_none_is_a_message(content: str, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"scorer\.path: .*cannot read the tokenizer"):
        load_tokenizer(str(tmp_path), "scorer.path: ")


def test_what_is_no_error_of_the_file_passes() -> None:
    with pytest.raises(KeyboardInterrupt), refused("x"):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"^as it was$"), refused("x"):
        raise UserError("as it was")
    with pytest.raises(UserError, match=r"^x: IndexError: 3$"), refused("x"):
        raise IndexError(3)
