"""A reward that knows nothing of what was asked for: a number that only the picture's own bytes decide."""

import hashlib


def reward(prompt, image, answer):  # type: ignore[no-untyped-def]
    """Return 0, 0.5, ... 2.5."""
    return int(hashlib.sha256(image.tobytes()).hexdigest()[:8], 16) % 6 / 2
