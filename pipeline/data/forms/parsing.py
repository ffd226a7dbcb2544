"""Parse one row of the user's data into a prompt or a preference, in any of the usual forms.

Raises ``FaultError`` for a row in no known form. Uses no tokenizer and no file.
"""

from dataclasses import replace

from pydantic import JsonValue

from pipeline.config import Columns, DatasetData, FileData, Votes
from pipeline.data.forms import cells
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.transcripts import common_start, is_transcript, transcript
from pipeline.data.records import Record
from pipeline.types import Message, Prompt, TextGroup, TextPair, TextPreference, UnpairedText

FORMS: dict[type[TextPreference], str] = {
    TextPair: "a pair (chosen, rejected)",
    TextGroup: "a group (responses, rewards)",
    UnpairedText: "a single response (completion, label)",
}
Turns = tuple[Message, ...]


def prompt_of(record: Record, data: FileData | DatasetData) -> Prompt:
    """Return the row's prompt, with the row's reference response and answer."""
    values, columns = record.values, data.columns
    if not _has(record, *columns.prompt_columns) and {columns.chosen, columns.rejected} <= values.keys():
        return _pair(record, columns).prompt
    if columns.response in columns.prompt_columns:
        raise FaultError(f"columns.response and columns.prompt are both {columns.response!r}")
    messages = _messages(record, columns)
    return replace(_prompt(record, messages, columns), reference=cells.optional_text(values, columns.response))


def preference_of(record: Record, data: FileData | DatasetData) -> TextPreference:
    """Return the row's preference; its columns decide the form.

    If people voted on a pair, ``data.votes`` turns the votes into its soft label; 0.5 is a tie.
    """
    columns = data.columns
    if not _has(record, columns.chosen, columns.rejected):
        if _has(record, columns.responses):
            return _group(record, columns)
        if _has(record, columns.completion):
            return _unpaired(record, columns)
    pair = _pair(record, columns)
    return _voted(pair, record, columns, data.votes) if columns.has_votes else pair


def _has(record: Record, *columns: str) -> bool:
    return any(cells.find(record.values, column) is not None for column in columns)


def _group(record: Record, columns: Columns) -> TextGroup:
    values, messages = record.values, _messages(record, columns)
    responses = cells.completions(cells.required(values, columns.responses), messages, columns.responses)
    rewards = cells.rewards(cells.required(values, columns.rewards), columns.rewards)
    if len(responses) != len(rewards):
        raise FaultError(f"{columns.rewards}: {len(rewards)} for {len(responses)} {columns.responses}; one for each")
    return TextGroup(_prompt(record, messages, columns), responses, rewards)


def _unpaired(record: Record, columns: Columns) -> UnpairedText:
    values, messages = record.values, _messages(record, columns)
    completion = cells.completion(cells.required(values, columns.completion), messages, columns.completion)
    desirable = cells.truth(cells.required(values, columns.label), columns.label)
    return UnpairedText(_prompt(record, messages, columns), completion, desirable)


def _pair(record: Record, columns: Columns) -> TextPair:
    values = record.values
    chosen, rejected = (cells.required(values, column) for column in (columns.chosen, columns.rejected))
    if _has(record, *columns.prompt_columns):
        messages = _messages(record, columns)
        better = cells.completion(chosen, messages, columns.chosen)
        worse = cells.completion(rejected, messages, columns.rejected)
    else:
        messages, better, worse = _implicit(chosen, rejected, columns)
    soft_label = cells.optional_probability(values, columns.soft_label)
    wins = cells.optional_probability(values, columns.win_probability)
    wins_rejected = cells.optional_probability(values, columns.win_probability_rejected)
    if wins is None and wins_rejected is not None:
        raise FaultError(f"{columns.win_probability_rejected}: {wins_rejected:g}, but no {columns.win_probability}")
    return TextPair(
        _prompt(record, messages, columns),
        better,
        worse,
        chosen_score=cells.optional_number(values, columns.chosen_score),
        rejected_score=cells.optional_number(values, columns.rejected_score),
        soft_label=1.0 if soft_label is None else soft_label,
        win_probability=wins,
        win_probability_rejected=wins_rejected,
        chosen_prior=cells.optional_number(values, columns.chosen_prior),
        rejected_prior=cells.optional_number(values, columns.rejected_prior),
    )


# ---------------------------------------------------------------- prompts


def _prompt(record: Record, messages: Turns, columns: Columns) -> Prompt:
    """Return the prompt with these turns, after a system turn if a column has one."""
    said = None if columns.system is None else cells.optional_text(record.values, columns.system)
    system = () if said is None or not said.strip() else (Message("system", said),)
    answer = cells.plain_answer(record.values, columns.answer)
    return Prompt((*system, *messages), source=record.source, answer=answer)


def _messages(record: Record, columns: Columns) -> Turns:
    """Return the prompt's turns, from one column or from several text columns."""
    names = columns.prompt_columns
    if len(names) == 1:
        return _turns(cells.required(record.values, names[0]), names[0])
    parts = [cells.optional_text(record.values, name) for name in names]
    text = "\n\n".join(part.strip() for part in parts if part is not None and part.strip())
    return cells.prompt_messages(text, " + ".join(names))


def _turns(value: JsonValue, column: str) -> Turns:
    if isinstance(value, str) and is_transcript(value):
        turns = transcript(value)
        # The prompt of a transcript ends where the assistant's turn begins.
        open_end = turns[-1].role == "assistant" and not turns[-1].content
        value = [{"role": turn.role, "content": turn.content} for turn in (turns[:-1] if open_end else turns)]
    return cells.prompt_messages(value, column)


def _implicit(chosen: JsonValue, rejected: JsonValue, columns: Columns) -> tuple[Turns, str, str]:
    """Split a row without a prompt: the prompt is the common start of the two conversations, transcripts or texts."""
    names = (columns.chosen, columns.rejected)
    if isinstance(chosen, str) and isinstance(rejected, str) and not is_transcript(chosen):
        start = common_start(chosen, rejected)
        if not start.strip():
            raise FaultError(
                f"no column {' or '.join(map(repr, columns.prompt_columns))}, and {names[0]} and {names[1]} share "
                "no start that could be the prompt"
            )
        return (Message("user", start),), chosen[len(start) :], rejected[len(start) :]
    one, other = (_conversation(side, name) for side, name in zip((chosen, rejected), names, strict=True))
    if len(one) < 2 or one[:-1] != other[:-1]:
        raise FaultError(
            f"{names[0]} and {names[1]}: without a prompt they must be conversations that differ only in the last turn"
        )
    if one[-2].role != "user":
        raise FaultError(f"{names[0]}: the turn before the last must be the user's, not {one[-2].role!r}")
    for name, turns in zip(names, (one, other), strict=True):
        if turns[-1].role != "assistant":
            raise FaultError(f"{name}: must end with a turn of the assistant, not with {turns[-1].role!r}")
    return one[:-1], one[-1].content, other[-1].content


def _conversation(value: JsonValue, column: str) -> Turns:
    if isinstance(value, str):
        if not is_transcript(value):
            raise FaultError(f"{column}: without a prompt it must be a conversation, not a text")
        return transcript(value)
    return cells.messages(value, column)


# ---------------------------------------------------------------- votes


def _voted(pair: TextPair, record: Record, columns: Columns, settings: Votes) -> TextPair:
    if not cells.absent(cells.find(record.values, columns.soft_label)):
        raise FaultError(f"{columns.soft_label}: a soft label, but votes decide it; leave one of the two out")
    chosen, rejected, tie = _votes(record, columns, settings)
    total = chosen + rejected + tie
    share = (chosen + tie / 2) / total
    if settings.label == "majority":
        share = 1.0 if chosen > total / 2 else 0.0 if rejected > total / 2 else 0.5
    return replace(_swapped(pair) if share < 0.5 else pair, soft_label=max(share, 1 - share))


def _votes(record: Record, columns: Columns, settings: Votes) -> tuple[float, float, float]:
    values = record.values
    if columns.votes is not None:
        return cells.votes(cells.required(values, columns.votes), settings, columns.votes)
    counts = []
    for column in (columns.chosen_votes, columns.rejected_votes, columns.tie_votes):
        count = 0.0 if column is None else cells.number(cells.required(values, column), column)
        if count < 0:
            raise FaultError(f"{column}: {count:g} votes")
        counts.append(count)
    if not sum(counts):
        raise FaultError(f"{columns.chosen_votes} and {columns.rejected_votes}: no votes")
    return counts[0], counts[1], counts[2]


def _swapped(pair: TextPair) -> TextPair:
    wins = pair.win_probability_rejected
    if wins is None and pair.win_probability is not None:
        wins = 1 - pair.win_probability
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_score=pair.rejected_score,
        rejected_score=pair.chosen_score,
        win_probability=wins,
        win_probability_rejected=pair.win_probability,
        chosen_prior=pair.rejected_prior,
        rejected_prior=pair.chosen_prior,
    )
