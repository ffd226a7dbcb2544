"""gold: a few comparisons of the round's responses, answered by the gold labeller or by people."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from flows.stages.context import Context, Outcome, policy_rendering
from flows.stages.labels.discriminator import member_margins
from flows.stages.labels.shards import Shard, label_shards, open_accounts
from pipeline.config.labellers.reward_model import Discriminator, bought
from pipeline.errors import Paused, RunError, UserError, first_lines
from pipeline.storage.atomic import json_line, write_text
from pipeline.storage.rows import read_groups, write_groups
from pipeline.types import Group
from reward_models.build import build_labeller
from reward_models.people.people import Answers, question, questions_page, read_answers, with_votes
from reward_models.training.gold import choose_comparisons, comparison_of

# Comparisons labelled between two commits to disk, so that paid answers are kept.
_SHARD = 64


def gold(context: Context, round_: int, folder: Path) -> Outcome:
    """Choose comparisons and write them with their scores, shard by shard.

    Raises:
        RunError: nothing to compare, or fewer answers than ``labelling.min_yield``.
        Paused: people have not answered everything within ``discriminator.wait`` seconds.
    """
    settings = context.config.discriminator
    assert settings is not None, "the stage runs only if a discriminator is configured"
    chosen = _chosen(context, round_, settings)
    if not chosen:
        raise RunError("no prompt of the round has two different responses to compare")
    facts: dict[str, JsonValue] = {}
    if settings.gold == "people":
        answered = answers_of_people(context, round_, chosen, settings.wait, settings.poll)
        write_groups(folder / "shard_00000.parquet", answered)
    else:
        facts = _of_scorer(context, round_, folder, chosen)
    found = list(read_groups(folder))
    return Outcome(len(found), {**_counts(found), **facts})


def _chosen(context: Context, round_: int, settings: Discriminator) -> list[Group]:
    groups = read_groups(context.run.stage(round_, "samples").folder)
    seed = context.config.seed
    candidates = [found for group in groups if (found := comparison_of(group, seed, round_)) is not None]
    rule, margins = settings.select, list[tuple[float, ...]]()
    if rule != "random":
        known = member_margins(context, round_ - 1, candidates)
        rule, margins = ("random", []) if known is None else (rule, known)
    return choose_comparisons(candidates, bought(settings, context.config.rounds, round_), rule, margins, seed, round_)


def _of_scorer(context: Context, round_: int, folder: Path, chosen: Sequence[Group]) -> dict[str, JsonValue]:
    """Have ``chosen`` labelled; return metrics of the labels' cost."""
    assert context.config.scorer is not None, "the config's validator requires a scorer"
    parts = [chosen[start : start + _SHARD] for start in range(0, len(chosen), _SHARD)]
    shards = [Shard(f"shard_{n:05d}.parquet", partial(list[Group], part), len(chosen)) for n, part in enumerate(parts)]
    with open_accounts(context, round_, "gold") as accounts:
        labeller = build_labeller(context.config.scorer, accounts, rendering=policy_rendering(context.config))
        return label_shards(context, folder, shards, labeller, accounts)


def handover(context: Context, round_: int) -> Path:
    """The folder of people's questions and answers; outside the stage, so that it can be filled over days."""
    return context.run.root / "questions" / f"round_{round_:03d}"


def answers_of_people(
    context: Context,
    round_: int,
    chosen: Sequence[Group],
    wait: float | None,
    poll: float,
    pictures: Mapping[str, bytes] | None = None,
) -> list[Group]:
    """Write the questions; return the comparisons with people's votes, if all are answered when the wait is over.

    ``wait``, ``poll``: seconds, in all and between two looks; ``pictures``: of images, files by response text.

    Raises ``Paused`` if a question has no answer yet.
    """
    place = handover(context, round_)
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / "questions.jsonl", "".join(json_line(question(group)) for group in chosen))
    write_text(place / "questions.html", questions_page(f"{context.config.name}, round {round_}", chosen, pictures))
    file = place / "answers.jsonl"
    started = time.monotonic()
    while True:
        answers = read_answers(_content(file), chosen)
        note = f"waiting for {file}" + (f"; {answers.faults[0]}" if answers.faults else "")
        context.report(len(answers.votes), len(chosen), note)
        if len(answers.votes) == len(chosen):
            return [with_votes(group, answers.votes[group.id]) for group in chosen]
        if wait is not None and time.monotonic() - started >= wait:
            raise Paused(_unanswered(round_, place, answers, len(chosen)))
        time.sleep(poll)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _unanswered(round_: int, place: Path, answers: Answers, asked: int) -> str:
    faults = f"\nrows of answers.jsonl that are not answers:\n{first_lines(answers.faults)}" if answers.faults else ""
    return (
        f"round {round_} waits for people, who have answered {len(answers.votes)} of {asked} questions{faults}\n"
        f"  questions: {place / 'questions.html'}, a page that saves answers.jsonl, or questions.jsonl next to it\n"
        f"  answers: to {place / 'answers.jsonl'}\n"
        "then give the same command again"
    )


def _counts(found: Sequence[Group]) -> dict[str, JsonValue]:
    labels = [group.scores for group in found if None not in group.scores]
    return {
        "comparisons": len(found),
        "missing_labels": len(found) - len(labels),
        "ties": sum(first == second for first, second in labels),
    }
