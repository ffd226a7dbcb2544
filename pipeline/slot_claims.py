"""What a sentence about a restaurant claims: slot -> values, read by patterns of English wording.

Closed slots (type, food, price, rating, area, family) have a list of wordings for each value. Open
slots (name, near) are found by the places that the caller names, by the places known here, and by
any capitalised words after 'near'. A claim that is denied ('not in the city centre') is none, save
for ``family``, where a denial is the value ``no``.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from pipeline.restaurants import LANDMARKS, NAMES

Claims = dict[str, set[str]]

# Names and landmarks of the E2E corpus (Novikova et al. 2017), so that a wrong one is seen as such.
E2E_NAMES = (
    "Alimentum", "Aromi", "Bibimbap House", "Blue Spice", "Browns Cambridge", "Clowns", "Cocum", "Cotto", "Fitzbillies",
    "Giraffe", "Green Man", "Loch Fyne", "Midsummer House", "Strada", "Taste of Cambridge", "The Cambridge Blue",
    "The Cricketers", "The Dumpling Tree", "The Eagle", "The Golden Curry", "The Golden Palace", "The Mill",
    "The Olive Grove", "The Phoenix", "The Plough", "The Punter", "The Twenty Two", "The Vaults", "The Waterman",
    "The Wrestlers", "Travellers Rest Beefeater", "Wildwood", "Zizzi",
)  # fmt: skip
E2E_LANDMARKS = (
    "All Bar One", "Avalon", "Burger King", "Cafe Adriatic", "Cafe Brazil", "Cafe Rouge", "Cafe Sicilia", "Clare Hall",
    "Crowne Plaza Hotel", "Express by Holiday Inn", "Rainbow Vegetarian Cafe", "Raja Indian Cuisine", "Ranch",
    "The Bakers", "The Portland Arms", "The Rice Boat", "The Six Bells", "The Sorrento", "Yippee Noodle Bar",
)  # fmt: skip

WORDINGS: dict[str, dict[str, str]] = {
    "type": {
        "coffee shop": r"coffee[ -]?(?:shops?|house|bar|place)|cafes?|coffeeshop",
        "pub": r"pubs?|tavern|public house",
        "restaurant": r"restaurants?",
    },
    "food": {
        "chinese": r"chinese",
        "english": r"english|british|fish and chips",
        "fast food": r"fast[ -]?foods?|burgers?",
        "french": r"french",
        "greek": r"greek",
        "indian": r"indian|curry|curries",
        "italian": r"italian|pastas?|pizzas?|spaghetti",
        "japanese": r"japanese|sushi",
        "mexican": r"mexican|tacos?",
        "spanish": r"spanish|tapas",
        "thai": r"thai",
        "turkish": r"turkish|kebabs?",
    },
    "area": {
        "city centre": r"(?:city|town)(?:'?s)?[ -]?cent(?:re|er)|cent(?:re|er) of (?:the )?(?:city|town)|city central"
        r"|heart of (?:the )?(?:city|town)|downtown|cent(?:re|er) city|in the (?:town |city )?cent(?:re|er)|central",
        "harbour": r"harbou?r",
        "old town": r"old town",
        "riverside": r"river[ -]?sides?|(?:the|a|by) river|river ?(?:bank|front|area)s?|banks of",
    },
}

_NEAR = r"(?:near(?:by)?(?: to)?|clos(?:e|er) (?:to|by)|next(?: door)? to|by|besides?|around|opposite|across(?: from)?"
_NEAR += (
    r"|adjacent to|vicinity of|proximity to|(?:not )?far from|alongside|walking distance (?:of|from|to)|past|behind)"
)
_ROLE_NEAR = re.compile(_NEAR + r"(?: the| a| to)? ?$", re.IGNORECASE)
_UNKNOWN_PLACE = re.compile(
    r"\b(?:[Nn]ear|[Cc]lose to|[Nn]ext to|[Oo]pposite|[Bb]eside|[Aa]cross from|[Aa]djacent to)(?: to)?(?: the| a)? "
    r"(?!City|Town|River|Centre|Center|Old Town|Harbour)([A-Z][\w']+(?: [A-Z][\w']+)*)"
)
_DENIED = re.compile(
    r"(?:\bnot|n't|\bnever|\bno|\bnon|\bneither|\bnor|\bwithout)[ -](?:(?:an?|the|in|at|near|by|very|so|too|really|particularly|exactly"
    r"|serv(?:e|es|ing)|offer(?:s|ing)?|considered|located|have|any|be|for) )*$"
    r"|\b(?:outside(?: of)?|(?:north|south|east|west)(?:ern)?(?: of)?|far from|blocks from)(?: the| a)? $"
)

# ---------------------------------------------------------------- numbers: prices and ratings

_DIGITS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
_SMALL = r"(?P<n>[0-9]|zero|one|two|three|four|five)"
_MONEY = r"(?:£ ?(?P<a>\d+)(?:\.\d+)?(?: ?(?:pounds?|quid))?|(?P<b>\d+)(?:\.\d+)? ?(?:pounds?|quid|gbp)|(?P<c>\d\d))"
_PRICE_NUMBERS = (
    (
        "£{a}-{b}",
        r"£? ?(?P<a>\d\d+)(?:\.\d+)? ?(?:pounds? ?)?(?:-|to|and|through|up to) ?£? ?(?P<b>\d\d+)(?:\.\d+)?(?: ?(?:pounds?|quid))?",
    ),
    (
        "more than £{n}",
        r"(?:(?:no|not) less than|more than|over|above|(?:high|great)er than|exceed(?:s|ing)?|at least|upwards of"
        r"|in excess of|start(?:s|ing)? (?:at|from)|>) ?(?:a )?" + _MONEY + r"(?: (?:and|or) (?:up|over|above|more))?",
    ),
    (
        "less than £{n}",
        r"(?:(?:no|not) (?:more|greater|higher) than|less than|under|below|(?:low|cheap|few)er than|up to|at most|within"
        r"|<) ?(?:a )?" + _MONEY + r"(?: (?:and|or) (?:less|under|below))?",
    ),
    ("more than £{n}", _MONEY + r" ?(?:\+|plus|(?:and|or) (?:up|over|above|more|higher)|upwards)"),
    ("less than £{n}", _MONEY + r" ?(?:(?:and|or) (?:less|under|below|lower))"),
    ("£{n}", r"£ ?(?P<a>\d+)(?P<b>)(?P<c>)|(?<![\d.])(?P<bb>\d\d+) ?(?:pounds?|quid)"),
)  # fmt: skip
_HEAD_RATING = r"(?:rat(?:ings?|ed|es?)|reviews?|reviewed|rank(?:ings?|ed)|scor(?:es?|ed|ing)|feedback|recommended|satisfaction|reputation)"
_HEAD_PRICE = r"(?:pric(?:es?|ed|ing|ey)|cost(?:s|ing)?|price[ -]range)"
_RATING_NUMBERS = (
    rf"\b{_SMALL}(?:\.\d)?[ -]?(?:stars? )?(?:ou[tr][ -]of|out|of|/|over)[ -]?(?:a possible )?(?:5|five)\b(?:[ -]?stars?)?",
    rf"\b{_SMALL}[ -]?stars?\b",
    rf"\b{_HEAD_RATING}(?: (?:is|are|of|as|at|an?|only|just|it|from|by|customers?|with|has|been))* ?:? ?{_SMALL}\b(?! (?:pounds|minutes))",
    rf"\b{_SMALL} (?:customer |star )?{_HEAD_RATING}\b",
)

# ---------------------------------------------------------------- grades: low, average, high

_GRADE_RATING = {
    "low": r"low(?:ly|er|est)?|poor(?:ly)?|bad(?:ly)?|terribl[ey]|awful|negative|unfavou?rable",
    "average": r"average(?:ly)?|mediocre|decent(?:ly)?|ok(?:ay)?|fair(?:ly)?|moderate(?:ly)?|medium|middling|reasonabl[ey]",
    "high": r"high(?:ly|er|est)?|excellent(?:ly)?|great|good|top|well|outstanding|superb|exceptional(?:ly)?|fantastic|very good|positive|best",
}
_GRADE_PRICE = {
    "cheap": r"low(?:er|est)?|cheap(?:ly|er|est)?|inexpensive(?:ly)?|affordabl[ey]|budget",
    "moderate": r"moderate(?:ly)?|medium|mid(?:dle)?|mid[ -]?rang(?:ed?|ing)|average|reasonabl[ey]|fair(?:ly)?|decent(?:ly)?",
    "high": r"high(?:er|est|ly)?|expensive(?:ly)?|steep|premium",
}
_ALONE_PRICE = {
    "cheap": r"cheap(?:ly|er|est)?|inexpensive(?:ly)?|affordabl[ey]|low[ -]cost|budget[ -]friendly|budget",
    "moderate": r"moderate(?:ly)?|mid[ -]?(?:price|range)d?",
    "high": r"expensive(?:ly)?|pricey|costly|up-?scale|high[ -]?end",
}
_FILL = r"(?:(?:customer|customers'?|consumer|user|guest|overall|public|quality|family|food|meal|menu|and)s?[ -])*"
_BE = (
    r"(?: (?:is|are|was|were|of|as|at|an?|the|in|to|be|being|been|it|has|have|very|rather|quite|only|just|both|also|but"
    r"|by|its|from|customers?|range[sd]?|considered|on|with|side|end|around|within|their|which|that|fairly|generally|locals)| ?:)*"
)


def fold(text: str) -> str:
    """Text with accents dropped, quotes and dashes made plain and white space squeezed; case kept."""
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"[’‘`´]", "'", text)
    text = re.sub(r"[‐‑–—−]", "-", text)
    return re.sub(r"\s+", " ", text).strip()


def place_key(place: str) -> str:
    """One spelling for a place: folded, lower case, without 'The'."""
    return re.sub(r"^the ", "", fold(place).lower())


class _Text:
    """A lower-case text whose matched parts are blanked out, so that no words count for two claims."""

    def __init__(self, text: str) -> None:
        self.text = text

    def take(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """The matches of ``pattern`` that are not denied."""
        for match in list(pattern.finditer(self.text)):
            self.text = self.text[: match.start()] + "~" * len(match[0]) + self.text[match.end() :]
            if not _DENIED.search(self.text[: match.start()]):
                yield match


def _any_of(values: dict[str, str]) -> str:
    """Alternation of all wordings, one named group for each value."""
    return "(?:" + "|".join(f"(?P<{value.replace(' ', '_')}>{words})" for value, words in values.items()) + ")"


_KNOWN_PLACES = re.compile(
    r"\b(?:[Tt]he )?("
    + "|".join(
        re.escape(p.removeprefix("The "))
        for p in sorted([*E2E_NAMES, *E2E_LANDMARKS, *NAMES, *LANDMARKS], key=len, reverse=True)
    )
    + r")\b"
)
_PRICE_NUMBERS_RE = [(form, re.compile(rf"(?<![\d£]){pattern}")) for form, pattern in _PRICE_NUMBERS]
_PRICE_WORDS_RE = [
    re.compile(rf"\b{_any_of(_GRADE_PRICE)}[ -]{_FILL}{_HEAD_PRICE}\b"),
    re.compile(rf"\b(?:price range|{_HEAD_PRICE}){_BE}[ -]{_any_of(_GRADE_PRICE)}\b(?![ -]{_FILL}{_HEAD_RATING})"),
    re.compile(rf"\b{_any_of(_ALONE_PRICE)}\b(?![ -]{_FILL}{_HEAD_RATING})"),
]
_RATING_NUMBERS_RE = [re.compile(pattern) for pattern in _RATING_NUMBERS]
_RATING_WORDS_RE = [
    re.compile(rf"\b{_any_of(_GRADE_RATING)}[ -]{_FILL}{_HEAD_RATING}\b"),
    re.compile(rf"\b{_HEAD_RATING}{_BE}[ -]{_any_of(_GRADE_RATING)}\b"),
]
_WORDINGS_RE = {slot: re.compile(rf"\b{_any_of(values)}\b") for slot, values in WORDINGS.items()}


def _value(match: re.Match[str]) -> str:
    return (match.lastgroup or "").replace("_", " ")


def _places(text: str, own: Iterable[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text with all places blanked out, and each place's key with its role (``near`` or ``name``)."""
    keys = sorted({place_key(p) for p in own}, key=len, reverse=True)
    patterns = [re.compile(rf"\b(?:the )?({re.escape(key)})\b", re.IGNORECASE) for key in keys]
    found: list[tuple[str, str]] = []
    for pattern in [*patterns, _KNOWN_PLACES]:
        for match in list(pattern.finditer(text)):
            role = "near" if _ROLE_NEAR.search(text[: match.start()]) else "name"
            found.append((match[1].lower(), role))
            text = text[: match.start()] + "~" * len(match[0]) + text[match.end() :]
    found.extend((match[1].lower(), "near") for match in _UNKNOWN_PLACE.finditer(text))
    return text, found


def _price(text: _Text) -> set[str]:
    claims: set[str] = set()
    for form, pattern in _PRICE_NUMBERS_RE:
        for match in text.take(pattern):
            groups = {key: value for key, value in match.groupdict().items() if value}
            claims.add(form.format(**groups) if "{a}" in form else form.format(n=next(iter(groups.values()))))
    for pattern in _PRICE_WORDS_RE:
        claims |= {_value(match) for match in text.take(pattern)}
    return claims


def _rating(text: _Text) -> set[str]:
    claims: set[str] = set()
    for pattern in _RATING_NUMBERS_RE:
        for match in text.take(pattern):
            claims.add(f"{_DIGITS.get(match['n'], match['n'])} out of 5")
    for pattern in _RATING_WORDS_RE:
        claims |= {_value(match) for match in text.take(pattern)}
    return claims


_FAMILY = re.compile(
    r"\b(?:(?:famil(?:y|ies)|child(?:ren)?|childs|kids?)(?:'s?)?(?: (?:and|or) )?)+|\badults?[ -]only\b|\bonly adults\b"
)
_CLAUSE = re.compile(r"[.;!?,]| but | although | though | yet | while | and ")
_NO_BEFORE = re.compile(
    r"\b(?:not|non|no|never|nor|neither|without|un|unsuitable|inappropriate|avoid|lacks?|discourages?|cannot|unfriendly)\b|n't\b|\bnon"
)
_NO_AFTER = re.compile(
    r"^[ -](?:is |are |were |be |friendly )?(?:not|unfriendly|un|un-friendly|non|free|prohibited|unwelcome)\b|^[ -]\w+ (?:is not|no)\b"
)


def _family(text: str) -> set[str]:
    claims: set[str] = set()
    for match in _FAMILY.finditer(text):
        before = " ".join(_CLAUSE.split(text[: match.start()])[-1].split()[-7:])
        after = _CLAUSE.split(text[match.end() :])[0]
        denied = "adult" in match[0] or _NO_BEFORE.search(before) or _NO_AFTER.search(after)
        claims.add("no" if denied else "yes")
    return claims


def read_claims(
    text: str, names: Iterable[str] = (), landmarks: Iterable[str] = ()
) -> tuple[Claims, list[tuple[str, str]]]:
    """Read what ``text`` says about a restaurant.

    ``names`` and ``landmarks`` are the places that the meaning representation names; they are found
    in any case, the places known here only as they are spelled.

    Returns closed slot -> claimed values (lower case), and (place key, role) for each place named,
    the role being ``near`` after a word such as 'near' and ``name`` elsewhere.
    """
    masked, places = _places(fold(text), [*names, *landmarks])
    lower = _Text(masked.lower())
    claims: Claims = {"price": _price(lower), "rating": _rating(lower)}
    for slot, pattern in _WORDINGS_RE.items():
        claims[slot] = {_value(match) for match in lower.take(pattern)}
    claims["family"] = _family(lower.text)
    return claims, places
