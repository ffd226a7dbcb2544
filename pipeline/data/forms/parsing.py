"""Parse one row of the user's data into a prompt or a preference, in any of the usual forms.

Raises ``FaultError`` for a row in no known form. Uses no tokenizer and no file.
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import JsonValue

from pipeline.config import Columns, UserData
from pipeline.data.files.records import Record
from pipeline.data.forms import cells
from pipeline.data.forms.answers import Given, answer, split_pair, split_texts, split_turns, turns_text
from pipeline.data.forms.besides import besides, rubric_cell, with_media
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.groups import ranked, rewards_of
from pipeline.data.forms.marks import preferred, voted
from pipeline.data.forms.paths import find
from pipeline.data.forms.spelled import is_spelled, read_spelled
from pipeline.data.forms.transcripts import is_transcript
from pipeline.data.forms.turns import Turns, history_turns, is_conversation, prompt_turns, system_merged, with_history
from pipeline.types import Message, Prompt, TextGroup, TextPair, TextPreference, UnpairedText

FORMS: dict[type[TextPreference], str] = {
    TextPair: "a pair (chosen, rejected)",
    TextGroup: "a group (responses, rewards)",
    UnpairedText: "a single response (completion, label)",
}


def prompt_of(record: Record, data: UserData) -> Prompt:
    """Return the row's prompt, with the row's reference response and answer."""
    row = _Row(record, data)
    columns = data.columns
    if not row.has(*columns.prompt_columns):
        if row.has(columns.chosen) and row.has(columns.rejected):
            return row.pair().prompt
        if row.has(*row.responses) and not row.has_reference:
            return row.shared()
        if row.has(columns.completion) and not row.has_reference:
            return row.unpaired().prompt
    return row.referenced()


def one_response_prompt(record: Record, data: UserData) -> Prompt:
    """Return the prompt of a row that holds one response of a group, with the row's answer."""
    columns, row = data.columns, _Row(record, data)
    if isinstance(columns.responses, tuple):
        raise FaultError("rows: responses reads one column of responses, not several")
    return row.one()


def preference_of(record: Record, data: UserData, several_turns: bool = False) -> TextPreference:
    """Return the row's preference; its columns decide the form.

    ``several_turns``: the conversations of a pair may part before their last turns.

    If people voted on a pair, ``data.votes`` turns the votes into its soft label; 0.5 is a tie.
    """
    row, columns = _Row(record, data), data.columns
    if not row.has(columns.chosen, columns.rejected):
        if row.has(*row.responses):
            return row.group()
        if row.has(columns.completion):
            return row.unpaired()
    return row.pair(several_turns)


class _Row:
    """A record, read as ``data`` says."""

    def __init__(self, record: Record, data: UserData) -> None:
        self._record = record
        self._data = data
        self._columns: Columns = data.columns
        self._values = record.values
        several = data.columns.responses
        self.responses = (several,) if isinstance(several, str) else several
        self._guessed = False

    @property
    def has_reference(self) -> bool:
        """Whether the row has a reference response, in a column that does not hold a group's responses."""
        return self._columns.response not in self.responses and self.has(self._columns.response)

    def has(self, *columns: str) -> bool:
        """Return whether one of the columns holds a value."""
        found = (find(self._values, column) for column in columns)
        return any(value is not None and not (isinstance(value, float) and cells.absent(value)) for value in found)

    # ------------------------------------------------------------ forms

    def referenced(self) -> Prompt:
        """Return the prompt, with the reference response; one column of both ends with the response."""
        columns = self._columns
        if columns.response in columns.prompt_columns:
            if len(columns.prompt_columns) > 1 or not isinstance(self._cell(columns.response), list):
                raise FaultError(f"columns.response and columns.prompt are both {columns.response!r}")
            turns, (said,) = split_turns(None, [self._given(columns.response)])
            return replace(self._prompt(turns), reference=_plain(said, columns.response))
        value = self._cell(columns.response) if self.has_reference else None
        said_text = None if cells.absent(value) else _plain(answer(value, columns.response), columns.response)
        return replace(self._prompt(self._whole_turns()), reference=said_text)

    def _whole_turns(self) -> Turns:
        """Return the prompt's turns as ``preference_of`` reads them, for rows that also hold whole conversations."""
        columns, turns = self._columns, self._turns()
        try:
            if self.has(columns.chosen, columns.rejected):
                given = [(self._cell(name), name) for name in (columns.chosen, columns.rejected)]
            elif self.has(*self.responses):
                given = self._responses()
            else:
                given = [(self._cell(columns.completion), columns.completion)]
            given = [(value, name) for value, name in given if is_conversation(value)]
            return split_turns(turns, given)[0] if given else turns
        except FaultError:
            # Whoever reads only prompts needs no sound responses.
            return turns

    def group(self) -> TextGroup:
        """Return K responses with their rewards."""
        columns, data = self._columns, self._data
        given = self._responses()
        if len(given) < 2:
            where = "consecutive rows with this prompt" if data.rows == "responses" else "the list"
            said = f"{columns.responses}: {len(given)} in {where}; at least 2 responses make a comparison"
            raise FaultError(said, "lone_response")
        rewards = rewards_of(self._values, data, len(given), self._listed_cell)
        # A generator that failed left neither.
        there = [place for place, (value, _) in enumerate(given) if value is not None or rewards[place] is not None]
        given, rewards = [given[place] for place in there], tuple(rewards[place] for place in there)
        turns, answers = split_turns(self._turns() if self.has(*columns.prompt_columns) else None, given)
        extras = tuple(said.extra for said in answers)
        texts = tuple(said.content for said in answers)
        return TextGroup(self._prompt(turns), texts, rewards, extras if any(extras) else ())

    def shared(self) -> Prompt:
        """Return the prompt of K whole conversations: the turns that they share."""
        given = self._responses()
        if not given:
            raise FaultError(f"{self._columns.responses}: an empty list, and no prompt")
        return self._prompt(split_turns(None, given)[0])

    def one(self) -> Prompt:
        """Return the prompt of a row that holds one response of a group."""
        prompt = self._turns() if self.has(*self._columns.prompt_columns) else None
        return self._prompt(split_turns(prompt, [self._given(self.responses[0])])[0])

    def _responses(self) -> list[Given]:
        """Return the responses of a group: a list, or a column for each."""
        if isinstance(self._columns.responses, tuple):
            return [self._given(column) for column in self.responses]
        (name,) = self.responses
        listed = cells.listed(self._listed_cell(name), name, "responses")
        return [(self._parsed(item), f"{name}, item {place}") for place, item in enumerate(listed, 1)]

    def unpaired(self) -> UnpairedText:
        """Return one response, marked good or bad."""
        columns = self._columns
        prompt = self._turns() if self.has(*columns.prompt_columns) else None
        turns, (said,) = split_turns(prompt, [self._given(columns.completion)])
        desirable = cells.truth(cells.required(self._values, columns.label), columns.label, self._data.labels.meanings)
        return UnpairedText(self._prompt(turns), said.content, desirable, said.extra)

    def pair(self, several_turns: bool = False) -> TextPair:
        """Return the pair, in the order that votes or a signed number give it."""
        values, columns, data = self._values, self._columns, self._data
        turns, sides = self._sides([self._given(name) for name in (columns.chosen, columns.rejected)], several_turns)
        better, worse = (side[-1] for side in sides)
        probabilities = (columns.soft_label, columns.win_probability, columns.win_probability_rejected)
        soft_label, wins, wins_rejected = (cells.optional_probability(values, name) for name in probabilities)
        if wins is None and wins_rejected is not None:
            raise FaultError(f"{columns.win_probability_rejected}: {wins_rejected:g}, but no {columns.win_probability}")
        scores = (cells.optional_number(values, column) for column in (columns.chosen_score, columns.rejected_score))
        chosen_score, rejected_score = (ranked(score, data.rewards_are) for score in scores)
        pair = TextPair(
            self._prompt(turns),
            better.content,
            worse.content,
            chosen_score=chosen_score,
            rejected_score=rejected_score,
            soft_label=1.0 if soft_label is None else soft_label,
            win_probability=wins,
            win_probability_rejected=wins_rejected,
            chosen_prior=cells.optional_number(values, columns.chosen_prior),
            rejected_prior=cells.optional_number(values, columns.rejected_prior),
            chosen_extra=better.extra,
            rejected_extra=worse.extra,
            chosen_turns=turns_text(sides[0][:-1]),
            rejected_turns=turns_text(sides[1][:-1]),
        )
        if columns.has_votes:
            return voted(pair, values, columns, data.votes)
        return preferred(pair, values, columns, data.signed) if data.rewards_are == "signed" else pair

    def _sides(self, given: Sequence[Given], several_turns: bool) -> tuple[Turns, list[Turns]]:
        """Return the prompt, or the common start if there is none, and the turns of both responses after it."""
        texts = all(isinstance(value, str) for value, _ in given) and not is_transcript(str(given[0][0]))
        prompt = None
        if self.has(*self._columns.prompt_columns):
            prompt = self._turns()
        elif texts:
            self._guessed = True
            return split_texts(given, self._columns.prompt_columns)
        return split_pair(prompt, given, several_turns)

    # ------------------------------------------------------------ cells

    def _cell(self, column: str) -> JsonValue:
        return self._parsed(find(self._values, column))

    def _given(self, column: str) -> Given:
        return self._parsed(cells.required(self._values, column)), column

    def _parsed(self, value: JsonValue) -> JsonValue:
        """Return a value, or the conversation that a text writes out, if ``parse`` is set."""
        if self._data.parse and isinstance(value, str):
            if is_spelled(value):
                return _read(value)
            if value.lstrip().startswith(('["', "['")):
                match _read(value):
                    case [str(only)]:
                        return only
        return value

    def _listed_cell(self, column: str) -> JsonValue:
        """Return a value that should be a list."""
        value = cells.required(self._values, column)
        if self._data.parse and isinstance(value, str) and value.lstrip().startswith(("[", "array(")):
            return _read(value)
        return value

    # ------------------------------------------------------------ prompts

    def _turns(self) -> Turns:
        """Return the prompt's turns, from one column or from several text columns."""
        names = self._columns.prompt_columns
        if len(names) == 1:
            value, name = self._given(names[0])
            return prompt_turns(value, name)
        parts = [find(self._values, name) for name in names]
        texts = [
            answer(part, name).content.strip()
            for part, name in zip(parts, names, strict=True)
            if not cells.absent(part)
        ]
        return prompt_turns("\n\n".join(text for text in texts if text), " + ".join(names))

    def _prompt(self, messages: Turns) -> Prompt:
        """Return the prompt with these turns, after tools, a system turn and a history if columns have them."""
        columns = self._columns
        system: Turns = ()
        if columns.system is not None and not cells.absent(value := self._cell(columns.system)):
            said = value if isinstance(value, str) else answer(value, columns.system).content
            system = (Message("system", said),) if said.strip() else ()
        if columns.history is not None:
            messages = with_history(
                history_turns(self._cell(columns.history), columns.history), messages, columns.history
            )
        others = [turn for turn in messages if turn not in system]
        if system and any(turn.role in ("system", "developer") for turn in others):
            raise FaultError(f"{columns.system}: a system turn, but the prompt has another one")
        turns = (*system, *with_media(others, self._values, columns))
        if self._data.system == "user":
            turns = system_merged(turns)
        reply = cells.plain_answer(self._values, columns.answer)
        origin = None if columns.source is None else cells.plain_answer(self._values, columns.source)
        return Prompt(
            (*besides(self._values, columns), *turns),
            self._record.source,
            reply,
            origin=origin or "",
            guessed=self._guessed,
            rubric="" if columns.rubric is None else rubric_cell(self._values, columns.rubric),
        )


def _read(text: str) -> JsonValue:
    try:
        return read_spelled(text)
    except ValueError as error:
        raise FaultError(f"cannot be parsed: {error}: {text[:60]!r}") from error


def _plain(said: Message, column: str) -> str:
    if said.extra:
        raise FaultError(
            f"{column}: a reference response with tool calls or reasoning; only its text could be trained on"
        )
    return said.content
