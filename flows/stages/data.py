"""data: the user's files, read once, checked, split by prompt and frozen in the run folder."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.stages import Context, Outcome
from pipeline.config import RunConfig
from pipeline.data import read_preferences, read_prompts, read_texts, split_held_out
from pipeline.rows import (
    PROMPTS,
    TEXT_GROUPS,
    TEXT_PAIRS,
    TEXTS,
    UNPAIRED_TEXTS,
    prompt_row,
    read_rows,
    row_prompt,
    row_text_group,
    row_text_pair,
    row_unpaired_text,
    text_row,
    write_table,
)
from pipeline.types import Prompt, TextGroup, TextPair, TextPreference, UnpairedText, UserError, first_lines

Texts = list[tuple[Prompt, str]]


@dataclass(frozen=True)
class Tables:
    """A run's data: only ``held_out_pairs`` shares prompts with ``held_out``.

    Of ``pairs``, ``groups`` and ``unpaired`` one at most holds rows: a file has one form.
    """

    prompts: list[Prompt]
    held_out: list[Prompt]
    texts: Texts
    pairs: list[TextPair]
    groups: list[TextGroup]
    unpaired: list[UnpairedText]
    held_out_pairs: list[TextPair]


def data(context: Context, folder: Path) -> Outcome:
    """Write ``load_data``'s tables, one folder each."""
    tables = load_data(context.config)
    for name, schema, rows in (
        ("prompts", PROMPTS, [prompt_row(prompt) for prompt in tables.prompts]),
        ("held_out", PROMPTS, [prompt_row(prompt) for prompt in tables.held_out]),
        ("texts", TEXTS, [{"prompt": prompt_row(prompt), "text": text} for prompt, text in tables.texts]),
        ("pairs", TEXT_PAIRS, map(text_row, tables.pairs)),
        ("groups", TEXT_GROUPS, map(text_row, tables.groups)),
        ("unpaired", UNPAIRED_TEXTS, map(text_row, tables.unpaired)),
        ("held_out_pairs", TEXT_PAIRS, map(text_row, tables.held_out_pairs)),
    ):
        (folder / name).mkdir(exist_ok=True)
        write_table(folder / name / "rows.parquet", schema, rows)
    counts = {name: len(rows) for name, rows in vars(tables).items()}
    return Outcome(sum(counts.values()), dict(counts))


def load_data(config: RunConfig) -> Tables:
    """Read and split what the config names; writes nothing. Raises ``UserError`` for any fault in the data."""
    preferences = read_preferences(config.pairs) if config.pairs is not None else []
    source = config.prompts if config.prompts is not None else config.pairs
    assert source is not None, "the config's validator asks for prompts or pairs"
    prompts = read_prompts(source)
    given = _given_held_out(config)
    if given is None:
        train, held_out = split_held_out(prompts, config.held_out)
    else:
        train, held_out = prompts, given
        _refuse_leak(train, held_out, config)
    kept_out = {prompt.id for prompt in held_out}
    trained_on = [row for row in preferences if row.prompt.id not in kept_out]
    texts: Texts = []
    if config.warm_start is not None and config.prompts is not None:
        texts = [(prompt, text) for prompt, text in read_texts(config.prompts) if prompt.id not in kept_out]
        if not texts:
            raise UserError("warm_start: the prompt data holds no reference response to train on")
    if config.mode == "offline" and len(trained_on) < config.rounds:
        raise UserError(f"pairs: {len(trained_on)} rows are left for {config.rounds} rounds")
    if given is not None and config.prompts is None and config.pairs is not None:
        preferences = read_preferences(config.pairs.model_copy(update={"path": config.held_out.path}))
    return Tables(
        train,
        held_out,
        texts,
        pairs=[row for row in trained_on if isinstance(row, TextPair)],
        groups=[row for row in trained_on if isinstance(row, TextGroup)],
        unpaired=[row for row in trained_on if isinstance(row, UnpairedText)],
        held_out_pairs=_comparisons(row for row in preferences if row.prompt.id in kept_out),
    )


def training_prompts(context: Context) -> list[Prompt]:
    """The prompts that rounds may train on, in the order of the data."""
    return _prompts(context, "prompts")


def held_out_prompts(context: Context) -> list[Prompt]:
    """The prompts that no round trains on."""
    return _prompts(context, "held_out")


def warm_start_texts(context: Context) -> Iterator[tuple[Prompt, str]]:
    """Prompts and reference responses for the warm start."""
    return ((row_prompt(row["prompt"]), row["text"]) for row in read_rows(_folder(context) / "texts"))


def text_preferences(context: Context) -> list[TextPreference]:
    """The preferences of the data set that rounds may train on, in its order, of whatever form."""
    folder = _folder(context)
    found: list[TextPreference] = [row_text_pair(row) for row in read_rows(folder / "pairs")]
    found += [row_text_group(row) for row in read_rows(folder / "groups")]
    found += [row_unpaired_text(row) for row in read_rows(folder / "unpaired")]
    return found


def held_out_pairs(context: Context) -> list[TextPair]:
    """Pairs of the data set whose prompts no round trains on."""
    return [row_text_pair(row) for row in read_rows(_folder(context) / "held_out_pairs")]


def _comparisons(preferences: Iterable[TextPreference]) -> list[TextPair]:
    """Pairs as they are, of each group its best against its worst response; single responses compare nothing."""
    found: list[TextPair] = []
    for row in preferences:
        if isinstance(row, TextPair):
            found.append(row)
        elif isinstance(row, TextGroup) and max(row.rewards) > min(row.rewards):
            best, worst = (row.rewards.index(choose(row.rewards)) for choose in (max, min))
            scores = (row.rewards[best], row.rewards[worst])
            found.append(TextPair(row.prompt, row.responses[best], row.responses[worst], *scores))
    return found


def _folder(context: Context) -> Path:
    return context.run.stage(0, "data").folder


def _prompts(context: Context, name: str) -> list[Prompt]:
    return [row_prompt(row) for row in read_rows(_folder(context) / name)]


def _given_held_out(config: RunConfig) -> list[Prompt] | None:
    if config.held_out.path is None:
        return None
    source = config.prompts if config.prompts is not None and config.prompts.kind == "file" else config.pairs
    if source is None:
        raise UserError("held_out.path: held-out prompts from a file go with prompts or pairs from a file")
    return read_prompts(source.model_copy(update={"path": config.held_out.path}))[: config.held_out.prompts]


def _refuse_leak(train: list[Prompt], held_out: list[Prompt], config: RunConfig) -> None:
    trained = {prompt.id for prompt in train}
    shared = [prompt.messages[-1].content[:80] for prompt in held_out if prompt.id in trained]
    if shared:
        raise UserError(
            f"held_out.path: {config.held_out.path}: {len(shared)} held-out prompts are training prompts too:\n"
            + first_lines(shared)
        )
