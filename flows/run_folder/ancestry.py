"""The policy that a round starts from, and its references, after the gates' decisions. Torch-free."""

from flows.run_folder.approvals import settled
from pipeline.config import RunConfig
from pipeline.config.loss.components import ExtrapolatedPrior
from pipeline.config.training import START
from pipeline.storage.run_folder import RunFolder, Stage


def parent(run: RunFolder, config: RunConfig, round_: int) -> int:
    """The round whose policy ``round_`` starts from: the previous one, or after a roll-back the best one.

    A round whose gate has not decided counts as promoted. Round 0 is its own parent.
    """
    if round_ <= 1 or config.gate is None:
        return max(round_ - 1, 0)
    outcome = settled(run, round_ - 1)
    return outcome.best_round if outcome is not None and outcome.verdict == "roll_back" else round_ - 1


def sampled_round(run: RunFolder, config: RunConfig, round_: int) -> int:
    """The round whose policy ``round_`` samples: its parent, or with ``training.lag`` that of the round before.

    The latter is known before the round before has trained, and no gate that is still to come changes it.
    """
    return parent(run, config, max(round_ - config.training.lag, 1))


def best_before(run: RunFolder, round_: int) -> int:
    """The best round before ``round_``, as recorded by the previous round's gate."""
    last = settled(run, round_ - 1) if round_ > 1 else None
    return 0 if last is None else last.best_round


def base_before(run: RunFolder, round_: int) -> int:
    """The round that the rules of ``round_`` measure from: the newest one that a person promoted, or the start."""
    earlier = ((number, settled(run, number)) for number in range(round_ - 1, 0, -1))
    return next((number for number, one in earlier if one is not None and one.answered and one.verdict == "promote"), 0)


def reference_round(run: RunFolder, config: RunConfig, round_: int, start: int | None = None) -> int:
    """The round whose policy is the reference of ``round_`` (for ema: whose average is).

    ``start``: the round whose policy it starts from, if that is not what the gates have decided so far.
    """
    training = config.training
    start = parent(run, config, round_) if start is None else start
    match training.reference:
        case "fixed":
            return 0
        case "previous" | "ema":
            return start
        case "every_n":
            due = ((round_ - 1) // training.reference_every) * training.reference_every
            # After a roll-back, the round rolled back is not an ancestor of any later one.
            ancestor = start
            while ancestor > due:
                ancestor = parent(run, config, ancestor)
            return ancestor


def reference_stages(run: RunFolder, config: RunConfig, round_: int, start: int | None = None) -> list[Stage]:
    """Stages whose models are the loss's references in ``round_``, in the order of its references.

    An extrapolated prior reads the two newest policies that the round descends from; in round 1 both are the start
    policy, unless ``training.references`` names the one before. Of the further references of a mixture, those named
    ``start`` are the start policy; the others are not stages.
    ``start`` is as in ``reference_round``.
    """
    newest = [reference_stage(run, config, round_, start)]
    if not isinstance(config.loss.inputs.prior, ExtrapolatedPrior):
        return [*newest, *(run.stage(0, "policy") for name in config.training.references if name == START)]
    if round_ == 1 and config.training.references:
        return newest
    start = parent(run, config, round_) if start is None else start
    return [*newest, run.stage(parent(run, config, start), "policy")]


def reference_stage(run: RunFolder, config: RunConfig, round_: int, start: int | None = None) -> Stage:
    """The stage that holds the reference model of ``round_``; ``start`` is as in ``reference_round``."""
    source = reference_round(run, config, round_, start)
    averaged = config.training.reference == "ema" and source > 0
    return run.stage(source, "average" if averaged else "policy")


# The stage of round 0 that refers to the other model of a sampling mixture, if it is none of the run's own policies.
MIXED_MODEL = "mixed_model"
# That of the model whose responses are paired with the policy's, and the stage with its responses.
SECOND_POLICY, SECOND_SAMPLES = "second_policy", "second_samples"


def mixed_path(config: RunConfig) -> str | None:
    """The other model of a sampling mixture, if it is none of the run's own policies."""
    return None if config.sampling.mixture is None else config.sampling.mixture.path


def second_path(config: RunConfig) -> str | None:
    """The model whose responses are paired with the policy's."""
    return None if config.pairing.second is None else config.pairing.second.path


def mixed_stage(run: RunFolder, config: RunConfig, round_: int) -> Stage | None:
    """The stage with the other model of the mixture that ``round_`` samples from; None: it is the policy alone.

    In round 1 the run's own policies are all the start policy, and the mixture is that policy.
    """
    mixture, sampled = config.sampling.mixture, sampled_round(run, config, round_)
    if mixture is None:
        return None
    if mixture.path is not None:
        return run.stage(0, MIXED_MODEL)
    other = 0 if mixture.reference == START else parent(run, config, sampled)
    return None if other == sampled else run.stage(other, "policy")
