"""What can be known of a labeller before it is asked: files, keys, templates, and answers that it compares with."""

from pathlib import Path

from flows.model_folders import check_folder, check_tokenizer_files
from pipeline.config import (
    ClassifierScorer,
    ExactMatchScorer,
    FunctionScorer,
    JudgeScorer,
    KeywordScorer,
    NumberScorer,
    PairwiseScorer,
    Scorer,
    SingleScorer,
    SlotScorer,
    scorers_of,
)
from pipeline.types import Prompt
from reward_models import rules


def check_scorer(settings: Scorer) -> None:
    """Raise ``UserError`` for the first thing that is missing; asks no server and loads no model.

    The file of a function is run.
    """
    for field, scorer in scorers_of(settings):
        _check_files(scorer, field)


def check_answer(settings: Scorer, prompt: Prompt) -> None:
    """Raise ``UserError`` if ``prompt`` lacks the answer that responses are compared with."""
    for _, scorer in scorers_of(settings):
        match scorer:
            case SlotScorer():
                rules.meaning(prompt)
            case ExactMatchScorer():
                rules.answer(prompt)
            case NumberScorer():
                rules.wanted_number(prompt)
            case KeywordScorer() if not scorer.words:
                rules.KeywordReward(scorer).keywords(prompt)


def _check_files(scorer: SingleScorer, field: str) -> None:
    match scorer:
        case ClassifierScorer() | PairwiseScorer():
            check_folder(Path(scorer.path), f"{field}.path")
            check_tokenizer_files(Path(scorer.path), f"{field}.path")
        case ExactMatchScorer():
            rules.MatchReward(scorer)
        case FunctionScorer():
            from reward_models.function import FunctionReward

            FunctionReward(scorer, field)
        case JudgeScorer():
            from reward_models.endpoint import api_key
            from reward_models.judge_prompt import JudgePrompt

            api_key(scorer.server, f"{field}.server")
            JudgePrompt(scorer, field)
