"""Which losses can read images, whose scores are bounds on log-likelihoods from a few draws, and why others cannot.

Torch-free.
"""

from pipeline.config.loss.composition import Composition
from pipeline.config.loss.formula import Formula
from pipeline.config.loss.needs import needs_of

_DISPERSION = "needs a dispersion for each prompt, and an image policy has no entropy over tokens to take it from"


def image_refusal(loss: Formula) -> str | None:
    """Why ``loss`` cannot train on images; None: it carries over."""
    return next((why for part in loss.parts for why in [_of_one(part)] if why), None)


def _of_one(loss: Formula) -> str | None:
    needs = needs_of(loss)
    if loss.dispersion is not None:
        return _DISPERSION
    reasons = {
        "reads odds, and an image has no probability, only a bound on its likelihood": loss.shape.kind == "log_odds",
        "reads a mean probability of tokens, and an image has none": loss.shape.kind in ("exp", "alpha"),
        "weighs tokens, and the draws of an image are no tokens": loss.weights.kind != "equal",
        "weighs pairs by probabilities of tokens, which images do not have": loss.pair_weight != "none",
        "reads lengths, and all images have the same": loss.margin.kind == "length" or loss.prior.kind == "length",
        "reads a KL at each token; of images that is the distance of both models' predictions, which stored errors of "
        "the reference do not hold": loss.kl > 0,
        "trains a head or a critic on hidden states of a language model": needs.auxiliary,
        "reads a sample of the reference for each prompt, which image rounds do not draw": needs.calibration,
        "reads the end token, and images have none": loss.kl_stop_chosen,
    }
    return next((why for why, applies in reasons.items() if applies), None)


def averages(loss: Composition) -> bool:
    """Whether a part averages over tokens, which are draws here: with several draws it would divide twice."""
    return any(part.aggregate == "mean" or (part.nll > 0 and part.nll_aggregate == "mean") for part in loss.parts)
