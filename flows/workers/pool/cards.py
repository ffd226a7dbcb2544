"""Cards and cores that this process may use, as CUDA_VISIBLE_DEVICES names them. Torch-free.

Entries are positions (``0``), the beginnings of a card's UUID (``GPU-8932f937``) or parts of a card (``MIG-...``). A
scheduler such as Slurm sets the variable; children get entries of it and never others.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage.cores import bound_cores

VISIBLE = "CUDA_VISIBLE_DEVICES"
_NAMED = ("GPU-", "MIG-")


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use: entries for ``CUDA_VISIBLE_DEVICES``, and numbers of cores."""

    cards: tuple[str, ...]
    cores: tuple[int, ...]


def this_machine(environment: Mapping[str, str] = os.environ) -> Machine:
    """Return what this process may use of its machine."""
    present = 0 if (count := count_cards()) is None else count
    return Machine(visible_cards(environment.get(VISIBLE), present), bound_cores())


def count_cards(devices: Path = Path("/dev")) -> int | None:
    """Return the number of cards whose device files are in ``devices``; None if there are none."""
    nvidia = sum(1 for _ in devices.glob("nvidia[0-9]*"))
    amd = sum(1 for _ in (devices / "dri").glob("renderD*")) if (devices / "kfd").exists() else 0
    # Under WSL one device file stands for all cards.
    return nvidia or amd or (1 if (devices / "dxg").exists() else None)


def visible_cards(value: str | None, present: int) -> tuple[str, ...]:
    """Return the entries of ``CUDA_VISIBLE_DEVICES`` that CUDA uses; by default a position for each card ``present``.

    CUDA ignores what follows the first entry that names no card, such as ``-1``. No card is visible if an entry comes
    twice, or on a machine without cards.

    >>> visible_cards("2,0,-1,1", 4)
    ('2', '0')
    >>> visible_cards(None, 2)
    ('0', '1')
    """
    if not present:
        return ()
    if value is None:
        return tuple(map(str, range(present)))
    found: list[str] = []
    for entry in (part.strip() for part in value.split(",")):
        if not entry.startswith(_NAMED) and not (entry.isascii() and entry.isdecimal()):
            break
        found.append(entry)
    return tuple(found) if len({*found}) == len(found) else ()


def is_slice(card: str) -> bool:
    """Whether ``card`` is a part of a card (MIG); CUDA shows a process at most one of them."""
    return card.startswith("MIG-")


def chosen_cards(wanted: str, visible: Sequence[str], field: str) -> tuple[str, ...]:
    """Return the entries of ``visible`` that ``gpu_ids`` of an accelerate config names.

    Numbers are positions among the visible cards, as for CUDA itself; names must be visible ones.

    >>> chosen_cards("1,0", ("4", "5", "6"), "gpu_ids")
    ('5', '4')

    Raises:
        UserError: an entry is none of the visible cards, or comes twice.
    """
    if wanted.strip() == "all":
        return tuple(visible)
    entries = [part.strip() for part in wanted.split(",") if part.strip()]
    found = [_one(entry, visible) for entry in entries]
    wrong = [entry for entry, card in zip(entries, found, strict=True) if card is None]
    cards = [card for card in found if card is not None]
    if wrong or len({*cards}) < len(cards) or not cards:
        allowed = f"0 to {len(visible) - 1}" if visible else "none"
        shown = ",".join(visible) or "no card"
        raise UserError(
            f"{field}: {wanted}: {', '.join(wrong) or 'an entry twice'}; allowed are positions among the cards that "
            f"this process sees ({shown}): {allowed}"
        )
    return tuple(cards)


def cards_of_launch(wanted: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the CUDA_VISIBLE_DEVICES of this machine's training processes, of which ``wanted`` names the cards.

    None: as it is. ``wanted`` is ``gpu_ids`` of the accelerate config.

    Raises:
        UserError: see ``chosen_cards``.
    """
    seen = this_machine(environment).cards
    if wanted == "all" or not seen:
        return None
    return ",".join(chosen_cards(wanted, seen, "accelerate: gpu_ids"))


def _one(entry: str, visible: Sequence[str]) -> str | None:
    if entry.isascii() and entry.isdecimal():
        return visible[int(entry)] if int(entry) < len(visible) else None
    matching = [card for card in visible if card.startswith(entry) and entry.startswith(_NAMED)]
    return matching[0] if len(matching) == 1 else None
