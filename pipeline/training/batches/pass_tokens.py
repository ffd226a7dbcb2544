"""What a pass over the data computes: with shared prompts, with packed rows, and with padded rows. Torch-free."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PassTokens:
    """Tokens that one pass over the examples computes, from the lengths of their rows.

    Attributes:
        shared: each prompt once for all of its responses, nothing padded.
        packed: each row with its own prompt, nothing padded.
        padded: each row with its own prompt, padded to the longest of its forward pass.
    """

    shared: int
    packed: int
    padded: int

    def kind(self, why: str | None) -> Literal["shared", "packed", "padded"]:
        """How rows are computed; ``why`` they are padded, None: they are not."""
        return "padded" if why is not None else "shared" if self.shared < self.packed else "packed"

    def line(self, why: str | None) -> str:
        """Say how rows are computed, why, and what it costs."""
        times, kind = self.padded / self.shared, self.kind(why)
        match kind:
            case "shared" | "packed":
                how = "prompts are shared" if kind == "shared" else "rows are packed"
                whole = f"{how}: {self.shared:,} tokens in a pass over the data"
                return f"{whole}; padded rows would be {times:.2f} times as many"
            case "padded":
                return (
                    f"rows are padded: {why}; {self.padded:,} tokens in a pass over the data, {times:.2f} times those "
                    f"with shared prompts, {self.padded / self.packed:.2f} times those of packed rows"
                )
