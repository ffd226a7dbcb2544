"""Build labellers from settings. Imports are inside the cases, so only what is used is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from pipeline.config import (
    ClassifierScorer,
    ClipScorer,
    DotsScorer,
    EnsembleScorer,
    ExactMatchScorer,
    FunctionScorer,
    ImageClassifierScorer,
    JudgeScorer,
    KeywordScorer,
    LengthScorer,
    MathScorer,
    NumberScorer,
    PairwiseScorer,
    PeopleScorer,
    RegexScorer,
    ScorerSettings,
    SlotScorer,
)
from pipeline.errors import UserError
from pipeline.models.rendering.template import Rendering
from pipeline.storage.digests import file_sha256
from pipeline.types import content_hash
from reward_models.answers.accounts import Accounts
from reward_models.answers.cache import LabelCache
from reward_models.answers.criteria import ByCriterion
from reward_models.answers.labellers import OneByOne, TwoByTwo, Uncached
from reward_models.answers.parts import InParts, LocalModel
from reward_models.answers.pooled import PooledComparisons, PooledScores
from reward_models.answers.questions import AnswerSource, ScoredBy
from reward_models.answers.spending import Ledger
from reward_models.labeller import Labeller, Scorer

# Raised by a change of what a model here reads of the same texts: labels made before are then not used again.
# 2: contents stay text, whatever control tokens they spell.
READING = 2
HASHED_WHOLE = 64 * 1024 * 1024


def model_version(settings: Mapping[str, object], path: str) -> str:
    """Hash ``settings``, the folder's files, and how texts are read.

    Small files count by content, weights by size and modification time.

    A model retrained into the same folder is a different one, although its weights have the same size. A hub name has
    no files here, so only its settings count.
    """
    folder = Path(path)
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    return content_hash([READING, {**settings}, [[file.name, *_facts(file)] for file in files]])


def _facts(file: Path) -> list[object]:
    state = file.stat()
    if state.st_size <= HASHED_WHOLE:
        return [file_sha256(file)]
    return [state.st_size, state.st_mtime_ns]


def build_labeller(
    settings: ScorerSettings, accounts: Accounts, field: str = "scorer", rendering: Rendering | None = None
) -> Labeller:
    """Build the labeller for ``settings``, found at ``field`` in the config.

    ``rendering``: of the policy, for reward models that run here and have its chat template.

    Raises ``UserError`` if its model, file or key is not available.
    """
    match settings:
        case FunctionScorer():
            from reward_models.function import FunctionReward

            return OneByOne(FunctionReward(settings, field), accounts)
        case MathScorer():
            from reward_models.formulas import MathReward

            return OneByOne(MathReward(settings, field), accounts)
        case ClassifierScorer():
            return _classifier(settings, accounts, field, rendering)
        case PairwiseScorer():
            return TwoByTwo(_pairwise(settings, accounts, field), accounts, settings.pairs_per_prompt)
        case JudgeScorer():
            from reward_models.judge.judge import Judge

            judge = Judge(settings, accounts, field)
            asked: Labeller = OneByOne(judge, accounts)
            if settings.mode == "pairwise":
                asked = TwoByTwo(judge, accounts, settings.pairs_per_prompt)
            return ByCriterion(asked) if settings.rubric else asked
        case EnsembleScorer():
            from reward_models.ensemble import Ensemble

            places = [f"{field}.members.{index}.scorer" for index in range(len(settings.members))]
            members = zip(settings.members, places, strict=True)
            return Ensemble(
                settings, [build_labeller(one.scorer, accounts, place, rendering) for one, place in members]
            )
        case DotsScorer() | ImageClassifierScorer() | ClipScorer() | PeopleScorer():
            raise UserError(
                f"{field}.kind: {settings.kind} reads images; allowed: modality: image, or a labeller of text"
            )
        case _:
            return _rule(settings)


def _rule(
    settings: SlotScorer | ExactMatchScorer | NumberScorer | RegexScorer | KeywordScorer | LengthScorer,
) -> Labeller:
    from reward_models import rules

    match settings:
        case SlotScorer():
            return Uncached(rules.SlotReward(settings))
        case ExactMatchScorer():
            return Uncached(rules.MatchReward(settings))
        case NumberScorer():
            return Uncached(rules.NumberReward(settings))
        case RegexScorer():
            return Uncached(rules.RegexReward(settings))
        case KeywordScorer():
            return Uncached(rules.KeywordReward(settings))
        case LengthScorer():
            return Uncached(rules.LengthReward(settings))
    assert_never(settings)


def _pairwise(settings: PairwiseScorer, accounts: Accounts, field: str) -> AnswerSource:
    plain = settings.model_copy(update={"pairs_per_prompt": None})
    version = model_version({**plain.identity()}, settings.path)
    if accounts.engines is not None:
        pool = accounts.engines(LocalModel("pairwise", settings.model_dump(mode="json"), field=field))
        return PooledComparisons(pool, version, accounts)
    from reward_models.local.pairwise import PairwiseModel

    return PairwiseModel(settings, version, accounts, field)


def _classifier(settings: ClassifierScorer, accounts: Accounts, field: str, rendering: Rendering | None) -> Labeller:
    reward: Scorer
    if accounts.engines is not None:
        given = None if rendering is None else rendering.plain
        pool = accounts.engines(LocalModel("classifier", settings.model_dump(mode="json"), given, field))
        accounts.facts.append(lambda: pool.facts)
        reward, described = PooledScores(pool), pool.described
    else:
        from reward_models.local.classifier import ClassifierReward

        model = ClassifierReward(settings, rendering)
        accounts.facts.append(lambda: model.facts)
        reward, described = model, model.described
    return OneByOne(ScoredBy(reward, model_version({**settings.identity(), **described}, settings.path)), accounts)


def loaded(model: LocalModel) -> InParts:
    """Load a reward model that runs in this process. Raises ``UserError`` if it cannot be loaded."""
    rendering, settings = None if model.rendering is None else Rendering.of(model.rendering), {**model.settings}
    match model.kind:
        case "classifier":
            from reward_models.local.classifier import ClassifierReward

            return ClassifierReward(ClassifierScorer.model_validate(settings), rendering)
        case "pairwise":
            from reward_models.local.pairwise import PairwiseModel

            accounts = Accounts(LabelCache(None), Ledger(None))
            return PairwiseModel(PairwiseScorer.model_validate(settings), "", accounts, model.field)
        case "members":
            from reward_models.local.silver import Members

            folders = settings["folders"]
            assert isinstance(folders, list)
            return Members([Path(str(folder)) for folder in folders], rendering)
        case "implicit":
            from reward_models.local.silver import ImplicitParts, ImplicitSettings

            return ImplicitParts(ImplicitSettings.of(settings))
