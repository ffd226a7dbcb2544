"""Verifiable instructions of a prompt. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Instructions:
    """One row: its key and prompt, and what the answer must follow, with the arguments of each check."""

    key: str
    prompt: str
    ids: tuple[str, ...]
    kwargs: tuple[Mapping[str, Any], ...]

    @property
    def document(self) -> dict[str, Any]:
        """The row as the harness reads it."""
        return {
            "key": self.key, "prompt": self.prompt, "instruction_id_list": [*self.ids],
            "kwargs": [dict(one) for one in self.kwargs],
        }  # fmt: skip
