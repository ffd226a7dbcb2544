"""Comparisons for people to answer: the questions as a file and as a page, and the answers."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

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
    prompt = [{"role": message.role, "content": message.content} for message in comparison.prompt.messages]
    return {"id": comparison.id, "prompt": prompt, "a": a, "b": b}


def questions_page(title: str, comparisons: Sequence[Group]) -> str:
    """Render a self-contained page that asks the questions and saves the answers as a file; model text is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["visible"] = visible
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, questions=[question(comparison) for comparison in comparisons])


def read_answers(text: str, comparisons: Iterable[Group]) -> Answers:
    """Read JSON lines of ``{"id": ..., "answer": "a" | "b" | "tie" | "skip"}``; all answers to a question count.

    A last line without a line break is skipped, since it may be half written.
    """
    asked = {comparison.id for comparison in comparisons}
    votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    faults: list[str] = []
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1], 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            faults.append(f"row {number}: not JSON")
            continue
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or row["id"] not in asked:
            faults.append(f"row {number}: id: {line[:80]} is not one of the questions")
        elif not isinstance(row.get("answer"), str) or row["answer"] not in ANSWERS:
            answer = repr(row.get("answer"))[:80]
            faults.append(f"row {number}: answer: {answer}; must be one of {', '.join(ANSWERS)}")
        else:
            votes[row["id"]][row["answer"]] += 1
    return Answers(dict(votes), faults)


def with_votes(comparison: Group, votes: Counter[str]) -> Group:
    """Score each response by its share of the votes; a tie counts half for each, a skip not at all."""
    total = votes["a"] + votes["b"] + votes["tie"]
    if not total:
        return replace(comparison, scores=(None, None))
    a = (votes["a"] + votes["tie"] / 2) / total
    return replace(comparison, scores=(1 - a, a) if _swapped(comparison) else (a, 1 - a))


def _swapped(comparison: Group) -> bool:
    return derive_seed("side", comparison.id) % 2 == 1
