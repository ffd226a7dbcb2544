"""A pass over all rows of a run's data before it starts: faults by cause, and counts of the contents."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.preflight.fault_log import FaultLog
from flows.preflight.row_account import RowAccount
from flows.preflight.row_view import view_row
from flows.preflight.tokens import tokens_for_dropping, tokens_of
from flows.report.progress import Report, silent
from pipeline.config import RunConfig, UserData
from pipeline.config.data.mixture import part_of
from pipeline.data.counts import Contents
from pipeline.data.dropping import decisive, judged_part
from pipeline.data.faults import Fault, FaultFinder, Tokens
from pipeline.data.reading import PromptRow
from pipeline.data.run_data import HELD_OUT_PAIRS, RunData, open_data
from pipeline.data.spool.kept_rows import RunRows
from pipeline.errors import UserError
from pipeline.types import Prompt, TextGroup, TextPreference
from pipeline.types.counts import number_of

_REPORTED = 50  # one of so many rows
# Fewer of them are ranks by chance.
_FEWEST_RANKS, _FEWEST_GROUPS = 3, 8


def check_data(
    config: RunConfig,
    file: Path | None,
    each: Callable[[Prompt], object],
    show: int = 1,
    shown: list[str] | None = None,
    report: Report = silent,
) -> tuple[Contents, FaultLog]:
    """Return the counts of the contents and the faults; also write the faults to ``file``.

    ``each`` is called with every distinct prompt and raises ``UserError`` for an unusable one. ``shown`` gets lines
    that show the first row from number ``show`` on of each source, also if the data is refused. ``report`` gets the
    number of rows that were read, then of those that were checked.

    Raises:
        UserError: faults above ``config.limits``, nothing left to train on, or no row from number ``show`` on.
    """
    run_data: RunData | None = None
    unsplit: UserError | None = None
    tokens, count = tokens_for_dropping(config), _Count(report)
    rows = RunRows(config, count.read)
    with FaultLog(config.limits, file) as log:
        try:
            run_data = open_data(config, tokens, rows)
        except UserError as error:
            # Unreadable rows explain more than too few rows left.
            unsplit = error
        shown = [] if shown is None else shown
        past = _log_faults(config, run_data, rows, tokens, count, log, show, shown)
    nothing = past and not shown
    shown += past
    log.check()
    if run_data is None:
        assert unsplit is not None
        raise unsplit
    if nothing:
        raise UserError(f"--show: {'; '.join(past)}")
    return _contents(run_data, each), log


def notes_on_prompts(config: RunConfig, prompts: int) -> list[str]:
    """Return what to say of a run whose rounds ask for more prompts than there are; ``prompts``: to train on."""
    wanted = config.prompts_per_round
    if config.mode == "offline" or wanted is None or wanted <= prompts:
        return []
    there = f"there {'is' if prompts == 1 else 'are'} {number_of(prompts, 'prompt')}"
    return [f"prompts_per_round: {wanted:,}, but {there} to train on: a round samples them all"]


def _contents(run_data: RunData, each: Callable[[Prompt], object]) -> Contents:
    config, contents = run_data.config, Contents()
    for prompt in run_data.split.held_out:
        each(prompt)
        contents.held_out += 1
    for prompt in run_data.prompts():
        each(prompt)
        contents.prompts += 1
    contents.texts = sum(1 for _ in run_data.texts())
    for table, row in run_data.preferences():
        if table == HELD_OUT_PAIRS:
            contents.held_out_pairs += 1
        else:
            contents.add(row)
    if not contents.prompts:
        raise UserError("prompts: all of them are also held out (ignoring case, spaces and Unicode form)")
    if config.warm_start is not None and not contents.texts and config.modality == "text":
        raise UserError("warm_start: the prompt data holds no reference response to train on")
    if config.training.evaluate_every and not contents.held_out_pairs:
        raise UserError("training.evaluate_every: no pair is held out to evaluate on; see held_out.prompts")
    if config.mode == "offline" and contents.preferences < config.rounds:
        left, rounds = contents.preferences, config.rounds
        raise UserError(f"pairs: {number_of(left, 'row')} left for {number_of(rounds, 'round')}; each needs one")
    return contents


class _Count:
    """Counts the rows that are read, then those that are checked, and reports some of the counts."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._read = 0
        self._checked = 0

    def read(self) -> None:
        """Count one row more that was read."""
        self._read += 1
        if self._read % _REPORTED == 1:
            self._report(self._read, 0, "read")

    def checked(self) -> None:
        """Count one row more that was checked."""
        self._checked += 1
        if self._checked % _REPORTED == 1:
            self._report(self._checked, self._read, "checked")


def _log_faults(
    config: RunConfig,
    run_data: RunData | None,
    all_rows: RunRows,
    tokens: Tokens | None,
    count: _Count,
    log: FaultLog,
    show: int,
    shown: list[str],
) -> list[str]:
    """Log the faults of all rows; return a line for each source that ends before row ``show``."""
    if tokens is None and run_data is not None and config.modality == "text":
        tokens = tokens_of(config, _texts(run_data))
    given = run_data is not None and config.held_out.is_given
    past: list[str] = []
    account = RowAccount(config, None if run_data is None else run_data.split)
    for source, rows in all_rows.all():
        leaks = run_data.split if run_data is not None and given and source != "held_out" else None
        finder = FaultFinder(tokens, leaks, config.limits.dropped)
        parts: dict[str, _Part] = {}
        for row in rows:
            count.checked()
            name = row.name_in(source)
            part = parts.setdefault(name, _Part(_settings(config, source, row.member), source != "held_out"))
            log.row(name)
            part.last = max(part.last, row.number)
            if part.waiting and row.number >= show:
                part.waiting = False
                shown += view_row(name, row, tokens, part.data, images=config.modality == "image")
            if row.value is None:
                found: Sequence[Fault] = [(row.cause, str(row.fault))]
            else:
                part.ranks.add(row.value)
                faults = [*finder.faults(row.place, judged_part(row.value, config))]
                found = decisive(faults, config.limits.dropped)
            for cause, said in found:
                log.fault(name, row.file, row.number, cause, said)
            account.add(source, row, found)
        for name, part in parts.items():
            if part.waiting and part.last:
                past.append(_past(name, show, part.last, log.tallies[name].rows, part.data))
            part.ranks.require_meaning(part.data, name)
    if run_data is not None:
        log.account = [*account.lines(), *_mixtures(all_rows), *_guesses(run_data)]
    return past


def _mixtures(rows: RunRows) -> list[str]:
    """Return a line for each member of a mixture."""
    return [f"{one.name}: uses {one.used:,} of {one.readable:,} rows of {one.where}" for one in rows.members()]


def _guesses(run_data: RunData) -> list[str]:
    """Return a line if prompts are only the common start of two texts."""
    guessed, longer = run_data.distinct.guesses()
    if not guessed:
        return []
    return [
        f"{guessed:,} distinct prompts are guessed: the common start of chosen and rejected; {longer:,} of them begin "
        "with another one, and are held out or trained on together with it"
    ]


def _texts(run_data: RunData) -> Iterator[str]:
    """Yield the texts of the warm start, which a policy's tokenizer is made from."""
    for prompt, text in run_data.texts():
        yield from (*(message.content for message in prompt.messages), text)


def _past(source: str, show: int, last: int, rows: int, data: UserData | None) -> str:
    """Say that no row, or group of rows, has the number ``show`` or a larger one; ``rows``: how many there are."""
    if data is not None and data.rows == "responses":
        return f"{source}: none of the {rows} groups begins at row {show} or later; the last one begins at row {last}"
    return f"{source}: no row {show}: there are {rows} rows, and the last one is row {last}"


class _Permutations:
    """Counts groups whose rewards are 1 to K in some order, as ranks are."""

    def __init__(self) -> None:
        self._groups = 0
        self._ranked = 0

    def add(self, row: PromptRow | TextPreference) -> None:
        """Count one row."""
        if isinstance(row, TextGroup):
            self._groups += 1
            found = sorted(reward for reward in row.rewards if reward is not None)
            self._ranked += len(found) >= _FEWEST_RANKS and found == [
                float(place) for place in range(1, len(found) + 1)
            ]

    def require_meaning(self, data: UserData | None, source: str) -> None:
        """Raise ``UserError`` if all groups have such rewards and the config does not say what they mean."""
        alike = self._groups == self._ranked >= _FEWEST_GROUPS
        if alike and data is not None and data.rewards_are is None:
            raise UserError(
                f"{source}.rewards_are: the rewards of all {self._groups} rows are 1 to K in some order. "
                f"Say {source}.rewards_are=ranks if 1 is the best, {source}.rewards_are=scores if it is the worst"
            )


@dataclass
class _Part:
    """A file or data set that is looked through: its last row, and whether the row to show is yet to come."""

    data: UserData | None
    waiting: bool
    last: int = 0
    ranks: _Permutations = field(default_factory=_Permutations)


def _settings(config: RunConfig, source: str, member: int | None) -> UserData | None:
    return part_of(config.pairs if source == "pairs" else config.prompts, member)
