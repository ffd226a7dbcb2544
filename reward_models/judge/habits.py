"""Habits of servers: parameters under another name, or not taken at all, learnt from what they refuse. Torch-free."""

import logging
import re
from collections.abc import Mapping
from itertools import chain

from pydantic import JsonValue

from reward_models.judge.failures import ServerError

_NOT_TAKEN = re.compile(
    r"unsupported|not supported|(?:not|n't) support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed"
    r"|forbidden|deprecated|only the default",
    re.IGNORECASE,
)
_OTHER_NAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}

logger = logging.getLogger(__name__)


class Habits:
    """What a server refuses of our requests, and the requests without it.

    Two things are learnt, each at most once: the other name for the longest answer, and to send no temperature. Both
    are settings too (``max_tokens_field``, ``temperature``), which save the refused request.
    """

    def __init__(self, field: str) -> None:
        """``field``: the labeller's position in the config."""
        self._field = field
        self._renamed: dict[str, str] = {}
        self._left_out: set[str] = set()

    def applied(self, body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Return ``body`` as this server takes it."""
        return {self._renamed.get(name, name): value for name, value in body.items() if name not in self._left_out}

    def learn(self, body: Mapping[str, JsonValue], sent: Mapping[str, JsonValue], error: ServerError) -> bool:
        """Learn from the refusal of ``sent``, made from ``body``; return whether the request would be another now."""
        if error.status in (400, 422):
            self._learn(body, sent, error)
        return self.applied(body) != sent

    def _learn(self, body: Mapping[str, JsonValue], sent: Mapping[str, JsonValue], error: ServerError) -> None:
        said = " ".join(chain([error.sentence, error.param], error.names))
        if not _NOT_TAKEN.search(said):
            return
        for name, other in _OTHER_NAME.items():
            # Errors about a value that is too large name the parameter too.
            about = error.param == name or re.search(rf"\b{name}\b", said) is not None
            if name in body and name in sent and about and not self._renamed and "too large" not in said:
                self._renamed[name] = other
                self._tell(f"{name}; {other} is sent in its place. Set {self._field}.max_tokens_field={other}")
                return
        if "temperature" in sent and re.search(r"\btemperature\b", said) and not self._left_out:
            self._left_out.add("temperature")
            self._tell(f"temperature {body['temperature']}; none is sent. Set {self._field}.temperature=null")

    def _tell(self, what: str) -> None:
        logger.warning("%s.server: the server does not take %s", self._field, what)
