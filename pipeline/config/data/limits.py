"""Limits on the faults of data, by cause, and what becomes of rows that have one."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue

from pipeline.config.base import OPERATIONAL, Closed

DROP: Literal["drop"] = "drop"


def _share_or_drop(given: object) -> object:
    number = isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= 1
    if not number and given != DROP:
        raise ValueError("a share from 0 to 1, or drop, which leaves such rows out")
    return given


FaultLimit = Annotated[float | Literal["drop"], BeforeValidator(_share_or_drop)]


def _share(default: float, description: str) -> float:
    found: float = Field(default, description=description, json_schema_extra=OPERATIONAL)
    return found


class Limits(Closed):
    """Share of the rows that may have a fault, by cause, before check and run refuse the data; or ``drop``.

    0 tolerates no such row; 1 only counts them; ``drop`` leaves them out of everything that trains, samples or
    evaluates, and counts them. ``FATES`` says what becomes of rows within a limit. Defaults are 0 for faults that would
    teach the model something wrong, and small for rows that are dropped or count twice.
    """

    malformed: FaultLimit = _share(0, "a row that does not fit its columns")
    refused: FaultLimit = _share(0, "the chat template refuses the row's turns, such as a system turn")
    unwritten: FaultLimit = _share(
        0,
        "the chat template leaves out what the row says or holds: turns, tools, calls, results, reasoning, documents, "
        "images, or variables that it does not have",
    )
    unread: FaultLimit = _share(1, "the chat template does not read a further field of a turn, such as name or weight")
    spelled: FaultLimit = _share(
        0, "a text is a conversation written out as JSON or Python, whose brackets would be trained on; see parse"
    )
    doubled_bos: FaultLimit = _share(
        0, "a text contains the beginning-of-sequence token, which the chat format adds itself"
    )
    doubled_eos: FaultLimit = _share(0, "a text contains an end token, which the chat format adds itself")
    special_token: FaultLimit = _share(
        0,
        "a text contains another control token, or a header that the chat template writes around turns, such as [INST]",
    )
    missing_eos: FaultLimit = _share(0.1, "a response is over chat.max_response_tokens")
    not_a_prefix: FaultLimit = _share(0.1, "the prompt's tokens are not a prefix of those of prompt and response")
    empty: FaultLimit = _share(0.1, "a response without text")
    identical: FaultLimit = _share(0.1, "two responses of the row are equal")
    identical_when_cut: FaultLimit = _share(0.1, "the same, once cut to chat.max_response_tokens")
    contradiction: FaultLimit = _share(0.1, "the rejected response has the higher score; see rewards_are")
    lone_response: FaultLimit = _share(0.1, "fewer than two responses of the row's prompt have a score")
    tie: FaultLimit = _share(1, "votes, scores or rewards are equal")
    duplicate_prompt: FaultLimit = _share(1, "an earlier row has the same prompt")
    duplicate_row: FaultLimit = _share(0.2, "an earlier row has the same prompt and responses, in any order")
    differing_answer: FaultLimit = _share(0, "an earlier row has the same prompt with another answer")
    leak: FaultLimit = _share(0, "a held-out prompt is also a training prompt, ignoring case, spaces and Unicode form")
    long_for_policy: FaultLimit = _share(
        0.1, "a prompt over chat.max_prompt_tokens, or a row over the policy's context"
    )
    long_for_reward_model: FaultLimit = _share(0.1, "prompt and response exceed scorer.max_tokens")
    unlabelled: FaultLimit = _share(1, "images that nobody compared (has_label: false)")
    unreadable_image: FaultLimit = _share(0, "an image that is damaged, or no picture")
    missing_image: FaultLimit = _share(0, "no bytes, or a path to no file below the folder of the table")
    image_url: FaultLimit = _share(0, "an image is only a URL; nothing is fetched")
    huge_image: FaultLimit = _share(0, "an image of more than pairs.most_pixels, which is not decoded")
    image_size: FaultLimit = _share(0, "an image of another size than pairs.size, with fit: exact")

    @property
    def dropped(self) -> tuple[str, ...]:
        """The causes whose rows are left out, in their order here."""
        return tuple(name for name in type(self).model_fields if self.__dict__[name] == DROP)

    def share(self, cause: str) -> float:
        """The share of the rows that may have ``cause``; 1 for rows that are left out."""
        limit: float | str = self.__dict__[cause]
        return 1.0 if isinstance(limit, str) else limit

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result: rows that are left out; how many faults are tolerated decides none."""
        return {**super().identity(), **dict.fromkeys(self.dropped, DROP)}


# What becomes of rows within the limit of a cause, unless it is ``drop``.
FATES: Mapping[str, str] = {
    "malformed": "dropped",
    "refused": "dropped",
    "unwritten": "kept, without those parts",
    "unread": "kept, without those fields",
    "spelled": "kept",
    "doubled_bos": "kept",
    "doubled_eos": "kept",
    "special_token": "kept",
    "missing_eos": "cut, and kept without an end token",
    "not_a_prefix": "kept",
    "empty": "dropped; of a group, that response",
    "identical": "dropped; of a group, all of them but one",
    "identical_when_cut": "dropped; of a group, all of them but one",
    "contradiction": "kept",
    "lone_response": "dropped",
    "tie": "kept; the loss and the pairing rule decide",
    "duplicate_prompt": "kept",
    "duplicate_row": "kept",
    "differing_answer": "kept, with the first answer",
    "leak": "dropped from training",
    "long_for_policy": "dropped if the prompt is too long, else kept",
    "long_for_reward_model": "kept; the reward model reads it without its beginning",
    "unlabelled": "dropped",
    **dict.fromkeys(("unreadable_image", "missing_image", "image_url", "huge_image", "image_size"), "dropped"),
}
# Causes that are found in the policy's tokens, and in the reward model's.
OF_TOKENS = frozenset(
    ("refused", "unwritten", "unread", "doubled_bos", "doubled_eos", "special_token", "missing_eos", "not_a_prefix")
) | frozenset(("identical_when_cut", "long_for_policy", "long_for_reward_model"))
