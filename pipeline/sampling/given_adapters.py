"""Adapters on a user's own vLLM server: given under a new name each round, and taken back at the end. Torch-free."""

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import RunError, UserError

_NAME = "policy"


class GivenAdapters:
    """The newest adapter is on the server, under ``name``; None: none is, and its own model is asked."""

    def __init__(self, url: str, post: Callable[[str, dict[str, Any]], object]) -> None:
        """``post``: send a body to a path of the server at ``url``; it raises ``RunError`` for a refusal."""
        self.name: str | None = None
        self._url, self._post = url, post
        self._numbers = itertools.count(1)

    def require_taken(self) -> None:
        """Raise ``UserError`` if the server does not take adapters, before a round is trained for it.

        It is asked for one that is nowhere: only a server that takes them says that it is not found there.
        """
        nowhere = f"/{_NAME}-{os.getpid()}-is-nowhere"
        try:
            self._load(nowhere[1:], nowhere)
        except RunError as error:
            if nowhere not in str(error):
                raise self._refusal("does not take adapters", error) from None

    def give(self, path: str) -> None:
        """Give the server the adapter in ``path``, under a name that it has not had. Raises ``UserError``."""
        name = f"{_NAME}-{os.getpid()}-{next(self._numbers)}"
        try:
            self._load(name, str(Path(path).absolute()))
        except RunError as error:
            raise self._refusal(f"does not take the adapter in {path}", error) from None
        self.take_back()
        self.name = name

    def take_back(self) -> bool:
        """Leave the server's own model alone there; return whether an adapter was."""
        name, self.name = self.name, None
        if name is None:
            return False
        with contextlib.suppress(RunError):
            self._post("unload_lora_adapter", {"lora_name": name})
        return True

    def _load(self, name: str, path: str) -> None:
        self._post("load_lora_adapter", {"lora_name": name, "lora_path": path})

    def _refusal(self, what: str, error: RunError) -> UserError:
        return UserError(
            f"sampler.base_url: {self._url} {what}; allowed is a server that was started on the policy's model with "
            "--enable-lora, with a --max-lora-rank of the adapter's rank or more, with --lora-target-modules (names of "
            "the adapter's layers: with the output head among them, vLLM ends when it scores prompts), with "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 (only where no one else can reach it), and where it can read the run "
            f"folder: {error}"
        )
