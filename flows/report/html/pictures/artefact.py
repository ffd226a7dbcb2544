"""A round's images as Markdown for Prefect's artefacts: one picture of the grid, and one of pairs."""

from flows.report.html.pictures.section import CAPTION, score_words
from flows.report.html.pictures.shown import RoundPictures, ShownImage
from flows.report.html.pictures.thumbnails import contact_sheet
from pipeline.safe_text import markdown

# Pixels of an image in the grid; a sheet of 8 x 4 stays below 400 KB even of noise.
SHEET_SIDE = 64


def pictures_page(name: str, shown: RoundPictures) -> str:
    """The grid, with a table of its prompts and scores, then pairs that the round trained on."""
    parts = [f"# {markdown(name)} · images of round {shown.round}"]
    if shown.grid:
        parts += ["The same held-out prompts and seeds in every round, a prompt in each row."]
        parts += [f"![grid]({contact_sheet([[one.png for one in row] for _, row in shown.grid], SHEET_SIDE)})"]
        parts += [_table("scores", [(prompt, row) for prompt, row in shown.grid])]
    if shown.pairs:
        rows = [[pair.chosen.png, pair.rejected.png] for pair in shown.pairs]
        parts += ["Pairs that the round trained on: chosen at the left, rejected at the right."]
        parts += [f"![pairs]({contact_sheet(rows, SHEET_SIDE)})"]
        parts += [_table("chosen, rejected", [(pair.prompt, (pair.chosen, pair.rejected)) for pair in shown.pairs])]
    return "\n\n".join(parts) + "\n"


def _table(heading: str, rows: list[tuple[str, tuple[ShownImage, ...]]]) -> str:
    lines = [f"| row | prompt | {heading} |", "| ---: | --- | --- |"]
    for number, (prompt, images) in enumerate(rows, 1):
        scores = ", ".join(score_words(one.score) or "–" for one in images)
        lines.append(f"| {number} | {markdown(prompt, CAPTION)} | {scores} |")
    return "\n".join(lines)
