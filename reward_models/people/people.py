"""Comparisons for people to answer: the questions as a file and as a page, and the answers."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pipeline.data.pictures.picture import data_url
from pipeline.safe_text import visible
from pipeline.types import Group, derive_seed

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
ANSWERS = ("a", "b", "tie", "skip")


@dataclass(frozen=True, slots=True)
class Answers:
    """``votes``: counts of ``a``, ``b``, ``tie`` and ``skip`` by question id; ``faults``: messages about bad rows."""

    votes: dict[str, Counter[str]]
    faults: list[str]


def question(comparison: Group) -> dict[str, Any]:
    """Return a comparison as a plain row: id, prompt, and the two responses in a shuffled order."""
    first, second = (response.text for response in comparison.responses)
    a, b = (second, first) if _swapped(comparison) else (first, second)
    prompt = [{"role": message.role, "content": message.shown} for message in comparison.prompt.shown]
    return {"id": comparison.id, "prompt": prompt, "a": a, "b": b}


def questions_page(title: str, comparisons: Sequence[Group], pictures: Mapping[str, bytes] | None = None) -> str:
    """Render a self-contained page that asks the questions and saves the answers as a file; model text is escaped.

    ``pictures``: of images, the PNG file of each by its response's text; both stand side by side inside the page.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["visible"] = visible
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    questions = [question(comparison) for comparison in comparisons]
    shown = {} if pictures is None else {row[side]: data_url(pictures[row[side]]) for row in questions for side in "ab"}
    return template.render(title=title, questions=questions, images=shown)


def read_answers(content: bytes, comparisons: Iterable[Group]) -> Answers:
    """Read JSON lines of ``{"id": ..., "answer": "a" | "b" | "tie" | "skip"}``; all answers to a question count.

    A last line without a line break counts if it is whole; what is half written is a fault until it is whole.
    """
    asked = {comparison.id for comparison in comparisons}
    votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    faults: list[str] = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            faults.append(f"row {number}: not UTF-8 (byte {error.start + 1} of the row)")
            continue
        except (ValueError, RecursionError):
            faults.append(f"row {number}: not JSON{', and has no line break: cut off?' * (number == len(lines))}")
            continue
        fault = _answer_fault(row, asked)
        if fault is None:
            votes[row["id"]][row["answer"]] += 1
        else:
            faults.append(f"row {number}: {fault}")
    return Answers(dict(votes), faults)


def _answer_fault(row: Any, asked: set[str]) -> str | None:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or row["id"] not in asked:
        return f"id: {_shown(row.get('id') if isinstance(row, dict) else row)} is not one of the questions"
    if not isinstance(row.get("answer"), str) or row["answer"] not in ANSWERS:
        return f"answer: {_shown(row.get('answer'))}; must be one of {', '.join(ANSWERS)}"
    return None


def _shown(value: object) -> str:
    # Python does not write numbers of more than 4,300 digits.
    return "a huge number" if isinstance(value, int) and value.bit_length() > 64 else repr(value)[:80]


def with_votes(comparison: Group, votes: Counter[str]) -> Group:
    """Score each response by its share of the votes; a tie counts half for each, a skip not at all."""
    total = votes["a"] + votes["b"] + votes["tie"]
    if not total:
        return replace(comparison, scores=(None, None))
    a = (votes["a"] + votes["tie"] / 2) / total
    return replace(comparison, scores=(1 - a, a) if _swapped(comparison) else (a, 1 - a))


def _swapped(comparison: Group) -> bool:
    return derive_seed("side", comparison.id) % 2 == 1
