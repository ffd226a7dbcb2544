"""Gold rewards from rules: slots, an exact answer, a number, a pattern, keywords, a length. Torch-free."""

import math
import re
from collections.abc import Sequence

from pipeline.config import ExactMatchScorer, KeywordScorer, LengthScorer, NumberScorer, RegexScorer, SlotScorer
from pipeline.data.tasks.slots import parse_mr, slot_errors
from pipeline.errors import UserError
from pipeline.types import Group, Prompt, Response


class SlotReward:
    """Slots realised minus values invented or contradicted, minus costs for excess length and for being cut off."""

    def __init__(self, settings: SlotScorer) -> None:
        """Nothing is loaded."""
        self._settings = settings

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return scores in slots. Raises ``UserError`` if a prompt's answer is not a meaning representation."""
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
    """1 if the response holds the prompt's answer, else 0.

    Without a pattern, the answer must match whole words: '12' is not in '112'. With one, group 1
    (or the whole match) of the pattern's last match must equal the answer.
    """

    def __init__(self, settings: ExactMatchScorer) -> None:
        """Raises ``UserError`` for a pattern that is not a regular expression."""
        self._ignore_case = settings.ignore_case
        try:
            self._pattern = re.compile(settings.pattern) if settings.pattern is not None else None
        except re.error as error:
            raise UserError(f"scorer.pattern: {settings.pattern!r} is not a regular expression: {error}") from error

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return scores of 0 or 1. Raises ``UserError`` for a prompt without an answer."""
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


# A sign counts if no number comes before it; commas may separate thousands; 3/4 is one number.
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?:(?<![\w.)])[-−+]\s?)?[$€£]?(?<![\w.])(?:{_PLAIN})(?:/\d+|[eE][-+]?\d+)?", re.ASCII)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


class NumberReward:
    """1 if the response's final number equals the answer's, else 0."""

    def __init__(self, settings: NumberScorer) -> None:
        """Nothing is loaded."""
        self._tolerance = settings.tolerance

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return scores of 0 or 1. Raises ``UserError`` for a prompt whose answer has no number."""
        return [tuple(self._same(r.text, wanted_number(group.prompt)) for r in group.responses) for group in groups]

    def _same(self, text: str, wanted: float) -> float:
        found = final_number(text)
        if found is None:
            return 0.0
        return float(math.isclose(found, wanted, rel_tol=self._tolerance, abs_tol=self._tolerance))


def wanted_number(prompt: Prompt) -> float:
    """Return the number in the prompt's answer. Raises ``UserError`` if there is no number."""
    number = final_number(stated_answer(prompt))
    if number is None:
        raise UserError(
            f"the scorer number needs a number in the answer; the answer of the prompt {_shown(prompt)} is "
            f"{(prompt.answer or '')[:80]!r}"
        )
    return number


def final_number(text: str) -> float | None:
    """Return the number after the last `####`, or in the last `\\boxed{}`, or the last number; None without a number.

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
    """One score if a pattern is found in the response, another if it is not."""

    def __init__(self, settings: RegexScorer) -> None:
        """The settings' validator has checked the pattern."""
        self._settings = settings
        self._pattern = re.compile(settings.pattern)

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return ``found`` or ``absent`` from the settings."""
        found, absent = self._settings.found, self._settings.absent
        return [tuple(found if self._pattern.search(r.text) else absent for r in group.responses) for group in groups]


class KeywordReward:
    """The number, or share, of keywords that the response holds as whole words."""

    def __init__(self, settings: KeywordScorer) -> None:
        """Nothing is loaded."""
        self._settings = settings

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return counts, or shares from 0 to 1. Raises ``UserError`` for a prompt without keywords."""
        return [tuple(self._covered(r.text, self.keywords(group.prompt)) for r in group.responses) for group in groups]

    def keywords(self, prompt: Prompt) -> list[str]:
        """Return the keywords from the settings, or from the prompt's answer, without duplicates."""
        if not self._settings.words and prompt.answer is None:
            raise UserError(
                "the scorer keywords looks for scorer.words, which is not set, or for the words of each prompt's "
                f"answer, but the prompt {_shown(prompt)} has none (columns.answer)"
            )
        given = self._settings.words or re.split(r"[,\n]", stated_answer(prompt))
        words = [*dict.fromkeys(self._plain(word) for word in given if word.strip())]
        if not words:
            raise UserError(f"the scorer keywords found no keyword in the answer of the prompt {_shown(prompt)}")
        return words

    def _covered(self, text: str, words: Sequence[str]) -> float:
        plain = self._plain(text)
        count = sum(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", plain) is not None for word in words)
        return float(count) if self._settings.count else count / len(words)

    def _plain(self, text: str) -> str:
        """Put one space between words, and fold case if case is ignored."""
        plain = " ".join(text.split())
        return plain.casefold() if self._settings.ignore_case else plain


class LengthReward:
    """Minus the distance of the response's length from a target, in words."""

    def __init__(self, settings: LengthScorer) -> None:
        """Nothing is loaded."""
        self._target = settings.target_words

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return scores in words, 0 at best."""
        return [tuple(-float(abs(len(r.text.split()) - self._target)) for r in group.responses) for group in groups]


def stated_answer(prompt: Prompt) -> str:
    """Return the prompt's answer. Raises ``UserError`` if it has no answer."""
    if prompt.answer is None:
        raise UserError(f"the scorer needs an answer, but the prompt {_shown(prompt)} has none (columns.answer)")
    return prompt.answer


def meaning(prompt: Prompt) -> dict[str, str]:
    """Parse the prompt's answer as slot -> value. Raises ``UserError`` if it is not a meaning representation."""
    try:
        return parse_mr(stated_answer(prompt))
    except ValueError as error:
        raise UserError(
            f"the scorer slots needs an answer slot[value], ...; the answer of the prompt {_shown(prompt)}: {error}"
        ) from error


def _shown(prompt: Prompt) -> str:
    return repr(prompt.messages[-1].content[:80])
