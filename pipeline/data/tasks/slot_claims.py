"""Claims of a sentence about a restaurant: slot -> values, and the places it names with their role.

A denied claim ('not in the city centre') does not count, except for ``family``, where a denial is the
value ``no``. No words count for two claims: each pattern blanks out what it has read.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.data.tasks import slot_wordings as say

SlotRole = Literal["name", "near"]
_KNOWN_PLACES = re.compile(
    r"\b(?:[Tt]he )?("
    + "|".join(re.escape(place.removeprefix("The ")) for place in sorted(say.PLACES, key=len, reverse=True))
    + r")\b"
)


@dataclass(frozen=True, slots=True)
class Claims:
    """``values``: closed slot -> lower-case values; ``places``: (place key, ``near`` after a word such as 'near')."""

    values: dict[str, set[str]]
    places: tuple[tuple[str, SlotRole], ...]


def read_claims(text: str, own_places: Iterable[str] = ()) -> Claims:
    """Read the claims of ``text``.

    ``own_places``: places of the meaning representation, which match in any case and without 'The'. Other
    known places match only as spelled here, and unknown places only after a word such as 'near'.
    """
    masked, places = _places(fold(text), own_places)
    lower = _Text(masked.lower())
    values = {"price": _price(lower), "rating": _rating(lower)}
    for slot, pattern in say.VALUE_WORDS.items():
        values[slot] = {_value(match) for match in lower.take(pattern)}
    values["family"] = _family(lower.text)
    return Claims(values, tuple(places))


def fold(text: str) -> str:
    """Return ``text`` without accents, with plain quotes and dashes and single spaces; case is kept."""
    text = re.sub(r"\s+", " ", text).strip()
    if text.isascii():
        return text
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[‐‑–—−]", "-", re.sub(r"[’‘`´]", "'", text))


def place_key(place: str) -> str:
    """Return one spelling for a place: folded, lower case, without 'The'."""
    return fold(place).lower().removeprefix("the ")


class _Text:
    """A lower-case text; what is read from it is removed."""

    def __init__(self, text: str) -> None:
        self.text = text

    def take(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """Yield the matches of ``pattern`` that are not denied; denied matches are removed too."""
        for match in list(pattern.finditer(self.text)):
            self.text = _blank(self.text, match)
            if not say.DENIAL.search(self.text[: match.start()]):
                yield match


def _blank(text: str, match: re.Match[str]) -> str:
    return text[: match.start()] + "~" * len(match[0]) + text[match.end() :]


def _value(match: re.Match[str]) -> str:
    return (match.lastgroup or "").replace("_", " ")


def _places(text: str, own: Iterable[str]) -> tuple[str, list[tuple[str, SlotRole]]]:
    """Return the text with all known places blanked out, and all places."""
    keys = sorted({place_key(place) for place in own}, key=len, reverse=True)
    patterns = [re.compile(rf"\b(?:the )?({re.escape(key)})\b", re.IGNORECASE) for key in keys]
    found: list[tuple[str, SlotRole]] = []
    for pattern in [*patterns, _KNOWN_PLACES]:
        for match in list(pattern.finditer(text)):
            is_landmark = say.BEFORE_LANDMARK.search(text[: match.start()])
            found.append((match[1].lower(), "near" if is_landmark else "name"))
            text = _blank(text, match)
    found.extend((match[1].lower(), "near") for match in say.UNKNOWN_LANDMARK.finditer(text))
    return text, found


def _price(text: _Text) -> set[str]:
    claims: set[str] = set()
    for form, pattern in say.PRICE_NUMBERS:
        for match in text.take(pattern):
            amounts = {group: amount for group, amount in match.groupdict().items() if amount}
            claims.add(form.format(n=next(iter(amounts.values())), **amounts))
    for pattern in say.PRICE_GRADES:
        claims |= {_value(match) for match in text.take(pattern)}
    return claims


def _rating(text: _Text) -> set[str]:
    claims: set[str] = set()
    for pattern in say.RATING_NUMBERS:
        claims |= {f"{say.DIGITS.get(match['n'], match['n'])} out of 5" for match in text.take(pattern)}
    for pattern in say.RATING_GRADES:
        claims |= {_value(match) for match in text.take(pattern)}
    return claims


def _family(text: str) -> set[str]:
    claims: set[str] = set()
    for match in say.FAMILY.finditer(text):
        before = " ".join(say.CLAUSE_END.split(text[: match.start()])[-1].split()[-7:])
        after = say.CLAUSE_END.split(text[match.end() :])[0]
        denied = say.FAMILY_DENIED_BEFORE.search(before) or say.FAMILY_DENIED_AFTER.search(after)
        claims.add("no" if denied or "adult" in match[0] else "yes")
    return claims
