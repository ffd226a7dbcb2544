from typing import Any

from pipeline.report import Comparison, render_report
from pipeline.rounds_table import COLUMNS, cell

EVIL = "<script>alert(1)</script> [x](javascript:alert(2)) \u202e\x1b[2J\0"


def page(rounds: list[dict[str, Any]], comparisons: list[Comparison]) -> str:
    return render_report("run", "name: run\n", rounds, comparisons, [])


def test_what_a_model_wrote_is_text_and_nothing_else() -> None:
    rounds = [{"round": 0, "reward": 1.0}, {"round": 1, "reward": 2.0}]
    html = page(rounds, [Comparison(EVIL, EVIL, "1.00", EVIL, "2.00")])
    assert EVIL not in html and "<script>alert(1)" not in html
    assert not {"\u202e", "\x1b", "\0"} & set(html)
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3


def test_the_page_needs_nothing_from_outside() -> None:
    html = page([{"round": 0, "reward": 1.0}, {"round": 1, "reward": 2.0}], [])
    head = html[: html.index("<body>")]
    assert "default-src 'none'" in head
    assert "<link" not in html and "<script src" not in html


def test_columns_without_a_value_are_left_out() -> None:
    html = page(
        [{"round": 0, "reward": 1.25, "kl_to_start": 0.0}, {"round": 1, "reward": 2.5, "kl_to_start": None}], []
    )
    assert "1.250" in html and "2.500" in html and "slot err greedy" not in html
    assert "<td>–</td>" in html


def test_cells() -> None:
    assert [cell(0.1234, "{:.1%}"), cell(None, "{:.1%}"), cell(2.0, "{:.3f}")] == ["12.3%", "–", "2.000"]


def test_headings_are_short_enough_for_a_terminal() -> None:
    assert all(len(line) <= 8 for _, heading, _ in COLUMNS for line in heading.split("\n"))
