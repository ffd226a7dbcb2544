"""Slot errors of a sentence against its meaning representation, for restaurants (generated and E2E).

A meaning representation (MR) is ``slot[value], slot[value]``. The error follows Wen et al. 2015
(arXiv:1508.01745, section 4): ERR = (missing + redundant) / slots, with the redundant values told
apart into invented (the MR lacks the slot) and contradictory (the MR has another value). A wrong
value is thus one missing and one contradictory; the right value next to a wrong one is only contradictory.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.data.tasks.slot_claims import SlotRole, fold, place_key, read_claims
from pipeline.data.tasks.slot_wordings import WORDINGS
from pipeline.types import Group

_SLOT = re.compile(r"([A-Za-z][\w -]*?)\s*\[([^\[\]]*)\]")
_ALIASES = {
    "eattype": "type",
    "pricerange": "price",
    "price range": "price",
    "customer rating": "rating",
    "familyfriendly": "family",
}

# The grade that a number stands for: to give the grade instead misses the value but contradicts nothing.
_VAGUER = {
    "1 out of 5": "low",
    "3 out of 5": "average",
    "5 out of 5": "high",
    "less than £20": "cheap",
    "£20-25": "moderate",
    "more than £30": "high",
}

# Values that the patterns can tell apart. Any other value of an MR counts as realised if the text contains it.
_KNOWN_VALUE = {slot: re.compile("|".join(map(re.escape, values))) for slot, values in WORDINGS.items()} | {
    "price": re.compile(r"cheap|moderate|high|(?:less|more) than £\d+|£\d+(?:-\d+)?"),
    "rating": re.compile(r"low|average|high|\d out of 5"),
    "family": re.compile(r"yes|no"),
}


@dataclass(frozen=True, slots=True)
class SlotErrors:
    """Counts for one sentence. ``slots`` is the number of slots in the meaning representation."""

    slots: int
    missing: int
    invented: int
    contradictory: int

    @property
    def total(self) -> int:
        """All errors."""
        return self.missing + self.invented + self.contradictory

    @property
    def realised(self) -> int:
        """Slots whose value the sentence states."""
        return self.slots - self.missing


def parse_mr(text: str) -> dict[str, str]:
    """``name[The Mill], priceRange[cheap]`` -> ``{"name": "The Mill", "price": "cheap"}``.

    Maps slot names of the E2E corpus to the short ones used here. Raises ValueError if the text is not a
    meaning representation, a value is empty or a slot appears twice.
    """
    mr: dict[str, str] = {}
    position = 0
    for match in _SLOT.finditer(text):
        between = text[position : match.start()].strip()
        if between != ("," if mr else ""):
            raise ValueError(f"not slot[value], ...: {text[position : match.end()]!r}")
        slot = match[1].strip().lower()
        slot = _ALIASES.get(slot, slot)
        if slot in mr:
            raise ValueError(f"slot {slot} appears twice")
        if not match[2].strip():
            raise ValueError(f"slot {slot} has no value")
        mr[slot] = match[2].strip()
        position = match.end()
    if not mr or text[position:].strip(" ,\n"):
        raise ValueError(f"not slot[value], ...: {text[position : position + 60]!r}")
    return mr


def slot_findings(mr: dict[str, str], text: str) -> dict[str, tuple[bool, int]]:
    """Return (missing, number of other values) for each slot of the MR and each other slot that ``text`` claims."""
    claims = read_claims(text, [mr[slot] for slot in ("name", "near") if slot in mr])
    plain = fold(text).lower()
    findings: dict[str, tuple[bool, int]] = {}
    for slot, claimed in claims.values.items():
        wanted = fold(mr[slot]).lower() if slot in mr else None
        unheard_of = wanted is not None and not _KNOWN_VALUE[slot].fullmatch(wanted) and wanted in plain
        others = claimed - {wanted, _VAGUER.get(wanted or "")}
        if slot in mr or others:
            findings[slot] = (slot in mr and wanted not in claimed and not unheard_of, len(others))
    findings |= _places_findings(mr, claims.places)
    for slot in mr.keys() - claims.values.keys() - {"name", "near"}:
        findings[slot] = (fold(mr[slot]).lower() not in plain, 0)
    return findings


def _places_findings(mr: dict[str, str], places: tuple[tuple[str, SlotRole], ...]) -> dict[str, tuple[bool, int]]:
    name = place_key(mr["name"]) if "name" in mr else None
    near = place_key(mr["near"]) if "near" in mr else None
    findings: dict[str, tuple[bool, int]] = {}
    if name is not None:
        findings["name"] = ((name, "name") not in places, 0)
    if near is not None:
        findings["near"] = (near not in {key for key, _ in places}, 0)
    for role in ("name", "near"):
        others = {key for key, r in places if r == role and key != near and (key != name or role == "near")}
        if others:
            findings[role] = (findings.get(role, (False, 0))[0], len(others))
    return findings


def slot_errors(mr: dict[str, str], text: str) -> SlotErrors:
    """Count the slots of ``mr`` (as from ``parse_mr``) that ``text`` misses, and the values that it makes up."""
    findings = slot_findings(mr, text)
    return SlotErrors(
        slots=len(mr),
        missing=sum(missing for missing, _ in findings.values()),
        invented=sum(others for slot, (_, others) in findings.items() if slot not in mr),
        contradictory=sum(others for slot, (_, others) in findings.items() if slot in mr),
    )


def slot_error_rate(errors: Iterable[SlotErrors]) -> float:
    """Return errors over slots, both summed over all sentences (Wen et al. 2015); 0 without slots."""
    counted = list(errors)
    slots = sum(e.slots for e in counted)
    return sum(e.total for e in counted) / slots if slots else 0.0


def slot_errors_of(groups: Iterable[Group]) -> list[SlotErrors]:
    """Return each response's slot errors against its prompt's answer, which must be a meaning representation."""
    return [slot_errors(parse_mr(group.prompt.answer or ""), r.text) for group in groups for r in group.responses]


def slot_metrics(greedy: Iterable[Group], sampled: Iterable[Group]) -> dict[str, float]:
    """Return ``slot_error_rate`` (greedy), ``slot_error_rate_sampled``, and both split by kind of error, per slot.

    Raises ``ValueError`` for an answer that is not a meaning representation.
    """
    metrics: dict[str, float] = {}
    for suffix, groups in (("", greedy), ("_sampled", sampled)):
        errors = slot_errors_of(groups)
        slots = max(1, sum(e.slots for e in errors))
        metrics[f"slot_error_rate{suffix}"] = slot_error_rate(errors)
        metrics[f"slots_missing{suffix}"] = sum(e.missing for e in errors) / slots
        metrics[f"slots_invented{suffix}"] = sum(e.invented for e in errors) / slots
        metrics[f"slots_contradictory{suffix}"] = sum(e.contradictory for e in errors) / slots
    return metrics
