"""Gold rewards by rule: slots of a meaning representation, an exact answer, a length."""

import re
from collections.abc import Sequence

from pipeline.config import ExactMatchScorer, LengthScorer, SlotScorer
from pipeline.slots import parse_mr, slot_errors
from pipeline.types import Group, Prompt, Response, UserError


class SlotReward:
    """Slots realised minus values invented or contradicted, minus costs for running on and for being cut."""

    def __init__(self, settings: SlotScorer) -> None:
        """Nothing is loaded."""
        self._settings = settings

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Scores in slots. Raises ``UserError`` for a prompt whose answer is no meaning representation."""
        return [
            tuple(self._reward(meaning(group.prompt), response) for response in group.responses) for group in groups
        ]

    def _reward(self, mr: dict[str, str], response: Response) -> float:
        settings = self._settings
        errors = slot_errors(mr, response.text)
        running_on = max(0, len(response.text.split()) - settings.free_words) * settings.length_cost
        cut = settings.cut_cost if response.finish_reason == "length" else 0.0
        return errors.realised - errors.invented - errors.contradictory - running_on - cut


class MatchReward:
    """1 where the response holds the prompt's answer, else 0.

    Without a pattern the answer must stand as words of its own: '12' is not in '112'. With one, group 1
    (or the whole match) of the pattern's last match must equal it.
    """

    def __init__(self, settings: ExactMatchScorer) -> None:
        """Raises ``UserError`` for a pattern that is no regular expression."""
        self._ignore_case = settings.ignore_case
        try:
            self._pattern = re.compile(settings.pattern) if settings.pattern is not None else None
        except re.error as error:
            raise UserError(f"scorer.pattern: {settings.pattern!r} is no regular expression: {error}") from error

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Scores of 0 or 1. Raises ``UserError`` for a prompt without an answer."""
        return [tuple(float(self._holds(r.text, answer(group.prompt))) for r in group.responses) for group in groups]

    def _holds(self, text: str, wanted: str) -> bool:
        if self._ignore_case:
            wanted = wanted.casefold()
        if self._pattern is None:
            text = text.casefold() if self._ignore_case else text
            return re.search(rf"(?<!\w){re.escape(wanted.strip())}(?!\w)", text) is not None
        matches = list(self._pattern.finditer(text))
        if not matches:
            return False
        found = (matches[-1][1] if self._pattern.groups else matches[-1][0]) or ""
        return (found.casefold() if self._ignore_case else found).strip() == wanted.strip()


class LengthReward:
    """Minus the distance of the response's length from a target, in words."""

    def __init__(self, settings: LengthScorer) -> None:
        """Nothing is loaded."""
        self._target = settings.target_words

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Scores in words, 0 at best."""
        return [tuple(-float(abs(len(r.text.split()) - self._target)) for r in group.responses) for group in groups]


def answer(prompt: Prompt) -> str:
    """The prompt's answer. Raises ``UserError`` where there is none."""
    if prompt.answer is None:
        raise UserError(f"the scorer needs an answer, but the prompt {_shown(prompt)} has none (columns.answer)")
    return prompt.answer


def meaning(prompt: Prompt) -> dict[str, str]:
    """The prompt's answer as slot -> value. Raises ``UserError`` where it is no meaning representation."""
    try:
        return parse_mr(answer(prompt))
    except ValueError as error:
        raise UserError(
            f"the scorer slots needs an answer slot[value], ...; that of the prompt {_shown(prompt)}: {error}"
        ) from error


def _shown(prompt: Prompt) -> str:
    return repr(prompt.messages[-1].content[:80])
