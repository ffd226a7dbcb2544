"""Build labellers of images from settings. Imports are inside the cases, so only what is used is loaded."""

from collections.abc import Mapping

from pipeline.config import (
    ClipScorer,
    DotsScorer,
    EnsembleScorer,
    FunctionScorer,
    ImageClassifierScorer,
    JudgeScorer,
    ScorerSettings,
)
from pipeline.config.images.refusals import IMAGE_SCORERS
from pipeline.errors import UserError
from reward_models.answers.accounts import Accounts
from reward_models.answers.labellers import OneByOne, TwoByTwo, Uncached
from reward_models.answers.questions import Question, ScoredBy
from reward_models.build import model_version
from reward_models.ensemble import Ensemble
from reward_models.function import Arguments, FunctionReward
from reward_models.images.dots import DotsReward
from reward_models.images.pixels import Album, ImageLabeller, prompt_text
from reward_models.labeller import Labeller

TAKES = "(prompt, image, answer)"


def build_image_labeller(
    settings: ScorerSettings, accounts: Accounts, pictures: Mapping[str, bytes], field: str = "scorer"
) -> Labeller:
    """Build the labeller of images for ``settings``, found at ``field`` in the config.

    ``pictures``: the file of each image by its response's text.

    Raises ``UserError`` if its model, file or key is not available, or for a labeller of texts.
    """
    album = Album()
    return ImageLabeller(_labeller(settings, accounts, album, field), pictures, album)


def _labeller(settings: ScorerSettings, accounts: Accounts, album: Album, field: str) -> Labeller:
    match settings:
        case FunctionScorer():
            return OneByOne(pixel_function(settings, album, field), accounts)
        case JudgeScorer():
            from reward_models.images.image_judge import ImagePrompt
            from reward_models.judge.judge import Judge

            if settings.rubric:
                raise UserError(f"{field}.rubric: true, but rubrics are for texts; allowed with modality: image: false")
            judge = Judge(settings, accounts, field, ImagePrompt(settings, album, field))
            if settings.mode == "pairwise":
                return TwoByTwo(judge, accounts, settings.pairs_per_prompt)
            return OneByOne(judge, accounts)
        case ImageClassifierScorer():
            from reward_models.images.image_classifier import ImageClassifierReward

            reward = ImageClassifierReward(settings, album, field)
            return OneByOne(ScoredBy(reward, model_version(settings.identity(), settings.path)), accounts)
        case ClipScorer():
            from reward_models.images.clip import ClipReward

            model = ClipReward(settings, album, field)
            accounts.facts.append(lambda: model.facts)
            return OneByOne(ScoredBy(model, model_version(settings.identity(), settings.path)), accounts)
        case DotsScorer():
            return Uncached(DotsReward(settings, album))
        case EnsembleScorer():
            members = [
                _labeller(member.scorer, accounts, album, f"{field}.members.{index}.scorer")
                for index, member in enumerate(settings.members)
            ]
            return Ensemble(settings, members)
        case _:
            allowed = ", ".join(IMAGE_SCORERS)
            raise UserError(f"{field}.kind: {settings.kind} labels texts, not images; allowed: {allowed}")


def pixel_function(settings: FunctionScorer, album: Album, field: str) -> FunctionReward:
    """Load a user's ``def reward(prompt, image, answer)``: a text, uint8 [height, width, 3], and a text or None.

    Raises ``UserError`` if it cannot be loaded.
    """

    def arguments(question: Question) -> Arguments:
        return prompt_text(question.prompt), album.pixels(question.responses[0]), question.prompt.answer

    return FunctionReward(settings, field, arguments, TAKES)
