"""Sample responses as data for the page's script."""

from typing import Any

from jinja2.utils import htmlsafe_json_dumps

from flows.report.html.panel import Runs
from pipeline.safe_text import visible

# As the page writes data: letters stay letters, or a Chinese one would take twice the room.
JSON_FORM: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}


def page_json(value: object) -> str:
    """``value`` as the page's template writes it."""
    return htmlsafe_json_dumps(value, **JSON_FORM)


def samples_data(runs: Runs, room: int) -> dict[str, Any] | None:
    """Responses by prompt and place (run and round), for the page's script; and the two places that it shows first.

    ``room``: bytes that the prompts may take as JSON; those that do not fit are left out.
    """
    places = [
        (number, round_)
        for number, run in enumerate(runs)
        for round_ in sorted({round_ for sample in run.samples.samples for round_ in sample.responses})
    ]
    if not places:
        return None
    index = {place: order for order, place in enumerate(places)}
    prompts: dict[str, dict[int, list[Any]]] = {}
    for number, run in enumerate(runs):
        for sample in run.samples.samples:
            cells = prompts.setdefault(visible(sample.prompt), {})
            for round_, (text, score) in sample.responses.items():
                cells[index[number, round_]] = [visible(text), score]
    labels = [f"round {r}" if len(runs) == 1 else f"{runs[n].name} · round {r}" for n, r in places]
    held_out = max(run.samples.prompts for run in runs)
    newest = [max(order for (n, _), order in index.items() if n == number) for number in {n for n, _ in places}]
    right = newest[-1]
    left = 0 if len(newest) == 1 else newest[0]
    items = []
    for prompt, cells in prompts.items():
        item = {"prompt": prompt, "cells": cells}
        room -= len(page_json(item).encode()) + 1
        if room < 0:
            break
        items.append(item)
    return {"places": labels, "left": left, "right": right, "items": items, "held_out": held_out}
