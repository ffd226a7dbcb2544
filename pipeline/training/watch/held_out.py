"""Evaluations on held-out pairs in the middle of a training run: what they measure, and their log. Torch-free."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Formula
from pipeline.errors import RunError
from pipeline.evaluation.held_out import PairScores, margin_loss, pair_margins, pair_scores
from pipeline.evaluation.metrics import pair_accuracy
from pipeline.storage.atomic import json_line, write_text

HELD_OUT_LOG = "held_out.jsonl"


@dataclass(frozen=True, slots=True)
class PairReading:
    """The policy's values for one held-out pair.

    Attributes:
        chosen, rejected: log-probs of the whole responses, nats.
        chosen_tokens, rejected_tokens: their numbers of tokens.
        ending: log-prob of the chosen response's end token, nats; None: it ends without one.
        entropy: mean over the chosen response's tokens of the entropy of the next token, nats.
    """

    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int
    ending: float | None
    entropy: float


@dataclass(frozen=True, slots=True)
class HeldOutReport:
    """One evaluation on held-out pairs.

    Attributes:
        step: the number of optimiser steps before it; 0: the policy that training starts from.
        margins: of each pair, β times the difference of the loss's scores; see ``pair_margins``.
        chosen_logp_per_token: nats, mean over chosen responses of the mean over tokens.
        ending: log-prob of chosen responses' end tokens, nats, mean; None: none ends with one.
        entropy: nats a token, mean over chosen responses.
        scores: (chosen, rejected) of each pair at the start, which later margins are measured from; else empty.
    """

    step: int
    margins: tuple[float, ...]
    chosen_logp_per_token: float
    ending: float | None
    entropy: float
    scores: tuple[PairScores, ...] = ()

    @property
    def margin(self) -> float:
        """Mean margin."""
        return sum(self.margins) / len(self.margins)

    @property
    def accuracy(self) -> float:
        """Share of pairs whose chosen response has the higher score; ties count half."""
        return sum(pair_accuracy(self.margins)) / len(self.margins)

    @property
    def log_loss(self) -> float:
        """Mean of −log σ(margin), nats: ln 2 where the policy is its reference."""
        return sum(map(margin_loss, self.margins)) / len(self.margins)


def report_of(step: int, readings: Sequence[PairReading], loss: Formula, start: HeldOutReport | None) -> HeldOutReport:
    """Return the evaluation after ``step`` steps, from one reading per pair, in the same order each time.

    ``start``: the first evaluation of the run, which margins are measured from; None: this is the first.
    """
    scores = tuple(pair_scores((r.chosen, r.rejected), (r.chosen_tokens, r.rejected_tokens), loss) for r in readings)
    endings = [r.ending for r in readings if r.ending is not None]
    count = len(readings)
    return HeldOutReport(
        step,
        pair_margins(scores, scores if start is None else start.scores, loss),
        sum(r.chosen / r.chosen_tokens for r in readings) / count,
        sum(endings) / len(endings) if endings else None,
        sum(r.entropy for r in readings) / count,
        scores if start is None else (),
    )


def held_out_of(plain: Mapping[str, Any]) -> HeldOutReport:
    """Return the evaluation that ``plain`` describes: its fields, as JSON has them."""
    scores = tuple((chosen, rejected) for chosen, rejected in plain["scores"])
    return HeldOutReport(**{**plain, "margins": tuple(plain["margins"]), "scores": scores})


def best_report(reports: Sequence[HeldOutReport]) -> HeldOutReport:
    """Return the evaluation with the smallest log-loss, the first of equal ones."""
    return min(reports, key=lambda report: report.log_loss)


def furthest_report(reports: Sequence[HeldOutReport]) -> HeldOutReport:
    """Return the evaluation with the largest mean margin, the first of equal ones."""
    return max(reports, key=lambda report: report.margin)


def gains_nothing(reports: Sequence[HeldOutReport], patience: int | None) -> bool:
    """Return whether the last ``patience`` evaluations brought no smaller log-loss than those before."""
    if patience is None:
        return False
    losses = [report.log_loss for report in reports]
    return len(losses) - 1 - losses.index(min(losses)) >= patience


def write_held_out(folder: Path, reports: Iterable[HeldOutReport]) -> None:
    """Write ``held_out.jsonl``: one line per evaluation, means only."""
    write_text(folder / HELD_OUT_LOG, "".join(json_line(_told(report)) for report in reports))


@dataclass(frozen=True, slots=True)
class HeldOutLine:
    """A line of ``held_out.jsonl``: means of one ``HeldOutReport``, ``pairs`` their number."""

    step: int
    pairs: int
    accuracy: float
    margin: float
    log_loss: float
    chosen_logp_per_token: float
    ending: float | None
    entropy: float


def _told(report: HeldOutReport) -> dict[str, float | None]:
    names = ("accuracy", "margin", "log_loss", "chosen_logp_per_token", "ending", "entropy")
    return {"step": report.step, "pairs": len(report.margins)} | {n: report.__getattribute__(n) for n in names}


def read_held_out(folder: Path) -> tuple[HeldOutLine, ...]:
    """Return the evaluations in ``held_out.jsonl``; empty without one. Raises ``RunError`` if it cannot be read."""
    file = folder / HELD_OUT_LOG
    try:
        return tuple(HeldOutLine(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file}: not a readable list of evaluations ({error})") from None
