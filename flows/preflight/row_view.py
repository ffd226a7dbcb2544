"""One row of the user's data as the model will see it, with the trained tokens marked. Torch-free."""

from collections.abc import Iterator

from pipeline.config import UserData
from pipeline.data.faults import Tokens, named_answers
from pipeline.data.forms.answers import trained_turns
from pipeline.data.forms.paths import first_name
from pipeline.data.reading import PromptRow, SourceRow
from pipeline.errors import UserError
from pipeline.safe_text import one_line, visible
from pipeline.types import Prompt, TextGroup, TextPair, TextPreference, UnpairedText

_BEGIN, _END = "⟦", "⟧"
_LONGEST = 4000
_MARKED = f"tokens between {_BEGIN} and {_END} are trained on:"


def view_row(
    source: str,
    row: SourceRow[PromptRow] | SourceRow[TextPreference],
    tokens: Tokens | None,
    data: UserData | None,
    *,
    images: bool = False,
) -> list[str]:
    """Return lines that show a row: its prompt, its responses, what is trained on, and columns that are not read.

    Args:
        source: name of the data in the config.
        row: with a value, or with a fault, which is shown.
        tokens: the policy's chat; None: texts are shown instead of tokens.
        data: settings of the source; None: generated data.
        images: whether responses are names of images.
    """
    if row.value is None:
        return [f"{source}: {one_line(row.place)}: {row.cause}: {one_line(str(row.fault), _LONGEST)}"]
    lines = [f"{source}: {one_line(row.place)}, as the model sees it; {_MARKED}"]
    if images:
        lines = [f"{source}: {one_line(row.place)}; images are named by a hash of their pixels:"]
    try:
        lines += [*_parts(row.value, tokens, images)]
    except UserError as error:
        lines.append(_line("refused", str(error)))
    lines += _numbers(row.value)
    unread = [] if data is None else _unread(row.columns, data)
    if unread:
        lines.append(f"  columns that are not read: {', '.join(map(one_line, unread))}")
    return lines


def _parts(value: PromptRow | TextPreference, tokens: Tokens | None, images: bool) -> Iterator[str]:
    prompt: Prompt = value.prompt
    if isinstance(value, TextPair) and value.several_turns and tokens is not None:
        for asked, name, turn in trained_turns(value):
            ids = tokens.chat.response_ids(asked.messages, turn.content, extra=turn.extra)
            said = tokens.chat.spell(tokens.chat.prompt_ids(asked.messages))
            yield _line(name, f"{said}{_BEGIN}{tokens.chat.spell(ids)}{_END}")
        return
    texts = "\n".join(f"{turn.role}: {turn.shown}" for turn in prompt.messages)
    yield _line("prompt", texts if tokens is None else tokens.chat.spell(tokens.chat.prompt_ids(prompt.messages)))
    for name, turn in named_answers(value):
        ids = () if tokens is None else tokens.chat.response_ids(prompt.messages, turn.content, extra=turn.extra)
        said = turn.shown if tokens is None else tokens.chat.spell(ids)
        yield _line(name, said if images else f"{_BEGIN}{said}{_END}")


def _line(name: str, text: str) -> str:
    return f"  {name}: " + visible(text, _LONGEST).replace("\n", "\n    ")


def _numbers(value: PromptRow | TextPreference) -> list[str]:
    match value:
        case TextPair():
            numbers = {"soft label": value.soft_label, "chosen score": value.chosen_score}
            numbers |= {"rejected score": value.rejected_score, "win probability": value.win_probability}
            said = [f"{name} {number:g}" for name, number in numbers.items() if number is not None]
            return [f"  {', '.join(said)}"]
        case TextGroup():
            said = ["none" if reward is None else f"{reward:g}" for reward in value.rewards]
            return [f"  rewards: {', '.join(said)}"]
        case UnpairedText():
            return [f"  label: {'good' if value.desirable else 'bad'}"]
    return []


def _unread(columns: tuple[str, ...], data: UserData) -> list[str]:
    """Return the columns that no setting names."""
    read: set[str] = set()
    for setting in data.columns.__dict__.values():
        for name in setting if isinstance(setting, tuple) else (setting,):
            if isinstance(name, str):
                read |= {name, first_name(name)}
    return [column for column in columns if column not in read]
