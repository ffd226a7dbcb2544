"""``prefloop reward-model``: train a reward model on pairs, and measure it on held-out pairs."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from flows.preflight.chat_template import check_rendering
from flows.preflight.fault_log import FaultLog
from flows.preflight.model_folders import check_classifier_start
from flows.preflight.understand import understood_data
from flows.report.progress import make_console, progress
from flows.run_folder.key_parts import being_written, source_digest
from flows.run_folder.lease import hold
from pipeline.config import MixtureData, PairData, RewardModelConfig
from pipeline.config.files import dump_config, load_settings
from pipeline.data.dropping import decisive
from pipeline.data.faults import FaultFinder
from pipeline.data.reading import read_preferences
from pipeline.data.sources import given_source
from pipeline.data.split import Split, split_held_out
from pipeline.data.spool.distinct import DistinctPrompts
from pipeline.data.spool.mixing import MemberRows, MixtureRows, select
from pipeline.errors import RunError, UserError, first_lines
from pipeline.storage.atomic import write_json, write_text
from pipeline.storage.digests import file_sha256, model_digest
from pipeline.storage.layout import as_now_called, as_read, require_known, state_version
from pipeline.storage.manifest import MANIFEST, StageKey
from pipeline.storage.run_folder import CHECKPOINTS, Stage, StageWriter
from pipeline.training.step_log import StepReport
from pipeline.types import TextPair, TextPreference
from reward_models.training.comparisons import pairs_of
from reward_models.training.train import OFFENDING_PAIRS, describe_held_out, judge, quieten, train_on

_CONFIG = "config.yaml"


@dataclass(frozen=True)
class _Data:
    """Training and held-out pairs, disjoint by prompt."""

    train: list[TextPair]
    held_out: list[TextPair]
    members: list[MemberRows]


def make_reward_model(files: list[Path], settings: list[str], run_dir: Path | None) -> None:
    """Train, continue, or describe a complete folder. Raises ``UserError`` or ``RunError``."""
    config = load_settings(RewardModelConfig, files, settings)
    root = (run_dir or Path("runs") / config.name).resolve()
    config = _carried(config, root)
    model = config.model
    check_rendering(config.chat, model.path, model.revision, trust_remote_code=model.trust_remote_code)
    stage, key = Stage(root.name, 0, root), _key(config)
    if not stage.complete(key):
        check_classifier_start(Path(config.model.path), "", "model.path", config.max_tokens)
        source, read = understood_data(config.pairs, "pairs")
        for line in read:
            print(line, file=sys.stderr)
        config = config.model_copy(update={"pairs": source})
        key = _key(config)
    if not stage.complete(key):
        data = read_data(config)
        if _key(config).config["files"] != key.config["files"]:
            raise RunError(being_written("pairs", config.pairs.where))
        with _alone(root) as lease, _card(config, lease / "server.log"):
            # Another process may have completed it while the data was read.
            if not stage.complete(key):
                _write(config, data, stage.begin(key))
    for line in describe_held_out(json.loads((root / "metrics.json").read_text(encoding="utf-8"))["held_out"]):
        print(line)
    print(f"reward model: {root}")


def _carried(config: RewardModelConfig, root: Path) -> RewardModelConfig:
    """Return ``config``, to go on with the folder ``root``. Raises ``UserError`` for one of a later version."""
    require_known(root)
    if not (root / MANIFEST).is_file() or not (root / _CONFIG).is_file():
        return config
    begun = load_settings(RewardModelConfig, [root / _CONFIG], as_now=as_now_called)
    return config.model_copy(update={"pairs": as_read(begun.pairs, config.pairs)})


def _write(config: RewardModelConfig, data: _Data, writer: StageWriter) -> None:
    try:
        _fill(config, data, writer)
    except UserError:
        if not (writer.folder / CHECKPOINTS).exists():
            shutil.rmtree(writer.folder)
        raise


@contextmanager
def _card(config: RewardModelConfig, log: Path) -> Iterator[None]:
    """Hold a slot of the accelerator's limit, if the config names one. ``log``: of a server that is started for it."""
    if config.resources.gpu is None:
        yield
        return
    # Without a limit nothing speaks to Prefect, which takes seconds to import.
    from flows.prefect_api.environment import prepare_environment

    prepare_environment()
    from flows.prefect_api.server import prefect_api
    from flows.prefect_api.slots import SharedSlots

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    # What is on the accelerator goes with this process, which ends at once.
    limits = {"gpu": config.resources.gpu}
    with prefect_api(log), SharedSlots(limits, lambda _: None) as slots, slots.held(["gpu"], say, lambda: None):
        yield


@contextmanager
def _alone(root: Path) -> Iterator[Path]:
    """Allow one writer at a time; yield the lease's folder.

    It is next to the folder, because new settings replace the folder.

    Raises:
        UserError: another process writes there, or the place is not writable.
    """
    lease = root.with_name(f".{root.name}.lease")
    try:
        lease.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root}: cannot write there ({error.strerror})") from None
    with hold(lease):
        yield lease


def read_data(config: RewardModelConfig) -> _Data:
    """Read training and held-out pairs. Raises ``UserError`` for faults above ``config.limits``."""
    mixture = select(config.pairs, read_preferences(config.pairs)) if isinstance(config.pairs, MixtureData) else None
    pairs, given = list(_pairs(config, config.pairs, "pairs", mixture)), given_source(config.pairs, config.held_out)
    if given is None:
        distinct = DistinctPrompts(config.held_out.by == "source")
        for pair in pairs:
            distinct.add(pair.prompt)
        split = split_held_out(distinct, config.held_out, distinct.together())
        inside = [pair for pair in pairs if split.holds_out(pair.prompt)]
    else:
        inside = list(_pairs(config, given, "held_out"))
        first = {*list(dict.fromkeys(pair.prompt.id for pair in inside))[: config.held_out.prompts]}
        inside = [pair for pair in inside if pair.prompt.id in first]
        split = Split.of([pair.prompt for pair in inside])
        leaked = [pair.prompt.messages[-1].content[:80] for pair in pairs if split.copies(pair.prompt)]
        if len(leaked) > config.limits.share("leak") * len(pairs):
            shown = first_lines([*dict.fromkeys(leaked)])
            raise UserError(f"held_out: {given.where}: {len(leaked)} training pairs have its prompts:\n{shown}")
    train = [pair for pair in pairs if not split.copies(pair.prompt)]
    print(f"pairs: {len(train):,} of {len(pairs):,} to train on, {len(inside):,} held out", file=sys.stderr)
    members = [] if mixture is None else mixture.counts("pairs")
    for one in members:
        print(f"{one.name}: uses {one.used:,} of {one.readable:,} rows of {one.where}", file=sys.stderr)
    return _Data(train, inside, members)


def _pairs(
    config: RewardModelConfig, source: PairData, name: str, mixture: MixtureRows | None = None
) -> Iterator[TextPair]:
    """Yield the pairs of two responses with text. Raises as ``_sound`` does."""
    made = pairs_of(_sound(config, source, name, mixture))
    return (pair for pair in made if all(turn.shown.strip() for turn in pair.answers))


def _sound(
    config: RewardModelConfig, source: PairData, section: str, mixture: MixtureRows | None
) -> Iterator[TextPreference]:
    """Yield the rows that can be read. Raises ``UserError`` after the last for faults above the limits, or no rows."""
    finder, log = FaultFinder(dropped=config.limits.dropped), FaultLog(config.limits)
    for row in read_preferences(source):
        if mixture is not None and not mixture.keeps(row):
            continue
        name = row.name_in(section)
        log.row(name)
        if row.value is None:
            log.fault(name, row.file, row.number, row.cause, str(row.fault))
            continue
        found = decisive([*finder.faults(row.place, row.value)], config.limits.dropped)
        for cause, said in found:
            log.fault(name, row.file, row.number, cause, said)
        if not any(cause in config.limits.dropped for cause, _ in found):
            yield row.value
    if not log.tallies:
        raise UserError(f"{source.where}: holds no rows")
    log.check()
    if log.found:
        print("\n".join(["faults in the data, within their limits:", *log.lines()]), file=sys.stderr)


def _key(config: RewardModelConfig) -> StageKey:
    sources = {"pairs": config.pairs, "held_out": given_source(config.pairs, config.held_out)}
    plain: dict[str, JsonValue] = {k: v for k, v in config.identity().items() if k not in ("name", "seed")}
    plain |= {"limits": config.limits.identity()} if config.limits.dropped else {}
    plain["files"] = {name: source_digest(data) for name, data in sources.items() if data is not None}
    if config.chat.template_file is not None:
        plain["template_file"] = file_sha256(Path(config.chat.template_file))
    plain["model_files"] = model_digest(Path(config.model.path))
    return StageKey(config=plain, inputs={}, seed=config.seed)


def _fill(config: RewardModelConfig, data: _Data, writer: StageWriter) -> None:
    """Train in ``writer``'s folder, evaluate the result, commit."""
    quieten()
    console, folder = make_console(), writer.folder
    with progress(f"reward model · {config.name}", "steps", console) as report:

        def on_step(step: StepReport) -> None:
            report(step.step, step.steps, f"loss {step.loss:.4f}, {step.tokens_per_second:.0f} tokens/s")
            writer.note_time()

        metrics = train_on(config, data.train, folder, on_step)
    eta = metrics.get("eta")
    found = judge(folder, config, data.held_out, eta if isinstance(eta, float) else None)
    metrics |= {"held_out": found}
    if data.members:
        metrics |= {"mixtures": {one.name: {"used": one.used, "readable": one.readable} for one in data.members}}
    write_json(folder / "metrics.json", metrics)
    write_text(folder / _CONFIG, dump_config(config))
    state_version(folder)
    (folder / OFFENDING_PAIRS).unlink(missing_ok=True)
    writer.commit(int(str(metrics["pairs"])), metrics)
