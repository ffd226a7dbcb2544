"""Checks of labellers before use: files, keys, templates, and the answers that they compare with."""

from importlib.util import find_spec
from pathlib import Path

from flows.preflight.model_folders import check_folder, check_tokenizer_files
from pipeline.config import (
    ClassifierScorer,
    ClipScorer,
    ExactMatchScorer,
    FunctionScorer,
    ImageClassifierScorer,
    JudgeScorer,
    KeywordScorer,
    MathScorer,
    NumberScorer,
    PairwiseScorer,
    RunConfig,
    ScorerSettings,
    SingleScorer,
    SlotScorer,
    scorers_of,
)
from pipeline.config.evaluation.suites import (
    AlpacaEvalSuite,
    ArenaHardSuite,
    IfevalSuite,
    LmEvalSuite,
    RewardBenchSuite,
)
from pipeline.data.files.suite_rows import baseline_answers, instructions, row_categories, suite_rows
from pipeline.errors import UserError
from pipeline.evaluation.suites.ifeval import require_checks
from pipeline.models.loading.rope import require_steady_rope, text_settings
from pipeline.storage.digests import file_sha256, model_digest
from pipeline.types import Prompt
from reward_models import formulas, rules


def check_scorer(settings: ScorerSettings, place: str = "scorer", images: bool = False) -> None:
    """Raise ``UserError`` for the first thing that is missing. Contacts no server and loads no model.

    A function's file is run. ``place``: the place of ``settings`` in the config; ``images``: it labels images.
    """
    for field, scorer in scorers_of(settings, place):
        if images:
            _check_image_files(scorer, field)
        else:
            _check_files(scorer, field)


def _check_image_files(scorer: SingleScorer, field: str) -> None:
    from reward_models.images.pixels import Album

    match scorer:
        case FunctionScorer():
            from reward_models.images.build import pixel_function

            pixel_function(scorer, Album(), field)
        case JudgeScorer():
            from reward_models.images.image_judge import ImagePrompt
            from reward_models.judge.endpoint import api_key

            api_key(scorer.server, f"{field}.server")
            ImagePrompt(scorer, Album(), field)
        case ImageClassifierScorer():
            check_folder(Path(scorer.path), f"{field}.path")
            _require_class(scorer, field)
        case ClipScorer():
            check_folder(Path(scorer.path), f"{field}.path")
            check_tokenizer_files(Path(scorer.path), f"{field}.path")


def _require_class(scorer: ImageClassifierScorer, field: str) -> None:
    """Refuse a class that the model's config.json does not name."""
    from pipeline.models.foreign import model_settings

    names = model_settings(Path(scorer.path) / "config.json").get("id2label")
    if scorer.label is None or not isinstance(names, dict) or not names:
        return
    if str(scorer.label).strip() not in {*map(str, names), *map(str, names.values())}:
        shown = ", ".join(f"{number}: {name}" for number, name in [*names.items()][:8])
        raise UserError(f"{field}.label: {str(scorer.label)[:80]!r} is no class of {scorer.path} ({shown[:300]})")


def check_second(training: ScorerSettings | None, second: ScorerSettings) -> None:
    """Raise ``UserError`` unless the gate's second labeller differs from all that label for training.

    Labellers with the same settings, model folder (or a copy of it), file or judge's model are the same.
    """
    check_scorer(second, "gate.second")
    used = [] if training is None else scorers_of(training)
    for field, scorer in scorers_of(second, "gate.second"):
        for other, trained in used:
            same = _shared(scorer, trained)
            if same is not None:
                raise UserError(
                    f"{field}: {same} is what {other} labels with; the gate's second labeller must be one that "
                    "training never uses"
                )


def _shared(scorer: SingleScorer, other: SingleScorer) -> str | None:
    """Return what makes both the same labeller; None if they differ."""
    match scorer, other:
        case (ClassifierScorer() | PairwiseScorer(), ClassifierScorer() | PairwiseScorer()):
            return _one_model(scorer.path, other.path)
        case (ImageClassifierScorer() | ClipScorer(), ImageClassifierScorer() | ClipScorer()):
            return _one_model(scorer.path, other.path)
        case (FunctionScorer(), FunctionScorer()):
            return scorer.file if file_sha256(Path(scorer.file)) == file_sha256(Path(other.file)) else None
        case (JudgeScorer(), JudgeScorer()):
            same = (scorer.server.base_url, scorer.server.model) == (other.server.base_url, other.server.model)
            return scorer.server.model if same else None
    return f"kind {scorer.kind} with these settings" if scorer.identity() == other.identity() else None


def _one_model(path: str, other: str) -> str | None:
    return path if model_digest(Path(path)) == model_digest(Path(other)) else None


def check_suites(config: RunConfig) -> None:
    """Raise ``UserError`` for a suite whose files, rows, judge or package are not as it needs them."""
    for index, suite in enumerate(config.evaluation.suites):
        place = f"evaluation.suites.{index}"
        match suite:
            case LmEvalSuite():
                if find_spec("lm_eval") is None:
                    raise UserError(f"{place}: needs the package lm_eval; pip install 'prefloop[evals]'")
            case IfevalSuite():
                require_checks(instructions(suite), place)
            case ArenaHardSuite():
                baseline_answers(suite)
                row_categories(suite)
                check_scorer(suite.judge, f"{place}.judge")
            case AlpacaEvalSuite() | RewardBenchSuite():
                suite_rows(suite, suite.file)
                if suite.judge is not None:
                    check_scorer(suite.judge, f"{place}.judge")
                if isinstance(suite, AlpacaEvalSuite):
                    row_categories(suite)
                    if find_spec("sklearn") is None:
                        raise UserError(f"{place}: needs the package scikit-learn; pip install 'prefloop[evals]'")


def check_answer(settings: ScorerSettings, prompt: Prompt) -> None:
    """Raise ``UserError`` if ``prompt`` lacks the answer that a scorer compares with."""
    for _, scorer in scorers_of(settings):
        match scorer:
            case SlotScorer():
                rules.meaning(prompt)
            case ExactMatchScorer():
                rules.stated_answer(prompt)
            case NumberScorer():
                rules.wanted_number(prompt)
            case MathScorer():
                formulas.required_answer(prompt)
            case KeywordScorer() if not scorer.words:
                rules.KeywordReward(scorer).keywords(prompt)


def _require_outputs(scorer: ClassifierScorer, field: str) -> None:
    """Refuse a model with several outputs, such as bad and good, unless the config says which of them is the reward."""
    from pipeline.models.foreign import model_settings

    names = model_settings(Path(scorer.path) / "config.json").get("id2label")
    if scorer.outputs is not None or not isinstance(names, dict) or len(names) < 2:
        return
    shown = ", ".join(f"{number}: {name}" for number, name in list(names.items())[:8])
    raise UserError(
        f"{field}.outputs: must be given, since {scorer.path} has {len(names)} outputs ({shown[:300]}); such as "
        "{0: 1} for the first, or {0: -1, 1: 1} if 0 is bad and 1 is good"
    )


def _require_length(scorer: ClassifierScorer | PairwiseScorer, field: str) -> None:
    """Refuse conversations so long that the factors of their positions would change those of shorter ones."""
    match scorer:
        case ClassifierScorer():
            longest, names = scorer.max_tokens, f"{field}.max_tokens"
        case PairwiseScorer():
            longest = scorer.max_prompt_tokens + 2 * scorer.max_response_tokens
            names = f"{field}.max_prompt_tokens + 2 {field}.max_response_tokens"
    folder = Path(scorer.path)
    require_steady_rope(f"{field}.path: {scorer.path}", text_settings(folder), longest, names)


def _check_files(scorer: SingleScorer, field: str) -> None:
    match scorer:
        case ClassifierScorer() | PairwiseScorer():
            check_folder(Path(scorer.path), f"{field}.path")
            _require_length(scorer, field)
            check_tokenizer_files(Path(scorer.path), f"{field}.path")
            if isinstance(scorer, ClassifierScorer):
                _require_outputs(scorer, field)
        case ExactMatchScorer():
            rules.MatchReward(scorer)
        case MathScorer():
            formulas.MathReward(scorer, field)
        case FunctionScorer():
            from reward_models.function import FunctionReward

            FunctionReward(scorer, field)
        case JudgeScorer():
            from reward_models.judge.endpoint import api_key
            from reward_models.judge.prompt import JudgePrompt

            api_key(scorer.server, f"{field}.server")
            JudgePrompt(scorer, field)
