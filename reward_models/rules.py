"""Gold rewards by rule: slots, an exact answer, a number, a pattern, keywords, a length. Torch-free."""

import math
import re
from collections.abc import Sequence

from pipeline.config import ExactMatchScorer, KeywordScorer, LengthScorer, NumberScorer, RegexScorer, SlotScorer
from pipeline.data.tasks.slots import parse_mr, slot_errors
from pipeline.errors import UserError
from pipeline.types import Group, Prompt, Response


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
        return [
            tuple(float(self._holds(r.text, stated_answer(group.prompt))) for r in group.responses) for group in groups
        ]

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


# A sign counts where no number stands before it; thousands may be parted by commas; 3/4 is one number.
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?:(?<![\w.)])[-−+]\s?)?[$€£]?(?<![\w.])(?:{_PLAIN})(?:/\d+|[eE][-+]?\d+)?", re.ASCII)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


class NumberReward:
    """1 where the final number of the response is that of the answer, else 0."""

    def __init__(self, settings: NumberScorer) -> None:
        """Nothing is loaded."""
        self._tolerance = settings.tolerance

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Scores of 0 or 1. Raises ``UserError`` for a prompt whose answer has no number."""
        return [tuple(self._same(r.text, wanted_number(group.prompt)) for r in group.responses) for group in groups]

    def _same(self, text: str, wanted: float) -> float:
        found = final_number(text)
        if found is None:
            return 0.0
        return float(math.isclose(found, wanted, rel_tol=self._tolerance, abs_tol=self._tolerance))


def wanted_number(prompt: Prompt) -> float:
    """The number of the prompt's answer. Raises ``UserError`` where there is none."""
    number = final_number(stated_answer(prompt))
    if number is None:
        raise UserError(
            f"the scorer number needs a number in the answer; that of the prompt {_shown(prompt)} is "
            f"{(prompt.answer or '')[:80]!r}"
        )
    return number


def final_number(text: str) -> float | None:
    """The number after the last `####`, or in the last `\\boxed{}`, or the last one; None where there is none.

    GSM8K (arXiv:2110.14168) ends its solutions with `#### 1,234`. Currency and percent signs do not count.
    """
    _, hashes, after = text.rpartition("####")
    boxed = _BOXED.findall(text)
    if hashes:
        found = _NUMBER.search(after)
        return None if found is None else _value(found[0])
    numbers = _NUMBER.findall(boxed[-1] if boxed else text)
    return _value(numbers[-1]) if numbers else None


def _value(number: str) -> float | None:
    plain = re.sub(r"[,$€£\s]", "", number).replace("−", "-")
    above, slash, below = plain.partition("/")
    divisor = float(below) if slash else 1.0
    value = float(above) / divisor if divisor else math.inf
    return value if math.isfinite(value) else None


class RegexReward:
    """One score where a pattern is found in the response, another where it is not."""

    def __init__(self, settings: RegexScorer) -> None:
        """The settings' validator has seen that the pattern is one."""
        self._settings = settings
        self._pattern = re.compile(settings.pattern)

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """``found`` or ``absent`` of the settings."""
        found, absent = self._settings.found, self._settings.absent
        return [tuple(found if self._pattern.search(r.text) else absent for r in group.responses) for group in groups]


class KeywordReward:
    """How many keywords stand in the response as words of their own, or their share."""

    def __init__(self, settings: KeywordScorer) -> None:
        """Nothing is loaded."""
        self._settings = settings

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Counts, or shares from 0 to 1. Raises ``UserError`` for a prompt whose keywords are none."""
        return [tuple(self._covered(r.text, self.keywords(group.prompt)) for r in group.responses) for group in groups]

    def keywords(self, prompt: Prompt) -> list[str]:
        """Those of the settings, or of the prompt's answer; each once."""
        given = self._settings.words or re.split(r"[,\n]", stated_answer(prompt))
        words = [*dict.fromkeys(self._plain(word) for word in given if word.strip())]
        if not words:
            raise UserError(f"the scorer keywords found none in the answer of the prompt {_shown(prompt)}")
        return words

    def _covered(self, text: str, words: Sequence[str]) -> float:
        plain = self._plain(text)
        count = sum(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", plain) is not None for word in words)
        return float(count) if self._settings.count else count / len(words)

    def _plain(self, text: str) -> str:
        """One blank between words, and one case where case does not count."""
        plain = " ".join(text.split())
        return plain.casefold() if self._settings.ignore_case else plain


class LengthReward:
    """Minus the distance of the response's length from a target, in words."""

    def __init__(self, settings: LengthScorer) -> None:
        """Nothing is loaded."""
        self._target = settings.target_words

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Scores in words, 0 at best."""
        return [tuple(-float(abs(len(r.text.split()) - self._target)) for r in group.responses) for group in groups]


def stated_answer(prompt: Prompt) -> str:
    """The prompt's answer. Raises ``UserError`` where there is none."""
    if prompt.answer is None:
        raise UserError(f"the scorer needs an answer, but the prompt {_shown(prompt)} has none (columns.answer)")
    return prompt.answer


def meaning(prompt: Prompt) -> dict[str, str]:
    """The prompt's answer as slot -> value. Raises ``UserError`` where it is no meaning representation."""
    try:
        return parse_mr(stated_answer(prompt))
    except ValueError as error:
        raise UserError(
            f"the scorer slots needs an answer slot[value], ...; that of the prompt {_shown(prompt)}: {error}"
        ) from error


def _shown(prompt: Prompt) -> str:
    return repr(prompt.messages[-1].content[:80])
