"""Checks that config and data meet the needs of the loss, before anything runs. Torch-free.

The schema checks single settings; these checks compare settings with data, mode, rounds and models.
"""

from pipeline.config import RunConfig, UserData, preset_names, resolve
from pipeline.config.data.mixture import sources_in
from pipeline.config.loss.components import ExtrapolatedPrior, GivenPrior, HarmonicPrior, MixturePrior
from pipeline.config.loss.composition import Composition
from pipeline.config.loss.formula import Formula
from pipeline.config.loss.margins import WinMargin
from pipeline.config.loss.needs import REWARDS, needs_of
from pipeline.config.loss.terms import AdvantageHead, WinLabel
from pipeline.config.training import START
from pipeline.data.counts import Contents
from pipeline.errors import UserError
from pipeline.types.counts import number_of


def check_needs(config: RunConfig, contents: Contents) -> None:
    """Raise ``UserError`` for the first unmet need of the loss; the message names the field and the rule."""
    _check_references(config)
    _check_contrast(config)
    _check_prior(config, contents)
    _check_pairing(config)
    _check_soft_value(config)
    _check_sync(config)
    anchored = config.replay is not None and config.replay.anchor > 0
    if anchored:
        _check_anchor(config, contents)
    _check_turns(config, contents)
    if anchored or config.mode == "offline":
        _check_form(config, contents)
        _check_rewards(config, contents)
        _check_labels(config, contents)


def _check_turns(config: RunConfig, contents: Contents) -> None:
    other = "groups" if contents.groups else "single responses" if contents.unpaired else None
    if config.training.turns == "all_chosen" and other is not None:
        raise UserError(
            "training.turns: all_chosen trains where the turns of chosen and rejected differ, but the section pairs "
            f"holds {other}; allowed: last"
        )


def loss_name(config: RunConfig) -> str:
    """Return the name of the loss for messages."""
    return "this loss" if config.loss.preset == "custom" else f"loss {config.loss.preset}"


# ---------------------------------------------------------------- models


def _check_references(config: RunConfig) -> None:
    training, name = config.training, loss_name(config)
    given = len(training.references)
    match config.loss.inputs.prior:
        case ExtrapolatedPrior():
            _check_checkpoints(config)
        case MixturePrior() | HarmonicPrior():
            wanted = needs_of(config.loss).references - 1
            if given != wanted:
                raise UserError(
                    f"training.references: {number_of(given, 'model folder')}, but {name} measures against "
                    f"{number_of(wanted + 1, 'reference')}: "
                    f"the round's own and {wanted} of these (loss.prior.weights has one number for each; start is "
                    "the policy that the run starts from)"
                )
        case _:
            if given:
                kind = config.loss.inputs.prior.kind
                raise UserError(
                    f"training.references: {number_of(given, 'model folder')}, but {name} has the prior {kind}; "
                    "only the priors mixture, harmonic and extrapolated read further models"
                )


def _check_checkpoints(config: RunConfig) -> None:
    training, name = config.training, loss_name(config)
    if training.reference != "previous":
        raise UserError(
            f"training.reference: {training.reference}, but {name} measures against the two newest policies: previous"
        )
    if START in training.references:
        raise UserError(
            f"training.references: start, but {name} reads the checkpoint before the start: give its folder"
        )
    if len(training.references) > 1:
        raise UserError(
            f"training.references: {len(training.references)} model folders; the prior extrapolated takes one at most, "
            "the checkpoint before the start policy"
        )
    if config.rounds == 1 and not training.references:
        raise UserError(
            f"rounds: 1, but {name} extrapolates from two checkpoints, and round 1 has only the start policy: "
            "at least 2 rounds, or name the checkpoint before the start policy in training.references"
        )


def _check_contrast(config: RunConfig) -> None:
    name = loss_name(config)
    contrast = config.training.contrastive
    if needs_of(config.loss).contrast:
        if contrast is None:
            raise UserError(
                f"training.contrastive: {name} weighs tokens by two contrasting models; "
                "give the model folders positive and negative"
            )
        if needs_of(config.loss).groups:
            raise UserError("loss.weights: given weights need a better and a worse response, so not loss.head")
    elif contrast is not None:
        raise UserError(f"training.contrastive: {name} reads no such models; only loss.weights given does")


def _check_sync(config: RunConfig) -> None:
    """Refuse a moving reference that the loss does not read as stored log-probabilities of one model."""
    if config.training.reference_sync is None:
        return
    why = needs_of(config.loss).unmovable
    if why is not None:
        raise UserError(f"training.reference_sync: {loss_name(config)} {why}")


def _check_soft_value(config: RunConfig) -> None:
    """Refuse the soft value of APA where rounds sample from another policy than the reference."""
    soft = any(isinstance(part.head, AdvantageHead) and part.head.value == "soft" for part in config.loss.parts)
    if config.mode != "iterative" or not soft:
        return
    if config.training.reference != "previous":
        raise UserError(
            f"training.reference: {config.training.reference}, but loss.head.value: soft averages over responses of "
            "the reference, and rounds sample from the newest policy; allowed: training.reference: previous, or "
            "loss.head.value: leave_one_out or mean"
        )
    if config.replay is not None:
        raise UserError(
            "replay: loss.head.value: soft averages over responses of the reference, and those of earlier rounds are "
            "not; allowed: no section replay, or loss.head.value: leave_one_out or mean"
        )


# ---------------------------------------------------------------- pairing


def _check_pairing(config: RunConfig) -> None:
    """Refuse ``pairing`` settings that the loss cannot use."""
    if config.pairing.rule == "marked" and not needs_of(config.loss).accepts_unpaired:
        raise UserError(
            f"pairing.rule: marked makes single responses, but {loss_name(config)} reads several to one prompt; "
            f"use another rule, or one of {', '.join(_unpaired_presets())}"
        )
    if config.pairing.second is not None and not REWARDS.isdisjoint(needs_of(config.loss)):
        raise UserError(
            f"pairing.rule: strong_weak gives pairs without scores, but {loss_name(config)} reads rewards; use another "
            "rule, or a loss that reads none"
        )
    of_pairs = {"rule", "min_margin", "max_margin", "max_length_difference", "max_pairs"}
    unread = sorted(config.pairing.changed & of_pairs)
    if needs_of(config.loss).groups and unread and not (config.pairs is not None and config.mode == "offline"):
        raise UserError(
            f"pairing.{unread[0]}: {loss_name(config)} takes all responses of a prompt at once, so no pairs are made"
        )


def _check_anchor(config: RunConfig, contents: Contents) -> None:
    """Require the data set's rows in the form that the rounds make."""
    name, rows = "pairs, or groups of scored responses", contents.pairs + contents.groups
    if needs_of(config.loss).groups:
        name, rows = "groups of scored responses (columns responses and rewards)", contents.groups
    elif config.pairing.rule == "marked":
        name, rows = "single responses (columns completion and label), or groups", contents.groups + contents.unpaired
    if not rows:
        raise UserError(f"replay.anchor: rounds train on {name} here, and {_path(config)} holds another form")


# ---------------------------------------------------------------- data


def _check_prior(config: RunConfig, contents: Contents) -> None:
    if not isinstance(config.loss.inputs.prior, GivenPrior):
        return
    if config.mode == "iterative":
        raise UserError(
            "loss.prior: given comes from columns of a pair data set; new responses of iterative mode have none"
        )
    if not contents.pairs:
        raise UserError(f"loss.prior: given needs pairs, but {_path(config)} holds another form of data")
    lacking = contents.pairs - contents.with_priors
    _require(config, lacking, contents.pairs, ("chosen_prior", "rejected_prior"), "loss.prior: given needs log ζ")


def _check_form(config: RunConfig, contents: Contents) -> None:
    """Accept pairs and groups for every loss (from a group, best against worst), single responses only for some."""
    if not contents.unpaired:
        return
    if not needs_of(config.loss).accepts_unpaired:
        raise UserError(
            f"pairs.path: {_path(config)} holds single responses (columns completion and label), but "
            f"{loss_name(config)} reads several to one prompt: give chosen and rejected, or responses and rewards, "
            f"or take one of {', '.join(_unpaired_presets())}"
        )
    if contents.desirable in (0, contents.unpaired):
        mark = "good (true)" if contents.desirable else "bad (false)"
        raise UserError(
            f"pairs.columns.label: all {contents.unpaired} responses of {_path(config)} are marked {mark}; "
            f"{loss_name(config)} learns from both kinds"
        )


def _check_rewards(config: RunConfig, contents: Contents) -> None:
    scores, pairs = ("chosen_score", "rejected_score"), contents.pairs
    unscored = pairs - contents.scored
    if needs_of(config.loss).fields >= REWARDS:
        _require(config, unscored, pairs, scores, f"{loss_name(config)} needs rewards")
    elif needs_of(config.loss).groups and contents.half_scored:
        _require(config, unscored, pairs, scores, f"{loss_name(config)} takes the rewards of all pairs or of none")
    compared = [field for field in ("label", "margin") if _compares(config, field)]
    if compared:
        why = f"loss.{compared[0]}: wins needs the column {_columns(config, 'win_probability')}, or scores"
        _require(config, contents.neither, pairs - contents.with_wins, scores, why)


def _check_labels(config: RunConfig, contents: Contents) -> None:
    """Refuse to drop soft labels silently."""
    loss = config.loss
    if not contents.soft or _reads_labels(loss):
        return
    found = f"{contents.soft} of {contents.pairs} pairs have another label than 1; {loss_name(config)} does not read it"
    if any(part.columns.has_votes for part in _pair_data(config)):
        raise UserError(f"pairs.votes.label: soft: {found}; majority makes hard labels from the votes")
    if any(part.rewards_are == "signed" for part in _pair_data(config)):
        raise UserError(f"pairs.signed.strength: {found}; none makes hard labels, and margin makes scores")
    raise UserError(
        f"pairs.columns.soft_label: {found}; leave the column out (or name another) to train on hard labels"
    )


def _compares(config: RunConfig, field: str) -> bool:
    """Whether a part's label or margin is the probability that one response of a pair beats the other."""
    found = (part.__dict__[field] for part in config.loss.parts)
    return any(isinstance(one, WinLabel) or (isinstance(one, WinMargin) and one.against == "other") for one in found)


def _reads_labels(loss: Formula) -> bool:
    """Whether every part reads soft labels: as p, or as win probabilities, which take their place for all parts."""
    asked = [(part, needs_of(part)) for part in loss.parts if not needs_of(part).only_chosen]
    if any("win_probability" in needs for _, needs in asked):
        return all("win_probability" in needs for _, needs in asked)
    certain = (part.one_sided or part.label.kind != "data" or needs.groups for part, needs in asked)
    return bool(asked) and not any(certain)


def _require(config: RunConfig, lacking: int, pairs: int, fields: tuple[str, str], why: str) -> None:
    if lacking:
        names = " and ".join(_columns(config, field) for field in fields)
        raise UserError(
            f"{why}: {lacking} of {pairs} pairs of {_path(config)} have no number in the columns {names} "
            f"(pairs.columns.{fields[0]}, {fields[1]})"
        )


def _pair_data(config: RunConfig) -> list[UserData]:
    assert config.pairs is not None, "the config's validator asks for pairs offline"
    return [part for _, part in sources_in(config.pairs, "pairs")]


def _columns(config: RunConfig, setting: str) -> str:
    """Return the names that the data sets have for one column."""
    return " or ".join(dict.fromkeys(repr(part.columns.__dict__[setting]) for part in _pair_data(config)))


def _path(config: RunConfig) -> str:
    return ", ".join(part.path for part in _pair_data(config))


def _unpaired_presets() -> list[str]:
    """Return the presets for single responses."""
    return [name for name in preset_names() if needs_of(Composition.model_validate(resolve(name, {}))).accepts_unpaired]
