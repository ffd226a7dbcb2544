"""English wordings of a restaurant's slots: places by name, and regular expressions for everything else.

Data only; ``slot_claims`` reads texts with it. All patterns expect folded lower-case text. In a
number's form ``{n}`` is the amount, and ``{a}`` and ``{b}`` are the ends of a range.
"""

import re

from pipeline.data.tasks.restaurants import LANDMARKS, NAMES

# Names and landmarks of the E2E corpus (Novikova et al. 2017, arXiv:1706.09254), to recognise wrong ones.
E2E_PLACES = (
    "Alimentum", "All Bar One", "Aromi", "Avalon", "Bibimbap House", "Blue Spice", "Browns Cambridge", "Burger King",
    "Cafe Adriatic", "Cafe Brazil", "Cafe Rouge", "Cafe Sicilia", "Clare Hall", "Clowns", "Cocum", "Cotto",
    "Crowne Plaza Hotel", "Express by Holiday Inn", "Fitzbillies", "Giraffe", "Green Man", "Loch Fyne",
    "Midsummer House", "Rainbow Vegetarian Cafe", "Raja Indian Cuisine", "Ranch", "Strada", "Taste of Cambridge",
    "The Bakers", "The Cambridge Blue", "The Cricketers", "The Dumpling Tree", "The Eagle", "The Golden Curry",
    "The Golden Palace", "The Mill", "The Olive Grove", "The Phoenix", "The Plough", "The Portland Arms", "The Punter",
    "The Rice Boat", "The Six Bells", "The Sorrento", "The Twenty Two", "The Vaults", "The Waterman", "The Wrestlers",
    "Travellers Rest Beefeater", "Wildwood", "Yippee Noodle Bar", "Zizzi",
)  # fmt: skip
PLACES = (*E2E_PLACES, *NAMES, *LANDMARKS)

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

# ---------------------------------------------------------------- places and denials

# Words that make the place after them a landmark, up to the place.
BEFORE_LANDMARK = re.compile(
    r"(?:near(?:by)?(?: to)?|clos(?:e|er) (?:to|by)|next(?: door)? to|by|besides?|around|opposite|across(?: from)?"
    r"|adjacent to|vicinity of|proximity to|(?:not )?far from|alongside|walking distance (?:of|from|to)|past|behind)"
    r"(?: the| a| to)? ?$",
    re.IGNORECASE,
)
UNKNOWN_LANDMARK = re.compile(
    r"\b(?:[Nn]ear|[Cc]lose to|[Nn]ext to|[Oo]pposite|[Bb]eside|[Aa]cross from|[Aa]djacent to)(?: to)?(?: the| a)? "
    r"(?!City|Town|River|Centre|Center|Old Town|Harbour)([A-Z][\w']+(?: [A-Z][\w']+)*)"
)
# Words that turn the claim after them into a denial, up to the claim.
DENIAL = re.compile(
    r"(?:\bnot|n't|\bnever|\bno|\bnon|\bneither|\bnor|\bwithout)[ -]"
    r"(?:(?:an?|the|in|at|near|by|very|so|too|really|particularly|exactly|serv(?:e|es|ing)|offer(?:s|ing)?"
    r"|considered|located|have|any|be|for) )*$"
    r"|\b(?:outside(?: of)?|(?:north|south|east|west)(?:ern)?(?: of)?|far from|blocks from)(?: the| a)? $"
)

# ---------------------------------------------------------------- numbers: prices and ratings

DIGITS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
_HEAD_RATING = (
    r"(?:rat(?:ings?|ed|es?)|reviews?|reviewed|rank(?:ings?|ed)|scor(?:es?|ed|ing)|feedback|recommended"
    r"|satisfaction|reputation)"
)
_HEAD_PRICE = r"(?:pric(?:es?|ed|ing|ey)|cost(?:s|ing)?|price[ -]range)"
_POUNDS = r"(?: ?(?:pounds?|quid|gbp))"
_MONEY = rf"(?:£ ?(?P<a>\d+)(?:\.\d+)?{_POUNDS}?|(?P<b>\d+)(?:\.\d+)?{_POUNDS}|(?P<c>\d\d))"
_MORE_THAN = (
    r"(?:(?:no|not) less than|(?<!no )(?<!not )more than|over|above|(?:high|great)er than|exceed(?:s|ing)?|at least"
    r"|upwards of|in excess of|start(?:s|ing)? (?:at|from)|>)"
)
_LESS_THAN = (
    r"(?:(?:no|not) (?:more|greater|higher) than|(?<!no )(?<!not )less than|under|below|(?:low|cheap|few)er than"
    r"|up to|at most|within|<)"
)
_AND_MORE = r"(?:(?:and|or) (?:up|over|above|more|higher))"
_AND_LESS = r"(?:(?:and|or) (?:less|under|below|lower))"
_RANGE = rf"£? ?(?P<a>\d\d+)(?:\.\d+)? ?{_POUNDS}? ?(?:-|to|and|through) ?£? ?(?P<b>\d\d+)(?:\.\d+)?{_POUNDS}?"
PRICE_NUMBERS = tuple(
    (form, re.compile(rf"(?<![\d£]){pattern}"))
    for form, pattern in (
        ("£{a}-{b}", _RANGE),
        ("more than £{n}", rf"{_MORE_THAN} ?(?:a )?{_MONEY}(?: {_AND_MORE})?"),
        ("less than £{n}", rf"{_LESS_THAN} ?(?:a )?{_MONEY}(?: {_AND_LESS})?"),
        ("more than £{n}", rf"{_MONEY} ?(?:\+|plus|upwards|{_AND_MORE})"),
        ("less than £{n}", rf"{_MONEY} ?{_AND_LESS}"),
        ("£{n}", rf"(?:£ ?(?P<a>\d+)|(?<![\d.])(?P<b>\d\d+){_POUNDS})"),
    )
)

_SMALL = r"(?P<n>[0-9]|zero|one|two|three|four|five)"
_RATED_AS = r"(?: (?:is|are|of|as|at|an?|only|just|it|from|by|customers?|with|has|been))*"
RATING_NUMBERS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b{_SMALL}(?:\.\d)?[ -]?(?:stars? )?(?:ou[tr][ -]of|out|of|/|over)[ -]?(?:a possible )?(?:5|five)\b"
        r"(?:[ -]?stars?)?",
        rf"\b{_SMALL}[ -]?stars?\b",
        rf"\b{_HEAD_RATING}{_RATED_AS} ?:? ?{_SMALL}\b(?! (?:pounds|minutes))",
        rf"\b{_SMALL} (?:customer |star )?{_HEAD_RATING}\b",
    )
)

# ---------------------------------------------------------------- grades: low, average, high

_GRADE_RATING = {
    "low": r"low(?:ly|er|est)?|poor(?:ly)?|bad(?:ly)?|terribl[ey]|awful|negative|unfavou?rable",
    "average": r"average(?:ly)?|mediocre|decent(?:ly)?|ok(?:ay)?|fair(?:ly)?|moderate(?:ly)?|medium|middling"
    r"|reasonabl[ey]",
    "high": r"high(?:ly|er|est)?|excellent(?:ly)?|great|good|top|well|outstanding|superb|exceptional(?:ly)?|fantastic"
    r"|very good|positive|best",
}
_GRADE_PRICE = {
    "cheap": r"low(?:er|est)?|cheap(?:ly|er|est)?|inexpensive(?:ly)?|affordabl[ey]|budget",
    "moderate": r"moderate(?:ly)?|medium|mid(?:dle)?|mid[ -]?rang(?:ed?|ing)|average|reasonabl[ey]|fair(?:ly)?"
    r"|decent(?:ly)?",
    "high": r"high(?:er|est|ly)?|expensive(?:ly)?|steep|premium",
}
_PRICE_ALONE = {
    "cheap": r"cheap(?:ly|er|est)?|inexpensive(?:ly)?|affordabl[ey]|low[ -]cost|budget[ -]friendly|budget",
    "moderate": r"moderate(?:ly)?|mid[ -]?(?:price|range)d?",
    "high": r"expensive(?:ly)?|pricey|costly|up-?scale|high[ -]?end",
}
# Words that may stand between a grade and its head: 'high (customer) rating', 'rating (is very) high'.
_BEFORE_HEAD = r"(?:(?:customer|customers'?|consumer|user|guest|overall|public|quality|family|food|meal|menu)s?[ -])*"
_AFTER_HEAD = (
    r"(?: (?:is|are|was|were|of|as|at|an?|the|in|to|be|being|been|it|has|have|very|rather|quite|only|just|both|also|but"
    r"|by|its|from|customers?|range[sd]?|considered|on|with|side|end|around|within|their|which|that|fairly|generally"
    r"|locals)| ?:)*"
)


def _any_of(values: dict[str, str]) -> str:
    """Return an alternation of all wordings, with one group for each value, named after it."""
    return "(?:" + "|".join(f"(?P<{value.replace(' ', '_')}>{words})" for value, words in values.items()) + ")"


_NOT_RATING = rf"\b(?![ -]{_BEFORE_HEAD}{_HEAD_RATING})"
PRICE_GRADES = (
    re.compile(rf"\b{_any_of(_GRADE_PRICE)}[ -]{_BEFORE_HEAD}{_HEAD_PRICE}\b"),
    re.compile(rf"\b(?:price range|{_HEAD_PRICE}){_AFTER_HEAD}[ -]{_any_of(_GRADE_PRICE)}{_NOT_RATING}"),
    re.compile(rf"\b{_any_of(_PRICE_ALONE)}{_NOT_RATING}"),
)
RATING_GRADES = (
    re.compile(rf"\b{_any_of(_GRADE_RATING)}[ -]{_BEFORE_HEAD}{_HEAD_RATING}\b"),
    re.compile(rf"\b{_HEAD_RATING}{_AFTER_HEAD}[ -]{_any_of(_GRADE_RATING)}\b"),
)
VALUE_WORDS = {slot: re.compile(rf"\b{_any_of(values)}\b") for slot, values in WORDINGS.items()}

# ---------------------------------------------------------------- families

FAMILY = re.compile(
    r"\b(?:(?:famil(?:y|ies)|child(?:ren)?|childs|kids?)(?:'s?)?(?: (?:and|or) )?)+|\badults?[ -]only\b|\bonly adults\b"
)
CLAUSE_END = re.compile(r"[.;!?,]| but | although | though | yet | while | and ")
FAMILY_DENIED_BEFORE = re.compile(
    r"\b(?:not|non|no|never|nor|neither|without|un|unsuitable|inappropriate|avoid|lacks?|discourages?|cannot"
    r"|unfriendly)\b|n't\b|\bnon"
)
FAMILY_DENIED_AFTER = re.compile(
    r"^[ -](?:is |are |were |be |friendly )?(?:not|unfriendly|un|un-friendly|non|free|prohibited|unwelcome)\b"
    r"|^[ -]\w+ (?:is not|no)\b"
)
