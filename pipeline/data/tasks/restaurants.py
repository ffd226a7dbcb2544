"""The quickstart's data: meaning representations of made-up restaurants, and sentences that realise them.

A sentence is an opening that carries the name, then the other slots in a random order, grouped into
clauses; every slot has several wordings. ``clean`` sentences realise the meaning representation (MR)
exactly; ``references`` contain errors at known rates, so that a model trained on them is fluent but errs.
"""

import random
import re
from dataclasses import dataclass

from pipeline.config import RestaurantData
from pipeline.types import derive_seed

NAMES = (
    "Amber Lantern", "Bluebell", "Copper Kettle", "Driftwood", "Elm House", "Foxglove", "Gilded Plum", "Harvest Moon",
    "Iron Duck", "Juniper", "Kingfisher", "Lemon Tree", "Maple Corner", "Nightingale", "Old Anchor", "Pepper Mill",
    "Quiet Goose", "Red Barn", "Silver Spoon", "Thistle", "Umbrella", "Velvet Fig", "Willow Bank", "Yellow Door",
)  # fmt: skip
LANDMARKS = (
    "Abbey Park", "Bell Tower", "Castle Hotel", "Dock Bridge", "Empire Theatre", "Flower Market", "Grand Station",
    "Hill School", "Ivory Museum", "Jubilee Hall", "King Street", "Library Square",
)  # fmt: skip
VALUES: dict[str, tuple[str, ...]] = {
    "name": NAMES,
    "type": ("restaurant", "pub", "coffee shop"),
    "food": ("Chinese", "English", "French", "Greek", "Indian", "Italian", "Mexican", "Thai"),
    "price": ("cheap", "moderate", "£20-25", "more than £30"),
    "rating": ("low", "average", "high", "5 out of 5"),
    "area": ("city centre", "riverside", "harbour", "old town"),
    "family": ("yes", "no"),
    "near": LANDMARKS,
}

# Wordings of a slot as a clause after 'It': {} is the value's phrase.
_CLAUSES: dict[str, tuple[str, ...]] = {
    "food": ("serves {} food", "offers {} dishes", "has a {} menu", "cooks {} meals"),
    "price": ("has {}", "comes with {}", "charges {}"),
    "rating": ("has {}", "holds {}", "gets {}"),
    "area": ("is {}", "lies {}", "stands {}"),
    "family": ("is {}",),
    "near": ("is {}", "stands {}", "lies {}"),
}
_PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "type": {
        "restaurant": ("restaurant",),
        "pub": ("pub",),
        "coffee shop": ("coffee shop",),
    },
    "price": {
        "cheap": ("cheap prices", "low prices"),
        "moderate": ("moderate prices", "average prices"),
        "£20-25": ("prices of £20-25", "prices between £20 and £25"),
        "more than £30": ("prices of more than £30", "prices over £30"),
    },
    "rating": {
        "low": ("a low customer rating", "poor reviews"),
        "average": ("an average customer rating", "average reviews"),
        "high": ("a high customer rating", "excellent reviews"),
        "5 out of 5": ("a customer rating of 5 out of 5", "five stars"),
    },
    "area": {
        "city centre": ("in the city centre", "in the centre of the city"),
        "riverside": ("in the riverside area", "by the river"),
        "harbour": ("in the harbour area", "at the harbour"),
        "old town": ("in the old town", "in the old town quarter"),
    },
    "family": {
        "yes": ("family friendly", "good for children"),
        "no": ("not family friendly", "not suitable for children"),
    },
}
_OPENINGS = (
    "{name} is a {adjective}{type}{tail}",
    "There is a {adjective}{type} called {name}{tail}",
    "The {adjective}{type} {name} can be found{place_tail}",
    "{name} is the name of a {adjective}{type}{tail}",
)


@dataclass(frozen=True, slots=True)
class RestaurantRow:
    """One meaning representation with its sentences. ``mr`` is ``name[..], type[..], ...``."""

    mr: str
    references: tuple[str, ...]
    clean: tuple[str, ...]


def generate(settings: RestaurantData) -> list[RestaurantRow]:
    """Return ``settings.prompts`` distinct meaning representations, each with spoilt and clean sentences.

    The row at an index depends only on ``settings.seed`` and the rows before it, so a larger
    ``prompts`` continues a smaller one. Raises nothing: the task has millions of distinct inputs.
    """
    rows: list[RestaurantRow] = []
    seen: set[str] = set()
    index = 0
    while len(rows) < settings.prompts:
        rng = random.Random(derive_seed("restaurants", settings.seed, index))  # noqa: S311 - random draws, not secrets
        index += 1
        mr = _draw_mr(rng)
        text = write_mr(mr)
        if text in seen:
            continue
        seen.add(text)
        clean = tuple(write_sentence(mr, rng) for _ in range(settings.references))
        spoilt = tuple(write_sentence(_spoil(mr, settings, rng), rng) for _ in range(settings.references))
        rows.append(RestaurantRow(text, spoilt, clean))
    return rows


def write_mr(mr: dict[str, str]) -> str:
    """``{"name": "Bluebell", "food": "Thai"}`` -> ``name[Bluebell], food[Thai]``."""
    return ", ".join(f"{slot}[{value}]" for slot, value in mr.items())


def _draw_mr(rng: random.Random) -> dict[str, str]:
    optional = [slot for slot in VALUES if slot not in {"name", "type"}]
    chosen = {"name", "type", *rng.sample(optional, rng.choice((2, 3, 3, 4, 4, 5)))}
    return {slot: rng.choice(values) for slot, values in VALUES.items() if slot in chosen}


def _spoil(mr: dict[str, str], settings: RestaurantData, rng: random.Random) -> dict[str, str]:
    """Return a copy with wrong and missing values, and sometimes an invented slot. Name and type are never missing."""
    spoilt: dict[str, str] = {}
    for slot, value in mr.items():
        if slot not in {"name", "type"} and rng.random() < settings.missing:
            continue
        if rng.random() < settings.wrong:
            value = rng.choice([other for other in VALUES[slot] if other != value])
        spoilt[slot] = value
    absent = [slot for slot in VALUES if slot not in mr]
    if absent and rng.random() < settings.extra:
        slot = rng.choice(absent)
        spoilt[slot] = rng.choice(VALUES[slot])
    return spoilt


def _phrase(slot: str, value: str, rng: random.Random) -> str:
    if slot == "near":
        return f"{rng.choice(('near', 'close to', 'next to'))} {value}"
    return rng.choice(_PHRASES[slot][value]) if slot in _PHRASES else value


def write_sentence(mr: dict[str, str], rng: random.Random) -> str:
    """Draw sentences from the templates that realise every slot of ``mr``, which has a name and a type."""
    rest = [slot for slot in mr if slot not in {"name", "type"}]
    rng.shuffle(rest)
    opening = rng.choice(_OPENINGS)
    places = [slot for slot in rest if slot in {"area", "near"}]
    if "{place_tail}" in opening and not places:
        opening = _OPENINGS[0]
    adjective = ""
    if "food" in rest and rng.random() < 0.4:
        rest.remove("food")
        adjective = f"{mr['food']} "
    tail = ""
    if "{place_tail}" in opening or (places and rng.random() < 0.5):
        rest.remove(places[0])
        tail = f" {_phrase(places[0], mr[places[0]], rng)}"
    words = {
        "name": mr["name"],
        "adjective": adjective,
        "type": _phrase("type", mr["type"], rng),
        "tail": tail,
        "place_tail": tail,
    }
    return " ".join([_articles(opening.format(**words)) + ".", *_clauses(rest, mr, rng)])


def _clauses(slots: list[str], mr: dict[str, str], rng: random.Random) -> list[str]:
    """Return sentences of one or two clauses each for ``slots``, in order."""
    sentences = []
    while slots:
        group, slots = slots[:2], slots[2:]
        parts = [rng.choice(_CLAUSES[slot]).format(_phrase(slot, mr[slot], rng)) for slot in group]
        sentences.append(_articles(f"It {' and '.join(parts)}."))
    return sentences


def _articles(text: str) -> str:
    return re.sub(r"\ba (?=English|Indian|Italian)", "an ", text)
