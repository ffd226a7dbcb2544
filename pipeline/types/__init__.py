"""Records of a run. Torch-free. Every one is frozen; an ``id`` is a hash of content, the same on every machine."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import JsonValue

from pipeline.types.hashes import content_hash as content_hash
from pipeline.types.hashes import derive_seed as derive_seed
from pipeline.types.images import DrawnImage as DrawnImage

# ``tool``: the result of a call. The last three are no turns but what a prompt holds besides them, as JSON, before all
# turns: ``tools`` that the assistant may call, ``documents``, and values for the chat template's own variables.
Role = Literal["system", "developer", "user", "assistant", "tool", "tools", "documents", "chat_template_kwargs"]
BESIDES: frozenset[Role] = frozenset(("tools", "documents", "chat_template_kwargs"))
# Fields of a turn that are part of what is said. Others, such as a row's own numbers, tell no two turns apart.
SAID = ("tool_calls", "reasoning_content", "name", "tool_call_id")
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    ``extra`` holds the turn's further fields as a JSON object: those of ``SAID``, and any other that the row has, which
    a chat template may read. Empty if there are none.
    """

    role: Role
    content: str
    extra: str = ""

    @property
    def is_turn(self) -> bool:
        """Whether somebody says it; False for what a prompt holds besides turns."""
        return self.role not in BESIDES

    @property
    def fields(self) -> dict[str, JsonValue]:
        """The further fields."""
        found: dict[str, JsonValue] = json.loads(self.extra) if self.extra else {}
        return found

    @property
    def value(self) -> JsonValue:
        """What the JSON of a message of ``BESIDES`` says."""
        found: JsonValue = json.loads(self.content)
        return found

    @property
    def said(self) -> str:
        """The further fields that are part of what is said, as a JSON object; empty if there are none."""
        fields = self.fields
        if all(name in SAID for name in fields):
            return self.extra
        said = {name: value for name, value in fields.items() if name in SAID}
        return json.dumps(said, ensure_ascii=False) if said else ""

    @property
    def parts(self) -> list[str]:
        """What is said as a plain list, for hashes."""
        return [self.role, self.content, *([said] if (said := self.said) else [])]

    @property
    def whole(self) -> list[str]:
        """The whole turn as a plain list, from which it can be made again."""
        return [self.role, self.content, *([self.extra] if self.extra else [])]

    @property
    def plain(self) -> dict[str, object]:
        """The turn as chat templates and reward functions read it: role, content and the further fields."""
        return {"role": self.role, "content": self.content, **self.fields}

    @property
    def shown(self) -> str:
        """The turn's text for readers, with its further fields."""
        return "\n".join(part for part in (self.content, self.said) if part)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for the assistant's turn.

    ``answer`` is whatever a gold scorer compares responses with (a label, a meaning representation); ``reference`` is a
    response written by a person, if the data has one; ``rubric``: see ``rubrics``. While rows are read, ``origin`` is
    what ``columns.source`` holds, and ``guessed`` is true if the prompt is only the common start of two texts; and
    ``criterion`` is that of the rubric which a labeller is asked about. These three are not stored.
    """

    messages: tuple[Message, ...]
    source: str = ""
    answer: str | None = None
    reference: str | None = None
    origin: str = field(default="", compare=False)
    guessed: bool = field(default=False, compare=False)
    rubric: str = ""
    criterion: str = field(default="", compare=False)

    @property
    def shown(self) -> tuple[Message, ...]:
        """The messages for readers: without the values for the chat template's variables."""
        return tuple(message for message in self.messages if message.role != "chat_template_kwargs")

    @property
    def id(self) -> str:
        """Hash of what the messages say: two rows with one prompt share an id."""
        return content_hash([m.parts for m in self.messages])


class TurnRow(NamedTuple):
    """Tokens that a model reads in one pass: ``prompt_ids``, then ``ids``, some of them ``trained`` on."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled (or given) continuation, as the tokens that the model produced.

    ``token_ids`` ends with an end token only if the model produced one. ``logprobs`` holds one natural-log probability
    per token under the sampling policy at temperature 1, before any top-p/top-k/min-p cut; it is empty for responses
    that come from a data set. ``text`` is for labellers and people and never goes back into training.
    ``thinking_tokens``: tokens of the thought before the answer, its marks among them; ``in_thought``: the response
    ended in its thought, so there is no answer. ``hidden_tokens``: so many tokens at the start are no part of ``text``,
    nor of the length that filters and measures see (``chat.thinking: hide``). ``rows``: of several turns of the
    assistant (``training.turns``), the rows in which models read them, and ``token_ids`` are all trained tokens.

    Of an image, ``text`` is the id, ``token_ids`` are two numbers made from it, and there are no ``logprobs``;
    ``image`` holds it until the samples stage has written it down.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    thinking_tokens: int = 0
    hidden_tokens: int = 0
    in_thought: bool = False
    rows: tuple[TurnRow, ...] = ()
    image: DrawnImage | None = None

    @property
    def shown_ids(self) -> tuple[int, ...]:
        """The tokens of what labellers see."""
        return self.token_ids[self.hidden_tokens :]


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with K responses. ``scores`` is empty until labelled, then has one entry per response.

    A score of ``None`` is a missing label (an abstention, an unparsed verdict). ``wins`` holds the K x K
    probabilities that the row's response beats the column's, if the labeller compares; ``disagreement`` is the spread
    of an ensemble's scores for each response, ``criteria`` a judge's scores of each by the criteria of a rubric. Each
    is empty if the labeller does not give it.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    responses: tuple[Response, ...]
    scores: tuple[float | None, ...] = ()
    wins: tuple[tuple[float | None, ...], ...] = ()
    disagreement: tuple[float | None, ...] = ()
    criteria: tuple[tuple[float | None, ...], ...] = ()

    def only(self, indices: Sequence[int]) -> "Group":
        """Return the responses at ``indices``, in that order, with their labels."""
        return Group(
            self.prompt,
            self.prompt_ids,
            tuple(self.responses[i] for i in indices),
            tuple(self.scores[i] for i in indices if self.scores),
            tuple(tuple(self.wins[i][j] for j in indices) for i in indices if self.wins),
            tuple(self.disagreement[i] for i in indices if self.disagreement),
            tuple(self.criteria[i] for i in indices if self.criteria),
        )

    @property
    def id(self) -> str:
        """Hash of the token ids of the prompt and of every response."""
        return content_hash([self.prompt_ids, *(response.token_ids for response in self.responses)])


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt, the preferred one first.

    ``soft_label`` is the probability that ``chosen`` really is the better one; ``round`` is the round whose policy
    produced the responses (0: they came with a data set). ``win_probability`` is the probability that ``chosen`` beats
    the policy's average answer, ``win_probability_rejected`` that ``rejected`` does. A prior is log ζ of a whole
    response, in nats.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    chosen: Response
    rejected: Response
    chosen_score: float | None = None
    rejected_score: float | None = None
    soft_label: float = 1.0
    win_probability: float | None = None
    win_probability_rejected: float | None = None
    chosen_prior: float | None = None
    rejected_prior: float | None = None
    round: int = 0

    @property
    def id(self) -> str:
        """Hash of the token ids of prompt, chosen and rejected, and of their rows."""
        rows = self.chosen.rows + self.rejected.rows
        return content_hash([self.prompt_ids, self.chosen.token_ids, self.rejected.token_ids, *rows])


@dataclass(frozen=True, slots=True)
class Unpaired:
    """One response, marked good (``desirable``) or bad."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    response: Response
    desirable: bool

    @property
    def id(self) -> str:
        """Hash of the token ids and the mark."""
        return content_hash([self.prompt_ids, self.response.token_ids, self.desirable])


Preference = Pair | Group | Unpaired


@dataclass(frozen=True, slots=True)
class TextPair:
    """A preference pair from a data set, as text; the policy's tokenizer turns it into tokens later.

    ``chosen_extra`` and ``rejected_extra`` are ``Message.extra`` of the two answers. ``chosen_turns`` and
    ``rejected_turns`` (JSON) are the turns between prompt and answer, if two conversations part before it.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    chosen_score: float | None = None
    rejected_score: float | None = None
    soft_label: float = 1.0
    win_probability: float | None = None
    win_probability_rejected: float | None = None
    chosen_prior: float | None = None
    rejected_prior: float | None = None
    chosen_extra: str = ""
    rejected_extra: str = ""
    chosen_turns: str = ""
    rejected_turns: str = ""

    @property
    def several_turns(self) -> bool:
        """Whether a side has more turns than its answer."""
        return bool(self.chosen_turns or self.rejected_turns)

    @property
    def answers(self) -> tuple[Message, Message]:
        """Chosen and rejected as turns."""
        chosen = Message("assistant", self.chosen, self.chosen_extra)
        return chosen, Message("assistant", self.rejected, self.rejected_extra)


@dataclass(frozen=True, slots=True)
class TextGroup:
    """Two or more responses to a prompt from a data set, as text, each with its reward (None: it has no score).

    ``extras`` is ``Message.extra`` of each response; empty if no response has any.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    rewards: tuple[float | None, ...]
    extras: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[Message, ...]:
        """The responses as turns."""
        extras = self.extras or ("",) * len(self.responses)
        return tuple(Message("assistant", *of) for of in zip(self.responses, extras, strict=True))


@dataclass(frozen=True, slots=True)
class UnpairedText:
    """One response from a data set, as text, marked good or bad."""

    prompt: Prompt
    completion: str
    desirable: bool
    extra: str = ""


TextPreference = TextPair | TextGroup | UnpairedText
