"""Hashes of content, and the seeds that are made of them. Torch-free."""

import hashlib
import json

# Made once: hashes are made of every prompt, several times a round.
_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def content_hash(value: object, length: int = 16) -> str:
    """Hash of ``value``'s canonical JSON: the first ``length`` hexadecimal digits of its SHA-256."""
    return hashlib.sha256(_CANONICAL.encode(value).encode("utf-8")).hexdigest()[:length]


def derive_seed(*parts: object) -> int:
    """Return a 31-bit seed that depends only on ``parts``, never on execution order or time."""
    return int(content_hash([str(part) for part in parts], length=8), 16) & 0x7FFFFFFF
