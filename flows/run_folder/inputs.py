"""Which stages a stage reads, and whether they are still what was written. Torch-free."""

from flows.run_folder.growth import added_stages
from flows.run_folder.stage_keys import dependencies
from pipeline.config import RunConfig
from pipeline.config.loss.needs import needs_of
from pipeline.config.reward_model import buys
from pipeline.storage.integrity import require_intact
from pipeline.storage.manifest import DamagedError
from pipeline.storage.run_folder import RunFolder, Stage


def reads(run: RunFolder, config: RunConfig, round_: int, name: str) -> list[Stage]:
    """All stages whose files the stage ``name`` opens.

    Its key names those that vouch for the others: an evaluation depends on its samples, and reads the policy too.
    """
    found = dependencies(run, config, round_, name)[1]
    if name == "evaluation":
        # KL is to the policies whose evaluations it is compared with.
        rounds = {0, round_, *(stage.round for stage in found if stage.name == name)}
        found = [*found, run.stage(0, "data"), *added_stages(run, round_)]
        found += [*(run.stage(number, "policy") for number in sorted(rounds))]
    if name == "gate":
        # The start, the parent, the best round and the rules' base: any of the rounds before.
        earlier = [run.stage(number, one) for number in range(round_) for one in ("evaluation", "gate")]
        found = [*found, *(stage for stage in earlier if stage.folder.exists())]
    if name in ("gold", "discriminator", "labels") and config.discriminator is not None:
        found = [*found, *labelling(run, 1 if config.discriminator.silver == "static" else round_ - 1)]
    return list(dict.fromkeys(found))


def labelling(run: RunFolder, round_: int) -> list[Stage]:
    """The discriminator of ``round_``, and the earlier one that it names where it did not pass its gate."""
    newest = run.stage(round_, "discriminator")
    if not newest.folder.exists():
        return []
    try:
        manifest = newest.manifest()
    except DamagedError:
        # It cannot say which; any of them may be read.
        return [stage for n in range(1, round_ + 1) if (stage := run.stage(n, "discriminator")).folder.exists()]
    labels_with = None if manifest is None else manifest.metrics.get("labels_with")
    return [newest, *(stage for stage in run.stages() if stage.title == labels_with)]


def made_in(config: RunConfig, round_: int, name: str) -> bool:
    """Whether all rounds like ``round_`` have the stage ``name``."""
    match name:
        case "added_prompts":
            return False
        case "gold":
            return config.discriminator is not None and buys(config.discriminator, round_)
        case "discriminator":
            return (
                config.discriminator is not None and buys(config.discriminator, round_) and config.discriminator.trains
            )
        case "calibration":
            return needs_of(config.loss).calibration
        case "reference":
            return needs_of(config.loss).stored_reference
        case "average":
            return config.training.reference == "ema"
        case "gate":
            return config.gate is not None
        case _:
            return True


def check_inputs(run: RunFolder, config: RunConfig, round_: int, name: str) -> None:
    """Read all that the stage ``name`` is about to read, once a process. Raises as ``require_intact``."""
    for stage in reads(run, config, round_, name):
        require_intact(stage)
