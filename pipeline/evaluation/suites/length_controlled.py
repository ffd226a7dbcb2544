"""The length-controlled win rate of AlpacaEval 2 (arXiv:2404.04475), as its package computes it. Torch-free.

A logistic regression of preferences p_i on the difference in length, the instruction's difficulty and the model:

    P(win_i) = σ(a tanh(Δ_i / sd Δ) + b d_i + c),   Δ_i characters of the baseline's answer minus those of the model's

with an L1 penalty whose strength five folds choose; the win rate is the mean of σ(b d_i + c), as if lengths were equal.
The published difficulties come with preferences over two models that play for length, which enter the fit with c = 0
and a weight of 0.1 each (``length_controlled_v1``). Without them the regression has no d_i
(``length_controlled_minimal``).

Unlike the package, the interval is a bootstrap over instructions: the package's standard error is the spread of the
predictions, which is 0 without difficulties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.evaluation.intervals import Floats, Interval
from pipeline.types.counts import number_of

FOLDS, RESAMPLES = 5, 200
_GAMED_WEIGHT = 0.2 / 2
_SEED = 123


@dataclass(frozen=True)
class Gamed:
    """The published ``df_gamed.csv``: rows of preferences over two models that play for length.

    Attributes:
        preference: P(the model's answer is better), [R].
        length: difference in length in standard deviations, [R].
        difficulty: of each row's instruction, [R].
        of_instruction: the difficulty of each instruction, in the order of the instructions.
    """

    preference: Floats
    length: Floats
    difficulty: Floats
    of_instruction: Floats


@dataclass(frozen=True)
class LengthControlled:
    """The win rate with its interval, the package's standard error, and what it predicts for each instruction."""

    rate: Interval
    standard_error: float
    predicted: Floats


@dataclass(frozen=True)
class _Rows:
    """The design [R, K], preferences (NaN: none) [R], weights [R]; the first ``own`` rows are the run's own."""

    design: Floats
    preference: Floats
    weights: Floats


def length_controlled(
    wins: Sequence[float | None],
    baseline: Sequence[int],
    ours: Sequence[int],
    gamed: Gamed | None = None,
    seed: int = 0,
) -> LengthControlled:
    """Return the length-controlled win rate.

    Args:
        wins: P(the policy's answer is better) for each instruction; None without a label.
        baseline: characters of the baseline's answers.
        ours: characters of the policy's.
        gamed: see the class; its instructions are these, in this order.
        seed: of the interval.

    Raises:
        UserError: fewer than five labels, or instructions that ``gamed`` lacks.
    """
    labelled = sum(win is not None for win in wins)
    if labelled < FOLDS:
        have = number_of(labelled, "answer has", "answers have")
        raise UserError(f"alpaca_eval: {have} labels; the published regression needs {FOLDS} or more")
    preference = np.array([np.nan if win is None else win for win in wins], dtype=np.float64)
    lengths = np.asarray(baseline, dtype=np.float64) - np.asarray(ours, dtype=np.float64)
    spread = float(lengths.std(ddof=1))
    terms = np.tanh(lengths / spread) if spread else np.zeros(len(lengths))
    train, test = _design(terms, preference, gamed)
    strength, predicted = _cross_validated(train, test)
    return LengthControlled(
        _interval(train, test, strength, predicted, seed),
        float(predicted.std(ddof=1) / np.sqrt(len(predicted))),
        predicted,
    )


def _design(terms: Floats, preference: Floats, gamed: Gamed | None) -> tuple[_Rows, Floats]:
    count = len(terms)
    if gamed is None:
        columns = [terms[:, None], np.ones((count, 1))]
        plain = np.hstack(columns)
        return _Rows(plain, preference, np.ones(count)), np.hstack([np.zeros((count, 1)), np.ones((count, 1))])
    if len(gamed.of_instruction) < count:
        raise UserError(
            f"alpaca_eval: difficulty: {number_of(len(gamed.of_instruction), 'instruction')}, but the suite has {count}"
        )
    own = gamed.of_instruction[:count]
    ours = np.column_stack([terms, own, np.ones(count)])
    theirs = np.column_stack([np.tanh(gamed.length), gamed.difficulty, np.zeros(len(gamed.length))])
    # The package puts the published rows first, which decides the folds.
    weights = np.concatenate([np.full(len(theirs), _GAMED_WEIGHT), np.ones(count)])
    whole = _Rows(np.vstack([theirs, ours]), np.concatenate([gamed.preference, preference]), weights)
    return whole, np.column_stack([np.zeros(count), own, np.ones(count)])


def _doubled(rows: _Rows, taken: NDArray[np.intp]) -> tuple[Floats, NDArray[np.int64], Floats, Floats]:
    """Each row as a win of weight p and a loss of weight 1 − p: design, outcome, p or 1 − p, and the row's weight."""
    known = taken[~np.isnan(rows.preference[taken])]
    chance = rows.preference[known]
    outcome = np.concatenate([np.ones(len(known), dtype=np.int64), np.zeros(len(known), dtype=np.int64)])
    return (
        np.vstack([rows.design[known]] * 2),
        outcome,
        np.concatenate([chance, 1 - chance]),
        np.concatenate([rows.weights[known]] * 2),
    )


def _cross_validated(train: _Rows, test: Floats) -> tuple[float, Floats]:
    """The strength of the penalty that five folds choose, and predictions at it."""
    import sklearn
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GroupKFold

    design, outcome, chance, weights = _doubled(train, np.arange(len(train.preference)))
    groups = np.concatenate([np.arange(len(outcome) // 2)] * 2)
    # Without published rows the package passes no weights, which all being 1 changes nothing.
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(_log_loss, response_method="predict_proba", greater_is_better=False)
        scorer = scorer.set_score_request(true_sample_weight=True, true_prob=True)
        model = LogisticRegressionCV(
            cv=GroupKFold(n_splits=FOLDS), scoring=scorer, use_legacy_attributes=False, l1_ratios=(1.0,), **_FORM
        )
        model.set_fit_request(sample_weight=True)
        model.fit(
            design, outcome, sample_weight=chance * weights, groups=groups, true_sample_weight=weights, true_prob=chance
        )
        predicted: Floats = model.predict_proba(test)[:, 1]
    return float(np.ravel(model.C_)[0]), predicted


_FORM = {"random_state": _SEED, "dual": False, "solver": "liblinear", "fit_intercept": False}


def _log_loss(outcome: Floats, predicted: Floats, true_prob: Floats, true_sample_weight: Floats) -> float:
    chance = np.where(outcome == 1, true_prob, 1 - true_prob)
    bounded = np.clip(predicted, 1e-15, 1 - 1e-15)
    each = (chance * np.log(bounded) + (1 - chance) * np.log(1 - bounded)) * true_sample_weight
    return -float(np.mean(each))


def _interval(train: _Rows, test: Floats, strength: float, predicted: Floats, seed: int) -> Interval:
    """Percentiles over resamples of the run's own instructions, at the chosen strength."""
    from sklearn.linear_model import LogisticRegression

    rng, own, found = np.random.default_rng(seed), len(test), []
    published = np.arange(len(train.preference) - own)
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, own, own)
        design, outcome, chance, weights = _doubled(train, np.concatenate([published, len(published) + drawn]))
        model = LogisticRegression(C=strength, l1_ratio=1.0, **_FORM)
        model.fit(design, outcome, sample_weight=chance * weights)
        found.append(float(model.predict_proba(test[drawn])[:, 1].mean()))
    mean = float(predicted.mean())
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(mean, min(float(low), mean), max(float(high), mean))
