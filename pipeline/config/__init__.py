"""The schema of a run: every setting, its range and its meaning. Imports no torch, vllm or prefect.

Closed models: an unknown key is an error. A choice among things with different settings is a
union with the discriminator ``kind``; a choice among functions of one shape is a ``Literal``.
``files`` reads config files and overlays.
"""

from pipeline.config.base import OPERATIONAL, Closed
from pipeline.config.data.columns import Columns, LabelWords, Signed, Votes
from pipeline.config.data.images import ImageData
from pipeline.config.data.limits import Limits
from pipeline.config.data.mixture import MixtureData
from pipeline.config.data.sources import (
    AnyData,
    ConditionData,
    Data,
    DotPairs,
    DotsData,
    HeldOut,
    PairData,
    RestaurantData,
)
from pipeline.config.data.user_data import DatasetData, FileData, UserData
from pipeline.config.evaluation.gate import Evaluation, Gate
from pipeline.config.evaluation.suites import Suite, SuiteRule
from pipeline.config.images.policies import DiffusionPolicy, ScratchDiffusion
from pipeline.config.images.scoring import ImageScore
from pipeline.config.labellers.image_scorers import ClipScorer, DotsScorer, ImageClassifierScorer, PeopleScorer
from pipeline.config.labellers.judge import Budget, Endpoint, JudgeScorer, Price
from pipeline.config.labellers.reward_model import RewardModelConfig
from pipeline.config.labellers.scorers import (
    ClassifierScorer,
    EnsembleScorer,
    ExactMatchScorer,
    FunctionScorer,
    KeywordScorer,
    Labelling,
    LengthScorer,
    MathScorer,
    Member,
    NumberScorer,
    PairwiseScorer,
    RegexScorer,
    ScorerSettings,
    SingleScorer,
    SlotScorer,
    compares,
    scorers_of,
)
from pipeline.config.loss.composition import Composition
from pipeline.config.loss.formula import Formula
from pipeline.config.loss.presets import NamedComposition, preset_names, resolve
from pipeline.config.machines import ClusterSettings, LocalCluster, RayCluster, Resources
from pipeline.config.pairing import Pairing, Replay, SecondPolicy
from pipeline.config.policy import (
    ChatSettings,
    Lora,
    Policy,
    PretrainedModel,
    PretrainedPolicy,
    Quantisation,
    ScratchPolicy,
)
from pipeline.config.run import RunConfig
from pipeline.config.sampling import (
    DiffusersSampler,
    SamplerSettings,
    SamplingMixture,
    SamplingSettings,
    ServerSampler,
    TransformersSampler,
    VllmSampler,
)
from pipeline.config.training import Optimisation, OptimiserKind, Training, WarmStart

__all__ = [
    "OPERATIONAL",
    "AnyData",
    "Budget",
    "ChatSettings",
    "ClassifierScorer",
    "ClipScorer",
    "Closed",
    "ClusterSettings",
    "Columns",
    "Composition",
    "ConditionData",
    "Data",
    "DatasetData",
    "DiffusersSampler",
    "DiffusionPolicy",
    "DotPairs",
    "DotsData",
    "DotsScorer",
    "Endpoint",
    "EnsembleScorer",
    "Evaluation",
    "ExactMatchScorer",
    "FileData",
    "Formula",
    "FunctionScorer",
    "Gate",
    "HeldOut",
    "ImageClassifierScorer",
    "ImageData",
    "ImageScore",
    "JudgeScorer",
    "KeywordScorer",
    "LabelWords",
    "Labelling",
    "LengthScorer",
    "Limits",
    "LocalCluster",
    "Lora",
    "MathScorer",
    "Member",
    "MixtureData",
    "NamedComposition",
    "NumberScorer",
    "Optimisation",
    "OptimiserKind",
    "PairData",
    "Pairing",
    "PairwiseScorer",
    "PeopleScorer",
    "Policy",
    "PretrainedModel",
    "PretrainedPolicy",
    "Price",
    "Quantisation",
    "RayCluster",
    "RegexScorer",
    "Replay",
    "Resources",
    "RestaurantData",
    "RewardModelConfig",
    "RunConfig",
    "SamplerSettings",
    "SamplingMixture",
    "SamplingSettings",
    "ScorerSettings",
    "ScratchDiffusion",
    "ScratchPolicy",
    "SecondPolicy",
    "ServerSampler",
    "Signed",
    "SingleScorer",
    "SlotScorer",
    "Suite",
    "SuiteRule",
    "Training",
    "TransformersSampler",
    "UserData",
    "VllmSampler",
    "Votes",
    "WarmStart",
    "compares",
    "preset_names",
    "resolve",
    "scorers_of",
]
