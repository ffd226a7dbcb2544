"""Columns of the user's data, and what their values mean."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.base import LATER, Closed

Column = Annotated[str, Field(min_length=1)]


class Columns(Closed):
    """Names of the columns in the user's data.

    ``a.b`` is field b of a, or of each object of a list a; ``a[0]`` is the first item of a list, ``a[-1]`` the last.
    """

    prompt: Column | tuple[Column, ...] = Field(
        "prompt",
        description="a string, or a list of {role, content}; several columns of strings are joined by a blank line, "
        "empty ones left out",
    )
    system: Column | None = Field(None, description="a system turn to put before the prompt; may be empty")
    tools: Column = Field(
        "tools",
        description="tools that the assistant may call, as a list or its JSON; may be absent",
        json_schema_extra=LATER,
    )
    documents: Column | None = Field(
        "documents",
        description="documents that the prompt is about, a list of objects or texts, for templates that read them; "
        "may be absent; null: none are read",
        json_schema_extra=LATER,
    )
    chat_template_kwargs: Column | None = Field(
        "chat_template_kwargs",
        description="values of the row for the chat template's variables, before those of chat.template_kwargs; may be "
        "absent; null: none are read",
        json_schema_extra=LATER,
    )
    history: Column | None = Field(
        None,
        description="earlier turns, before the prompt: a list of [user, assistant], or messages; may be empty",
        json_schema_extra=LATER,
    )
    chosen: Column = Field("chosen", description="pairs: the preferred response (with votes: one of the two)")
    rejected: Column = Field("rejected", description="pairs: the other one")
    chosen_score: Column = Field("chosen_score", description="pairs: a reward model's score; may be absent")
    rejected_score: Column = Field("rejected_score", description="pairs: the same for rejected; may be absent")
    soft_label: Column = Field(
        "soft_label", description="pairs: probability that chosen is the better one; absent: 1 (certain)"
    )
    votes: Column | tuple[Column, ...] | None = Field(
        None,
        description="pairs: a vote or a list of votes that decide which response is chosen, or several such columns; "
        "see the section votes",
    )
    chosen_name: Column | None = Field(
        None, description="pairs: the name that votes for chosen give; instead of votes.chosen", json_schema_extra=LATER
    )
    rejected_name: Column | None = Field(
        None, description="pairs: the name that votes for rejected give", json_schema_extra=LATER
    )
    chosen_votes: Column | None = Field(None, description="pairs: number of votes for chosen, instead of votes")
    rejected_votes: Column | None = Field(None, description="pairs: number of votes for rejected")
    tie_votes: Column | None = Field(None, description="pairs: number of votes for a tie; optional")
    win_probability: Column = Field(
        "win_probability", description="pairs: probability that chosen beats the policy's average answer; may be absent"
    )
    win_probability_rejected: Column = Field(
        "win_probability_rejected", description="pairs: the same for rejected; absent: 1 - win_probability"
    )
    chosen_prior: Column = Field("chosen_prior", description="pairs: log ζ of chosen, nats; for prior: given")
    rejected_prior: Column = Field("rejected_prior", description="pairs: log ζ of rejected, nats; for prior: given")
    completion: Column = Field("completion", description="single responses marked good or bad: the response")
    label: Column = Field("label", description="single responses: true for good, false for bad")
    responses: Column | tuple[Column, ...] = Field(
        "responses", description="K responses a prompt: a list of at least 2, or a column for each"
    )
    rewards: Column | tuple[Column, ...] = Field(
        "rewards",
        description="K responses a prompt: a list that has for each response a number, true or false, or a list of "
        "ratings (their mean is used), or nothing; or a column for each column of responses. Otherwise, of several "
        "columns the mean is used",
    )
    best: Column | None = Field(
        None,
        description="K responses a prompt: the place of the best one, from 0, instead of rewards",
        json_schema_extra=LATER,
    )
    response: Column = Field("response", description="a reference response (warm start)")
    source: Column | None = Field(
        None,
        description="what the row was taken from, such as a document, for held_out.by: source; may be empty",
        json_schema_extra=LATER,
    )
    rubric: Column | None = Field(
        None,
        description="criteria for a judge with rubric: true: a list of texts, or of {criterion, weight}; may be empty",
        json_schema_extra=LATER,
    )
    answer: Column = Field("answer", description="the answer that gold scorers compare with; may be absent")

    @model_validator(mode="after")
    def _votes_are_whole(self) -> "Columns":
        counts = (self.chosen_votes, self.rejected_votes)
        if self.votes is not None and counts != (None, None):
            raise ValueError("votes: either votes or counts of them (chosen_votes, rejected_votes), not both")
        if (None in counts and counts != (None, None)) or (counts[0] is None and self.tie_votes is not None):
            raise ValueError("chosen_votes: counts of votes need both chosen_votes and rejected_votes")
        for name in ("prompt", "votes", "responses", "rewards"):
            if self.__dict__[name] == ():
                raise ValueError(f"{name}: names no column")
        if (self.chosen_name is None) != (self.rejected_name is None):
            raise ValueError("chosen_name: names of votes need both chosen_name and rejected_name")
        if self.chosen_name is not None and self.votes is None:
            raise ValueError("chosen_name: is what votes name; columns.votes says where they are")
        if isinstance(self.responses, tuple) and len(self.responses) < 2:
            raise ValueError("responses: several columns hold at least 2 responses")
        return self

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """The columns that hold the prompt."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def own_names(self) -> frozenset[str]:
        """The names, or paths, of columns that differ from the defaults."""
        named = (self.__dict__[setting] for setting in self.changed)
        return frozenset(str(name) for value in named for name in (value if isinstance(value, tuple) else (value,)))

    @property
    def has_votes(self) -> bool:
        """Whether votes decide which response is chosen."""
        return self.votes is not None or self.chosen_votes is not None


def _unambiguous(word: object) -> object:
    if isinstance(word, bool):
        raise ValueError(
            'quote the word: YAML reads true, yes and on as one value; "true" is also the true of the data'
        )
    return word


_Word = Annotated[int | str, BeforeValidator(_unambiguous)]
_Words = _Word | tuple[_Word, ...]


def _words(given: _Words | None) -> tuple[str, ...]:
    listed = given if isinstance(given, tuple) else () if given is None else (given,)
    return tuple(str(word).strip().casefold() for word in listed)


class Votes(Closed):
    """Label of a pair from votes: p = (v₁ + v₀/2) / (v₁ + v₂ + v₀).

    v₁ votes are for the response under ``chosen``, v₂ for the one under ``rejected``, v₀ are ties. If p is below one
    half, the two responses are swapped. Votes are compared without regard to case.
    """

    chosen: _Words = Field(1, description="a vote for the response in the column chosen, or several words for it")
    rejected: _Words = Field(2, description="the same for the response in the column rejected")
    tie: _Words | None = Field(0, description="the same for neither; null: no word is a tie")
    label: Literal["soft", "majority"] = Field(
        "soft",
        description="soft: p is the soft label; majority: the response with more than half of the votes is chosen "
        "with certainty, and pairs without a majority are dropped",
    )

    @property
    def meanings(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """The words for chosen, for rejected and for a tie; 0 is no tie if it is one of the others."""
        chosen, rejected, tie = map(_words, (self.chosen, self.rejected, self.tie))
        # By value: a config that is written out names every field.
        return chosen, rejected, () if tie == ("0",) and "0" in (*chosen, *rejected) else tie

    @model_validator(mode="after")
    def _differ(self) -> "Votes":
        said = [word for meant in self.meanings for word in meant]
        if len(set(said)) < len(said):
            raise ValueError(f"chosen, rejected and tie must differ, not {', '.join(said)}")
        if not self.meanings[0] or not self.meanings[1]:
            raise ValueError("chosen and rejected need a word each")
        return self


class LabelWords(Closed):
    """Words for good and bad in the column ``label``, besides true and false, 1 and 0."""

    good: tuple[_Word, ...] = Field((), description="such as [good, thumbs_up]")
    bad: tuple[_Word, ...] = Field((), description="such as [bad, thumbs_down]")

    @property
    def meanings(self) -> dict[str, bool]:
        """What each word means."""
        return dict.fromkeys(_words(self.good), True) | dict.fromkeys(_words(self.bad), False)

    @model_validator(mode="after")
    def _are_disjoint(self) -> "LabelWords":
        both = sorted({*_words(self.good)} & {*_words(self.bad)})
        if both:
            raise ValueError(f"good and bad must differ, not {', '.join(both)}")
        return self


class Signed(Closed):
    """One number v for two responses: p = (v - first) / (second - first) is the probability that rejected wins.

    ``first`` is the number that prefers the response under ``chosen`` as much as can be, ``second`` the other. If p is
    above one half, the two responses are swapped. Of several annotators' numbers the mean is used.
    """

    first: float = Field(-3, description="the response in the column chosen is better by far")
    second: float = Field(3, description="the response in the column rejected is better by far")
    strength: Literal["soft_label", "margin", "none"] = Field(
        "soft_label",
        description="soft_label: p, or 1 - p, is the soft label; margin: the distance from the middle becomes the "
        "difference of the scores; none: only the direction counts",
    )

    @model_validator(mode="after")
    def _have_a_middle(self) -> "Signed":
        if self.first == self.second:
            raise ValueError("first and second must differ")
        return self
