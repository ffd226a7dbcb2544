"""Limits on the faults of data, by cause."""

from pydantic import Field

from pipeline.config.base import OPERATIONAL, Closed


def _share(default: float, description: str) -> float:
    found: float = Field(default, ge=0, le=1, description=description, json_schema_extra=OPERATIONAL)
    return found


class Limits(Closed):
    """Share of the rows that may have a fault, by cause, before check and run refuse the data.

    0 tolerates no such row; 1 only counts them. Rows that cannot be used for training are dropped and counted. Defaults
    are 0 for faults that would teach the model something wrong, and small for rows that are dropped or count twice.
    """

    malformed: float = _share(0, "a row that does not fit its columns; dropped")
    refused: float = _share(0, "the chat template refuses the row's turns, such as a system turn; dropped")
    unwritten: float = _share(0, "the chat template leaves out tools, tool calls, tool results or reasoning of the row")
    spelled: float = _share(
        0, "a text is a conversation written out as JSON or Python, whose brackets would be trained on; see parse"
    )
    doubled_bos: float = _share(0, "a text contains the beginning-of-sequence token, which the chat format adds itself")
    doubled_eos: float = _share(0, "a text contains an end token, which the chat format adds itself")
    special_token: float = _share(
        0,
        "a text contains another control token, or a header that the chat template writes around turns, such as [INST]",
    )
    missing_eos: float = _share(0.1, "a response is over chat.max_response_tokens: cut, without an end token")
    not_a_prefix: float = _share(0.1, "the prompt's tokens are not a prefix of those of prompt and response")
    empty: float = _share(0.1, "a response without text; dropped")
    identical: float = _share(0.1, "two responses of the row are equal; dropped")
    identical_when_cut: float = _share(0.1, "the same, once cut to chat.max_response_tokens; dropped")
    contradiction: float = _share(0.1, "the rejected response has the higher score; see rewards_are")
    lone_response: float = _share(0.1, "fewer than two responses of the row's prompt have a score; dropped")
    tie: float = _share(1, "votes, scores or rewards are equal; the loss and the pairing rule decide what happens")
    duplicate_prompt: float = _share(1, "an earlier row has the same prompt")
    duplicate_row: float = _share(0.2, "an earlier row has the same prompt and responses, in any order")
    differing_answer: float = _share(0, "an earlier row has the same prompt with another answer")
    leak: float = _share(0, "a held-out prompt is also a training prompt, ignoring case, spaces and Unicode form")
    long_for_policy: float = _share(
        0.1, "a prompt over chat.max_prompt_tokens (dropped), or a row over the policy's context"
    )
    long_for_reward_model: float = _share(0.1, "prompt and response exceed scorer.max_tokens and lose their beginning")
