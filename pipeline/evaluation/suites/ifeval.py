"""Verifiable instructions: which of them responses follow, by the checks of lm-evaluation-harness. Torch-free.

IFEval (arXiv:2311.07911): strict is the response as it is; loose takes the best of eight forms of it, without its
first or last line or its asterisks.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.intervals import rate_interval
from pipeline.evaluation.suites.result import Measure, SuiteResult, told_apart
from pipeline.types.instructions import Instructions

# Checks that split texts into sentences or words by nltk's model of them.
_OF_SENTENCES = frozenset(("length_constraints:number_sentences", "change_case:capital_word_frequency"))
_NEEDED = ("lm_eval", "langdetect", "nltk", "immutabledict")


def require_checks(rows: Sequence[Instructions], field: str) -> None:
    """Refuse checks that are not known, or cannot run here. Raises ``UserError``."""
    known = _checks(field).INSTRUCTION_DICT
    for row in rows:
        for one in row.ids:
            if one not in known:
                raise UserError(f"{field}: row {row.key}: {one!r} is no check; known: {', '.join(sorted(known))}")
    used = {one for row in rows for one in row.ids} & _OF_SENTENCES
    if used and not _has_sentences():
        raise UserError(
            f"{field}: {', '.join(sorted(used))} need nltk's model of sentences; once: python -m nltk.downloader "
            "punkt_tab"
        )


def measure_ifeval(rows: Sequence[Instructions], responses: Sequence[str], field: str = "ifeval") -> SuiteResult:
    """Measure ``responses``, one per row: the four published accuracies, each with its interval.

    Beside them the strict accuracy of instructions by their family, such as ``keywords``.

    Several instructions of one prompt are followed or missed together, so theirs is an interval over prompts too.
    """
    checks = _harness(field)
    found = [checks.process_results(row.document, [text]) for row, text in zip(rows, responses, strict=True)]
    metrics: dict[str, Measure] = {}
    for kind in ("strict", "loose"):
        metrics[f"prompt_{kind}"] = rate_interval([float(one[f"prompt_level_{kind}_acc"]) for one in found])
        followed = [one[f"inst_level_{kind}_acc"] for one in found]
        shares = [sum(one) / len(one) for one in followed]
        metrics[f"instruction_{kind}"] = rate_interval(shares, weights=[float(len(one)) for one in followed])
    metrics |= _by_family(rows, found)
    items = {row.key: float(one["prompt_level_strict_acc"]) for row, one in zip(rows, found, strict=True)}
    return SuiteResult("ifeval", "prompt_strict", metrics, items if len(items) == len(rows) else {})


def _by_family(rows: Sequence[Instructions], found: Sequence[Mapping[str, Any]]) -> dict[str, Measure]:
    """``instruction_strict_of_FAMILY``; a row is what a prompt asks of the family, and which of these were followed."""
    families, asked = list[str](), list[list[bool]]()
    for row, one in zip(rows, found, strict=True):
        of: dict[str, list[bool]] = {}
        for name, followed in zip(row.ids, one["inst_level_strict_acc"], strict=True):
            of.setdefault(name.partition(":")[0], []).append(followed)
        families += of
        asked += of.values()

    def share(own: list[list[bool]]) -> Measure:
        return rate_interval([sum(one) / len(one) for one in own], weights=[float(len(one)) for one in own])

    return told_apart("instruction_strict", families, asked, share)


def _harness(field: str) -> Any:
    with _no_download(field):
        from lm_eval.tasks.ifeval import utils

        return utils


def _checks(field: str) -> Any:
    with _no_download(field):
        from lm_eval.tasks.ifeval import instructions_registry

        return instructions_registry


def _has_sentences() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


@contextmanager
def _no_download(field: str) -> Iterator[None]:
    """Keep the harness from downloading when it is imported: it does so in the first of several processes alone."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{field}: needs the package {missing[0]}; pip install 'prefloop[evals]'")
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before
