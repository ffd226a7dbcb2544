"""How much longer children may be silent because a model is large. Torch-free.

Loading, gathering, saving and hashing report nothing until they end. The settings' limits are for small models; these
seconds come on top, so that one setting fits all sizes.
"""

from pathlib import Path

from pipeline.config import (
    ClassifierScorer,
    ClipScorer,
    ImageClassifierScorer,
    PairwiseScorer,
    PretrainedPolicy,
    RunConfig,
    scorers_of,
)

# Seconds for each GB of weights in files. A checkpoint of full training is up to eight times a 16-bit policy, and
# shared storage may do no more than 1 GB/s.
SECONDS_A_GB = 10.0


def further_seconds(config: RunConfig) -> float:
    """Return the seconds for the largest local model that the config names: 0 if there is none here."""
    models = [config.policy.path] if isinstance(config.policy, PretrainedPolicy) else []
    if config.scorer is not None:
        scorers = (scorer for _, scorer in scorers_of(config.scorer))
        local = ClassifierScorer | PairwiseScorer | ImageClassifierScorer | ClipScorer
        models += [scorer.path for scorer in scorers if isinstance(scorer, local)]
    return max(map(seconds_for, models), default=0.0)


def seconds_for(model: str) -> float:
    """Return the seconds for the weights in the folder ``model``."""
    return sum(file.stat().st_size for file in Path(model).glob("*.safetensors")) / 1e9 * SECONDS_A_GB
