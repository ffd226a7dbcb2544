"""``prefloop check``, and the checks before a run starts: config, data, model folders."""

import json
import sys
from pathlib import Path

from flows.preflight.chat_template import check_template
from flows.preflight.context_parallel import check_context_parallel
from flows.preflight.data import check_data, notes_on_prompts
from flows.preflight.fault_log import FaultLog
from flows.preflight.labellers import check_answer, check_scorer, check_second, check_suites
from flows.preflight.loss_needs import check_needs, loss_name
from flows.preflight.model_folders import (
    check_classifier_start,
    check_engine,
    check_image_policy,
    check_image_prompt,
    check_policy_folder,
)
from flows.preflight.policy_weights import check_policy_weights, notes_on_serving
from flows.preflight.understand import understood
from flows.report.progress import make_console, progress
from flows.report.trackers.follow import require_trackers
from flows.run_folder.growth import has_grown, require_as_it_was
from flows.workers.local import has_accelerator, with_context
from flows.workers.machines.cluster.placing import require_cluster
from flows.workers.pool.label_engine import label_seats
from flows.workers.pool.seating import require_whole_cards, seating_of
from pipeline.config import DiffusersSampler, PretrainedPolicy, RayCluster, RunConfig, TransformersSampler
from pipeline.config.files import load_config
from pipeline.config.loss.needs import needs_of
from pipeline.config.training import START
from pipeline.data.counts import Contents
from pipeline.errors import UserError
from pipeline.safe_text import name_keys
from pipeline.sampling.engine_args import require_engine_args
from pipeline.storage.layout import require_known
from pipeline.storage.run_folder import RunFolder
from pipeline.training.distributed.launch import read_launch
from pipeline.training.distributed.requirements import require_launcher, require_optimiser
from pipeline.types import Prompt
from pipeline.types.counts import number_of


def check_config(files: list[Path], settings: list[str], faults: Path | None = None, show: int | None = None) -> None:
    """Describe the config. Raises ``UserError`` for every mistake that can be found without training.

    ``faults``: file that lists rows with a fault; default: ``faults_file`` of the run's usual folder. ``show``: number
    of the row to show, also if the data is refused; default: the first one.
    """
    config, read = understood(load_config(files, settings))
    for line in read:
        print(line)
    require_cluster(config)
    file = faults or faults_file(Path("runs") / config.name)
    shown: list[str] = []
    try:
        contents, log = check_run(config, file, show or 1, shown)
    except UserError:
        if show is not None:
            print("\n".join(shown))
        raise
    for line in _describe(config, contents):
        print(line)
    for line in log.account:
        print(f"  {line}")
    if log.found:
        print("\n".join(["  faults in the data, within their limits:", *(f"  {line}" for line in log.lines())]))
        print(f"  these rows: {file}")
    print("\n".join(shown))


def faults_file(root: Path) -> Path:
    """Return the file that lists the data faults of the run folder ``root``, next to the folder."""
    return root.with_name(f"{root.name}.faults.jsonl")


def _check_policy_files(config: RunConfig, folder: Path) -> None:
    check_policy_folder(folder, "policy.path", _longest(config), trust_remote_code=config.trusts_policy)
    if config.mode == "iterative" or config.prompts is not None:
        check_engine(folder, config.sampler)


def check_run(
    config: RunConfig, faults: Path | None = None, show: int = 1, shown: list[str] | None = None
) -> tuple[Contents, FaultLog]:
    """Check that model folders, data, scorer and loss fit; return the data's contents and faults.

    Raises ``UserError``; writes only ``faults``. Model folders must hold the files that are read. Prompts must have
    the answers that the scorer compares with. ``show`` and ``shown``: see ``check_data``.
    """
    name_keys(config.model_dump(mode="json"))
    longest, trusted = _longest(config), config.trusts_policy
    if isinstance(config.policy, PretrainedPolicy):
        _check_policy_files(config, Path(config.policy.path))
    if config.modality == "image":
        check_image_policy(config)
    check_template(config)
    check_policy_weights(config)
    if config.scorer is not None:
        check_scorer(config.scorer, images=config.modality == "image")
    label_seats(config, seating_of(config).rest)
    if config.gate is not None and config.gate.second is not None:
        check_second(config.scorer, config.gate.second)
    check_suites(config)
    if config.discriminator is not None and config.discriminator.start is not None:
        check_classifier_start(
            Path(config.discriminator.start), "discriminator", "start", config.discriminator.max_tokens
        )
    for field, path in _further_models(config):
        check_policy_folder(Path(path), field, longest, trust_remote_code=trusted)
    if config.pairing.second is not None:
        check_policy_folder(Path(config.pairing.second.path), "pairing.second.path", longest, trust_remote_code=False)
    _check_training(config)
    require_trackers(config)
    with progress("data", "rows", make_console()) as report:
        contents, log = check_data(config, faults, lambda prompt: _check_prompt(config, prompt), show, shown, report)
    check_needs(config, contents)
    if isinstance(config.policy, PretrainedPolicy) and Path(config.policy.path).exists():
        for field, path in _further_models(config):
            check_vocabulary(Path(config.policy.path), Path(path), field)
    return contents, log


def _describe(config: RunConfig, contents: Contents) -> list[str]:
    """Describe in a few lines what would run."""
    rounds = number_of(config.rounds, "round")
    lines = [f"{config.name}: {config.mode}, {rounds}, seed {config.seed}: config and data are valid"]
    lines += [f"  {name.replace('_', ' ')}: {size}" for name, size in contents.sizes.items()]
    if config.mode == "iterative":
        prompts = min(config.prompts_per_round or contents.prompts, contents.prompts)
        lines.append(f"  a round samples {number_of(prompts, 'prompt')} x {number_of(config.sampling.n, 'response')}")
    needs = sorted(needs_of(config.loss))
    notes = (*notes_on_prompts(config, contents.prompts), *notes_on_serving(config))
    lines += [f"  {note}" for note in notes]
    lines.append(f"  {loss_name(config)} reads {', '.join(needs) or 'only the policy'}")
    return lines


def _check_prompt(config: RunConfig, prompt: Prompt) -> None:
    """Raise ``UserError`` if the prompt lacks an answer that a labeller compares with, or a class to be drawn."""
    check_image_prompt(config, prompt)
    if config.scorer is not None:
        check_answer(config.scorer, prompt)
    if config.gate is not None and config.gate.second is not None:
        check_answer(config.gate.second, prompt)


def check_vocabulary(policy: Path, other: Path, field: str) -> None:
    """Raise ``UserError`` if two model folders map token ids to different words, judging by their files.

    Log-probs under the other model would then be for other words. Sizes are compared only if a tokenizer is missing:
    models with the same tokenizer may pad their embeddings differently.
    """
    words = [_words(folder) for folder in (policy, other)]
    if all(words):
        if words[0] != words[1]:
            raise UserError(
                f"{field}: {other}: its tokenizer and that of policy.path give different ids; they must be the same"
            )
        return
    sizes = [_vocabulary_size(folder) for folder in (policy, other)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise UserError(
            f"{field}: {other}: a vocabulary of {sizes[1]}, but policy.path has {sizes[0]}; they must be the same"
        )


def _longest(config: RunConfig) -> int:
    """Tokens of the longest prompt and response, of data or as the engine is started for them."""
    engine = with_context(config)
    context = None if isinstance(engine, TransformersSampler | DiffusersSampler) else engine.context
    answer = max(config.chat.max_response_tokens, config.sampling.max_tokens)
    return max(config.chat.max_prompt_tokens + answer, context or 0)


def _further_models(config: RunConfig) -> list[tuple[str, str]]:
    contrast = config.training.contrastive
    found = [("training.references", path) for path in config.training.references if path != START]
    if config.sampling.mixture is not None and config.sampling.mixture.path is not None:
        found.append(("sampling.mixture.reference", config.sampling.mixture.path))
    if contrast is not None:
        sides = {"positive": contrast.positive, "negative": contrast.negative}
        found += [(f"training.contrastive.{name}", path) for name, path in sides.items()]
    return found


def _check_training(config: RunConfig) -> None:
    if not isinstance(config.sampler, TransformersSampler | DiffusersSampler):
        require_engine_args(config.sampler.engine_args)
    if config.mode == "iterative" and not isinstance(config.cluster, RayCluster):
        require_whole_cards(seating_of(config))
    launch = read_launch(config)
    require_launcher(config, launch)
    check_context_parallel(config)
    there = isinstance(config.cluster, RayCluster) or has_accelerator()
    on_accelerator = there and not (launch is not None and launch.cpu)
    for section, settings in (("training", config.training), ("warm_start", config.warm_start)):
        if settings is not None:
            require_optimiser(settings, section, on_accelerator=on_accelerator)


def _vocabulary_size(folder: Path) -> int | None:
    try:
        size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return size if isinstance(size, int) else None


def _words(folder: Path) -> dict[str, int]:
    """Return the word ids of a tokenizer.json, including added words; empty without that file."""
    try:
        plain = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        words: dict[str, int] = dict(plain["model"]["vocab"])
        return words | {token["content"]: token["id"] for token in plain.get("added_tokens", [])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def check_new(config: RunConfig, root: Path) -> None:
    """Check config and data if ``root`` does not hold the run's data yet, or if prompts were added.

    Prints the faults that are within limits.

    Runs before anything is written, so a mistake leaves no run folder behind. Raises ``UserError``.
    """
    require_known(root)
    run = RunFolder(root)
    config = run.carried(config)
    require_cluster(config)
    if run.stage(0, "data").folder.exists():
        require_as_it_was(run, config)
        check_template(config)
        if not has_grown(run, config):
            return
    contents, log = check_run(config, faults_file(root))
    for line in (*log.account, *notes_on_prompts(config, contents.prompts), *notes_on_serving(config)):
        print(line, file=sys.stderr)
    if log.found:
        print("\n".join(["faults in the data, within their limits:", *log.lines()]), file=sys.stderr)
    check_fetched(config)


def check_fetched(config: RunConfig) -> None:
    """Fetch a policy that is named by its hub name, and check its files as those of a folder are. See ``check_run``."""
    if isinstance(config.policy, PretrainedPolicy) and not Path(config.policy.path).exists():
        from pipeline.models.policy import local_folder

        fetched = local_folder(config.policy.path, config.policy.revision)
        check_policy_weights(config, fetched)
        _check_policy_files(config, fetched)
