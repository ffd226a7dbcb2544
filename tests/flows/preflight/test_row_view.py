"""The row that check shows: its tokens as text, the trained ones marked, faults and unread columns named."""

import json
from pathlib import Path

import pytest

from flows.preflight.check import check_config
from flows.preflight.row_view import view_row
from pipeline.config import ChatSettings, FileData
from pipeline.data.faults import Tokens
from pipeline.data.reading import SourceRow
from pipeline.errors import UserError
from pipeline.safe_text import visible
from pipeline.types import Message, Prompt, TextPair, TextPreference
from tests.support.tiny_model import save_tiny_model

ROWS = [
    {"prompt": f"a dog {n}", "chosen": "to the barn", "rejected": "on the mat", "chosen_score": n, "model": "x"}
    for n in range(12)
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_tiny_model(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"prompt": "p"}]))
    (folder / "run.yaml").write_text(
        f"name: r\nmode: offline\npolicy: {{path: {folder / 'model'}}}\npairs: {{path: {folder / 'rows.jsonl'}}}\n"
        "held_out: {prompts: 2}\nlimits: {malformed: 1}\n"
    )
    return folder / "run.yaml"


def shown(config: Path, capsys: pytest.CaptureFixture[str], row: int | None, *settings: str) -> list[str]:
    check_config([config], [*settings], config.with_name("faults.jsonl"), row)
    printed = capsys.readouterr().out
    return printed[printed.index("pairs: " + str(config.parent)) :].splitlines()


def test_check_ends_with_the_first_row_or_the_one_asked_for(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config.parent / "rows.jsonl"
    for row, number in ((None, 1), (3, 3)):
        assert shown(config, capsys, row) == [
            f"pairs: {file}, row {number}, as the model sees it; tokens between ⟦ and ⟧ are trained on:",
            f"  prompt: <|user|>a dog {number - 1}<|end|><|assistant|>",
            "  chosen: ⟦to the barn<|end|>⟧",
            "  rejected: ⟦on the mat<|end|>⟧",
            f"  soft label 1, chosen score {number - 1}",
            "  columns that are not read: model",
        ]


def test_a_row_with_a_fault_is_shown_as_such(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (said,) = shown(config, capsys, 13)
    assert said.endswith("row 13: malformed: no column 'chosen'; it has 'prompt'")


def test_a_row_is_shown_even_if_the_data_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="malformed: 1 of 13 rows"):
        check_config([config], ["limits.malformed=0"], config.with_name("faults.jsonl"), 2)
    assert "  chosen: ⟦to the barn<|end|>⟧" in capsys.readouterr().out.splitlines()


def test_a_row_past_the_end_is_a_mistake(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"--show: pairs: no row 99: there are 13 rows, and the last one is row 13$"):
        check_config([config], [], config.with_name("faults.jsonl"), 99)
    assert "no row 99" in capsys.readouterr().out


def test_what_is_shown_of_a_row_holds_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    column, data = "a\x1b[2J\u200bb\nc", FileData(path="rows.jsonl")
    record: SourceRow[TextPreference] = SourceRow("r\x1b[31m.jsonl", 1, None, f"no column {column}", columns=(column,))
    lines = view_row("pairs", record, None, data)
    pair = TextPair(Prompt((Message("user", "a\x1b[1m"),)), "b\u202e", "c\u200b")
    lines += view_row("pairs", SourceRow("r\x1b[31m.jsonl", 1, pair, columns=(column,)), None, data)
    lines += view_row("pairs", SourceRow("r", 1, pair), Tokens(Refusing(), ChatSettings()), data)  # type: ignore[arg-type]
    assert any("refused: no�[7m" in line for line in lines)
    assert [line for line in lines if visible(line) != line or len(line.splitlines()) > 1] == []


class Refusing:
    """A chat whose template refuses every row, in words of its own."""

    def prompt_ids(self, messages: object) -> tuple[int, ...]:
        raise UserError("no\x1b[7m")

    def spell(self, ids: object) -> str:
        return str(ids)
