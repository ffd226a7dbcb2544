"""Which stages of a round overlap, and what must wait for all of a round's samples. Torch-free."""

from collections.abc import Iterator

from pipeline.config import (
    ClassifierScorer,
    FunctionScorer,
    JudgeScorer,
    PairwiseScorer,
    RayCluster,
    RunConfig,
    ScorerSettings,
    scorers_of,
)
from pipeline.config.loss.needs import needs_of
from pipeline.config.loss.terms import AdvantageHead


def streams_labels(config: RunConfig) -> bool:
    """Whether finished shards of samples are labelled while the next ones are sampled."""
    return config.mode == "iterative" and config.overlap and _why_not(config) is None


def _why_not(config: RunConfig) -> str | None:
    """Why labels wait for all samples; None: they need not, and there is something to gain."""
    if config.modality == "image":
        return "images are labelled from the files of a round's complete samples"
    if config.discriminator is not None:
        return "gold is chosen among all samples of the round, and the discriminator is refitted before it labels"
    if config.pairing.second is not None:
        return "nothing is labelled"
    assert config.scorer is not None, "the config's validator requires a scorer"
    scorers = [scorer for _, scorer in scorers_of(config.scorer)]
    local = [scorer.kind for scorer in scorers if isinstance(scorer, ClassifierScorer | PairwiseScorer)]
    if local and config.placement == "colocated":
        return f"the {local[0]} computes where the engines do; with placement: split it would not wait"
    if local or any(_takes_time_elsewhere(scorer) for scorer in scorers):
        return None
    return "rules label in no time"


def streams_reference(config: RunConfig) -> bool:
    """Whether the reference pass follows sealed labels while the next shards are sampled."""
    stored = needs_of(config.loss).stored_reference
    return stored and streams_labels(config) and _why_no_reference(config) is None


def _why_no_reference(config: RunConfig) -> str | None:
    """Why a reference pass waits for all pairs; None: it need not, and there is something to gain."""
    assert config.scorer is not None, "only labels of a scorer are streamed"
    needs, local = needs_of(config.loss), ClassifierScorer | PairwiseScorer
    if config.placement == "colocated":
        return "it computes where the engines do; with placement: split it would not wait"
    if isinstance(config.cluster, RayCluster):
        return "it runs in the cluster's training processes"
    if any(isinstance(scorer, local) for _, scorer in scorers_of(config.scorer)):
        return "the reward model has the trainer's memory meanwhile"
    if config.pairing.drop_repeated or config.replay is not None:
        return "rows of other rounds are among the pairs"
    if needs.calibration or needs.baseline:
        return "it also reads responses to other prompts"
    return None


def _takes_time_elsewhere(scorer: ScorerSettings) -> bool:
    return isinstance(scorer, JudgeScorer | FunctionScorer)


def overlap_lines(config: RunConfig) -> list[str]:
    """Say what overlaps in a round, and what waits for what; nothing for a run that does not sample."""
    if config.mode == "offline":
        return []
    reason = "overlap: false" if not config.overlap else _why_not(config)
    if reason is None:
        said = ["overlap: each shard of samples is labelled while the next ones are sampled, in order"]
    else:
        said = [f"overlap: none, labels wait for all samples: {reason}"]
    if config.pairing.second is not None:
        return said
    if reason is None and needs_of(config.loss).stored_reference:
        waits = _why_no_reference(config)
        follows = (
            "follows sealed labels, a shard of pairs at a time" if waits is None else f"waits for all pairs: {waits}"
        )
        said.append(f"reference pass: {follows}")
    return [*said, f"all labels come before the first pair: {'; '.join(_barriers(config))}"]


def _barriers(config: RunConfig) -> Iterator[str]:
    """What spans the round, of what this config asks for."""
    yield "too few of them stop the run (labelling.min_yield), and the pairs are one table"
    if config.pairing.drop_repeated:
        yield "repeated pairs are dropped over all of them (pairing.drop_repeated)"
    if config.replay is not None:
        yield "shares of replayed examples are of all of them (replay)"
    dispersion = config.loss.inputs.dispersion
    if dispersion is not None and dispersion.scale == "mean":
        yield "dispersions are scaled by their mean (loss.dispersion.scale)"
    if any(isinstance(part.head, AdvantageHead) and part.head.deviation == "round" for part in config.loss.parts):
        yield "rewards are divided by their deviation over the round (head.deviation)"
