"""Scores of stored images under a round's policy, which is not trained."""

from collections.abc import Sequence
from pathlib import Path

from flows.stages.context import Context
from flows.stages.images.examples import index_of
from pipeline.config.images.scoring import ImageScore
from pipeline.images.denoising_scores import DenoisingScores
from pipeline.images.image_folder import load_image_policy
from pipeline.training.batches.examples import Example, Logps
from pipeline.training.reference import reference_logps
from pipeline.types import derive_seed


def frozen_scores(
    context: Context, number: int, folder: Path, examples: Sequence[Example], score: ImageScore
) -> tuple[list[tuple[Logps, ...]], int]:
    """Return the score of each draw of ``examples``, and the dimensions of an image.

    The draws of an example are the same in all rounds and under all policies.

    Args:
        number: the round whose policy scores.
        folder: of the images that ``examples`` name.
        score: how they are scored.
    """
    policy = load_image_policy(context.policy_path(number), encoders="text")
    policy.network.requires_grad_(False)
    index = index_of(folder, (example.prompt_ids for example in examples), policy)
    scores = DenoisingScores(policy.without_encoders(), index.table, score)
    asked = list(index.renamed(examples, derive_seed(context.config.seed, "evaluation draws"), score.draws))
    rows = max(1, 2 * context.config.training.micro_batch_size // score.draws)

    def report(done: int) -> None:
        context.report(done, len(asked), f"under the policy of round {number}")

    found = reference_logps(scores, asked, rows, on_progress=report)
    channels, height, width = policy.shape
    return list(found), channels * height * width
