"""Names that data sets give to the roles of turns; compared without regard to case. Torch-free."""

from collections.abc import Mapping

from pipeline.types import Role

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "tool"),
}
# Whole turns that are calls, their content the call's JSON.
CALLS = frozenset({"function_call", "tool_call"})
