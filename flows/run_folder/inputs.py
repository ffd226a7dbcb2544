"""The stages that each stage is made from. Torch-free."""

from collections.abc import Collection
from dataclasses import dataclass

from flows.run_folder.ancestry import (
    SECOND_POLICY,
    SECOND_SAMPLES,
    mixed_stage,
    parent,
    reference_stage,
    reference_stages,
    sampled_round,
)
from flows.run_folder.growth import ADDED, added_stages
from pipeline.config import RunConfig
from pipeline.config.evaluation.suites import due
from pipeline.config.labellers.reward_model import buys
from pipeline.config.loss.needs import needs_of
from pipeline.config.pairing import replayed_ages
from pipeline.models.weights.weight_format import held_as_stored
from pipeline.storage.manifest import DamagedError
from pipeline.storage.run_folder import RunFolder, Stage


@dataclass(frozen=True)
class Place:
    """The round of a run that a stage belongs to.

    Attributes:
        planned: titles of stages that do not exist yet but count as made.
    """

    run: RunFolder
    config: RunConfig
    round: int
    planned: Collection[str] = ()

    @property
    def before(self) -> int:
        """The previous round; for round 0, round 0."""
        return max(self.round - 1, 0)

    @property
    def origin(self) -> int:
        """The round whose policy this round starts from."""
        return parent(self.run, self.config, self.round)

    @property
    def data(self) -> Stage:
        """The stage that holds the run's prompts and pairs."""
        return self.run.stage(0, "data")

    @property
    def start(self) -> Stage:
        """The stage of the start policy."""
        return self.run.stage(0, "policy")

    def stage(self, name: str) -> Stage:
        """A stage of this round."""
        return self.run.stage(self.round, name)


def nothing(place: Place) -> list[Stage]:
    """No stages: for stages made from the user's files."""
    return []


def of_added_prompts(place: Place) -> list[Stage]:
    """Data, and the prompts that earlier rounds added."""
    return [place.data, *added_stages(place.run, place.before)]


def of_samples(place: Place) -> list[Stage]:
    """All prompts so far, the policy that the round samples, and the other model of a mixture."""
    other, sampled = (
        mixed_stage(place.run, place.config, place.round),
        sampled_round(place.run, place.config, place.round),
    )
    return [*_prompts(place), place.run.stage(sampled, "policy"), *([] if other is None else [other])]


def _prompts(place: Place) -> list[Stage]:
    added = added_stages(place.run, place.round)
    added += [stage for stage in _planned(place) if stage.title in place.planned and stage not in added]
    return [place.data, *added]


def _planned(place: Place) -> list[Stage]:
    return [place.run.stage(number, ADDED) for number in range(1, place.round + 1)]


def of_second_samples(place: Place) -> list[Stage]:
    """All prompts so far, the model that answers them, and the policy in whose tokens its answers are written."""
    return [*_prompts(place), place.run.stage(0, SECOND_POLICY), place.start]


def of_gold(place: Place) -> list[Stage]:
    """Samples; and the discriminator that selects the comparisons to buy, once there is one."""
    settings = place.config.discriminator
    asked = settings is not None and settings.select != "random" and place.round > 1
    return [place.stage("samples"), *([place.run.stage(place.before, "discriminator")] if asked else [])]


def of_discriminator(place: Place) -> list[Stage]:
    """All gold so far, the previous discriminator, and the start policy, which the first one is trained from."""
    gold = [place.run.stage(number, "gold") for number in range(1, place.round + 1)]
    earlier = [place.run.stage(place.before, "discriminator")] if place.round > 1 else []
    return [*gold, *earlier, place.start]


def buys_gold(config: RunConfig, round_: int) -> bool:
    """Whether the round buys gold."""
    return config.discriminator is not None and buys(config.discriminator, round_)


def refits(config: RunConfig, round_: int) -> bool:
    """Whether the round trains the discriminator on it."""
    return buys_gold(config, round_) and config.discriminator is not None and config.discriminator.trains


def of_labels(place: Place) -> list[Stage]:
    """Samples; with a discriminator also the round's gold, and the stage that labels the rest."""
    settings, samples = place.config.discriminator, place.stage("samples")
    if settings is None:
        return [samples]
    gold = [place.stage("gold")] if buys(settings, place.round) else []
    match settings.silver:
        case "none":
            silver = []
        case "self":
            silver = [place.run.stage(number, "policy") for number in sorted({0, place.origin})]
        case "online":
            silver = [place.stage("discriminator")]
        case "static":
            silver = [place.run.stage(1, "discriminator")]
    return [samples, *gold, *silver]


def of_pairs(place: Place) -> list[Stage]:
    """Labels, both policies' samples, or the data set; earlier pairs that are replayed or dropped; replay's."""
    if place.config.mode == "offline":
        return [place.data, place.start, *_earlier_pairs(place)]
    replay = place.config.replay
    drifting = replay is not None and replay.max_drift is not None
    second = place.config.pairing.second is not None
    return [
        *(place.stage(name) for name in (("samples", SECOND_SAMPLES) if second else ("labels",))),
        *_earlier_pairs(place),
        *([place.data, place.start] if anchored(place.config) else []),
        *([place.run.stage(place.origin, "policy")] if drifting else []),
    ]


def anchored(config: RunConfig) -> bool:
    """Whether rounds of an iterative run train on pairs of the data set too."""
    return config.replay is not None and config.replay.anchor > 0


def _earlier_pairs(place: Place) -> list[Stage]:
    """The pairs stages whose rows this round replays or drops."""
    replay, round_ = place.config.replay, place.round
    ages = [] if replay is None else replayed_ages(replay, round_)
    rounds = range(1, round_) if place.config.pairing.drop_repeated else sorted(round_ - age for age in ages)
    return [place.run.stage(earlier, "pairs") for earlier in rounds]


def of_calibration(place: Place) -> list[Stage]:
    """Pairs, and the reference policy that responds to their prompts."""
    return [place.stage("pairs"), reference_stage(place.run, place.config, place.round)]


def of_reference(place: Place) -> list[Stage]:
    """Training data, and the models whose log-probs are stored."""
    # In round 1, the round's own reference may also be the start policy.
    models = {stage.title: stage for stage in reference_stages(place.run, place.config, place.round)}
    return [*_trained_on(place), *models.values()]


def of_advantages(place: Place) -> list[Stage]:
    """Training data, and the policy that the round starts from, whose folder has the value head too."""
    return [place.stage("pairs"), place.run.stage(place.origin, "policy")]


def of_policy(place: Place) -> list[Stage]:
    """Training data with its stored values, the previous policy, and a reference if it is loaded."""
    if place.round == 0:
        return [place.data]
    loss = place.config.loss
    stored = [place.stage("reference")] if stores_reference(place.config) else []
    scored_live = needs_of(loss).stored_reference and not stored
    stored += [place.stage("advantages")] if needs_of(loss).advantages else []
    moves = place.config.training.reference_sync is not None
    wanted = needs_of(loss).live_reference or moves or scored_live
    loaded = [reference_stage(place.run, place.config, place.round)] if wanted else []
    return [*_trained_on(place), *stored, place.run.stage(place.origin, "policy"), *loaded]


def stores_reference(config: RunConfig) -> bool:
    """Whether what training reads of references is computed before it."""
    live = config.modality == "image" and config.training.score.reference_errors == "live"
    return needs_of(config.loss).stored_reference and not live


def _trained_on(place: Place) -> list[Stage]:
    answered = [place.stage("calibration")] if needs_of(place.config.loss).calibration else []
    return [place.stage("pairs"), *answered]


def of_average(place: Place) -> list[Stage]:
    """The previous average, and the policy that enters it."""
    return [reference_stage(place.run, place.config, place.round), place.stage("policy")]


def masters_read_by(place: Place, name: str) -> list[Stage]:
    """The stages of which the stage ``name`` reads the float32 weights, where some stand beside those of 16 bits."""
    training = place.config.training
    match name:
        case "policy" if place.round > 0 and training.lora is None and training.weights == "float32":
            return [place.run.stage(place.origin, "policy")]
        case "average":
            return of_average(place)
        case _:
            return []


def of_evaluation_samples(place: Place) -> list[Stage]:
    """Held-out prompts, and the policy that responds to them."""
    return [place.data, place.stage("policy")]


def of_evaluation(place: Place) -> list[Stage]:
    """The round's responses, and the evaluations to compare with."""
    compared = [number for number in sorted({0, place.origin}) if number < place.round]
    return [place.stage("evaluation_samples"), *(place.run.stage(number, "evaluation") for number in compared)]


def of_gate(place: Place) -> list[Stage]:
    """The round's evaluation, and the previous gate or the start's evaluation."""
    decided = place.run.stage(place.before, "gate") if place.before > 0 else place.run.stage(0, "evaluation")
    gate, suites = place.config.gate, place.config.evaluation.suites
    ruled = gate is not None and bool(gate.suites) and bool(due(suites, place.round))
    return [place.stage("evaluation"), decided, *([place.stage("suites")] if ruled else [])]


def opened_by_evaluation(place: Place) -> list[Stage]:
    """Held-out data, and the policies that KL is measured to: those of the compared evaluations."""
    rounds = sorted({0, place.round, *(stage.round for stage in of_evaluation(place) if stage.name == "evaluation")})
    policies = [place.run.stage(number, "policy") for number in rounds]
    return [place.data, *added_stages(place.run, place.round), *policies]


def opened_by_training(place: Place) -> list[Stage]:
    """The start policy, if its files say how frozen weights are held."""
    return [place.run.stage(0, "policy")] if place.round > 0 and held_as_stored(place.config) else []


def opened_by_gate(place: Place) -> list[Stage]:
    """The training's alarms; evaluations and gates of the start, the parent, the best round and the rules' base."""
    earlier = [
        place.run.stage(number, one) for number in range(place.round) for one in ("evaluation", "gate", "suites")
    ]
    return [place.stage("policy"), *(stage for stage in earlier if stage.folder.exists())]


def opened_by_labelling(place: Place) -> list[Stage]:
    """The discriminators that labelled earlier rounds."""
    settings = place.config.discriminator
    if settings is None:
        return []
    return labelling(place.run, 1 if settings.silver == "static" else place.round - 1)


def labelling(run: RunFolder, round_: int) -> list[Stage]:
    """The discriminator of ``round_``, and the earlier one that it names if it did not pass its gate."""
    newest = run.stage(round_, "discriminator")
    if not newest.folder.exists():
        return []
    try:
        manifest = newest.manifest()
    except DamagedError:
        # The stage cannot name it yet; any of them may be read.
        return [stage for n in range(1, round_ + 1) if (stage := run.stage(n, "discriminator")).folder.exists()]
    labels_with = None if manifest is None else manifest.metrics.get("labels_with")
    return [newest, *(stage for stage in run.stages() if stage.title == labels_with)]
