"""Evaluations on held-out pairs in the middle of a training run: what they measure, and their log. Torch-free."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Composition
from pipeline.config.loss.needs import needs_of
from pipeline.errors import RunError
from pipeline.storage.atomic import json_line, write_text

HELD_OUT_LOG = "held_out.jsonl"


@dataclass(frozen=True, slots=True)
class PairReading:
    """The policy's values for one held-out pair.

    Attributes:
        chosen, rejected: log-probs of the whole responses, nats.
        chosen_tokens, rejected_tokens: their numbers of tokens.
        ending: log-prob of the chosen response's last token, nats.
        entropy: mean over the chosen response's tokens of the entropy of the next token, nats.
    """

    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int
    ending: float
    entropy: float


@dataclass(frozen=True, slots=True)
class HeldOutReport:
    """One evaluation on held-out pairs.

    Attributes:
        step: the number of optimiser steps before it; 0: the policy that training starts from.
        margins: of each pair, β times the difference of the loss's scores; see ``margins_of``.
        chosen_logp_per_token: nats, mean over chosen responses of the mean over tokens.
        ending: log-prob of chosen responses' last tokens, nats, mean.
        entropy: nats a token, mean over chosen responses.
        scores: (chosen, rejected) of each pair at the start, which later margins are measured from; else empty.
    """

    step: int
    margins: tuple[float, ...]
    chosen_logp_per_token: float
    ending: float
    entropy: float
    scores: tuple[tuple[float, float], ...] = ()

    @property
    def margin(self) -> float:
        """Mean margin."""
        return sum(self.margins) / len(self.margins)

    @property
    def accuracy(self) -> float:
        """Share of pairs whose chosen response has the higher score; ties count half."""
        return sum((m > 0) + (m == 0) / 2 for m in self.margins) / len(self.margins)

    @property
    def log_loss(self) -> float:
        """Mean of −log σ(margin), nats: ln 2 where the policy is its reference."""
        return sum(max(-m, 0.0) + math.log1p(math.exp(-abs(m))) for m in self.margins) / len(self.margins)


def length_power(loss: Composition) -> float:
    """Return p of a response's score Σ log π / length^p, as in the loss.

    Likelihood alone is compared per token, since longer responses are less likely.
    """
    if needs_of(loss).only_chosen:
        return 1.0
    return {"sum": 0.0, "mean": 1.0, "power": loss.length_power}[loss.aggregate]


def report_of(
    step: int, readings: Sequence[PairReading], loss: Composition, start: HeldOutReport | None
) -> HeldOutReport:
    """Return the evaluation after ``step`` steps, from one reading per pair, in the same order each time.

    A loss with a reference has the margins log π − log π_start (DPO, arXiv:2305.18290, eq. 5), so that they are 0 at
    ``start``, the first evaluation of the run; a loss without one has those of log π.
    """
    power = length_power(loss)
    scores = tuple((r.chosen / r.chosen_tokens**power, r.rejected / r.rejected_tokens**power) for r in readings)
    base = scores if start is None else start.scores
    if needs_of(loss).references == 0:
        base = ((0.0, 0.0),) * len(scores)
    margins = tuple(loss.beta * ((own[0] - old[0]) - (own[1] - old[1])) for own, old in zip(scores, base, strict=True))
    count = len(readings)
    return HeldOutReport(
        step,
        margins,
        sum(r.chosen / r.chosen_tokens for r in readings) / count,
        sum(r.ending for r in readings) / count,
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


def gains_nothing(reports: Sequence[HeldOutReport], patience: int | None) -> bool:
    """Return whether the last ``patience`` evaluations brought no smaller log-loss than those before."""
    return patience is not None and len(reports) - 1 - reports.index(best_report(reports)) >= patience


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
    ending: float
    entropy: float


def _told(report: HeldOutReport) -> dict[str, float]:
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
