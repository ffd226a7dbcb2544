"""An image between the engine that draws it and the file that keeps it. Torch-free."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """A sampled image on its way from the engine to the shard that keeps it.

    ``png``: the file; ``latents``: little-endian float32 in the order of ``shape`` (channels, height, width), which
    training reads; ``seed``: of its random generator.
    """

    png: bytes
    latents: bytes
    shape: tuple[int, int, int]
    seed: int

    @property
    def id(self) -> str:
        """Hash of file and latents."""
        return hashlib.sha256(self.png + b"\0" + self.latents).hexdigest()[:16]
