"""A plan for cards as tables for people."""

from collections.abc import Sequence

from rich.console import Console

from flows.planning.cards.fitting import GB, Card, whole_of
from flows.planning.cards.survey import CardPlan, OnCards
from flows.planning.table import print_columns


def print_cards(plan: CardPlan, disk: float) -> None:
    """Parts of each training, whether it fits on each card, and a round's files at ``disk`` GB a second."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=150)
    shape = plan.pass_
    console.print(
        f"{plan.path}: {plan.rows[0].counts.base:,} parameters; passes of {shape.tokens:,} tokens "
        f"({shape.trees} x {shape.prompt:,} + {shape.responses} x {shape.response:,})\n",
        soft_wrap=True,
    )
    print_columns(
        console,
        ["training", "checkpointing", *SHOWN_PARTS, *map(str, plan.cards)],
        training_rows(plan.rows, plan.cards),
    )
    print_columns(
        console,
        [f"files of a round at {disk:g} GB/s", "written GB", "s", "read GB", "s"],
        traffic_rows(plan.rows, disk * GB),
    )
    for name, parts in plan.others.items():
        said = ", ".join(f"{part} {gb(size)}" for part, size in parts.items())
        console.print(f"{name}: {gb(whole_of(parts))} GB ({said})", soft_wrap=True)
    for line in verdicts(plan):
        console.print(line, soft_wrap=True)


def verdicts(plan: CardPlan) -> list[str]:
    """One line for each card: whether the config fits on it, and what to change if not."""
    lines = []
    for index, card in enumerate(plan.cards):
        others = plan.too_large(index)
        reasons = [] if plan.training_fits(index) else [plan.advice]
        reasons += [f"{' and '.join(others)} needs more than there is"] if others else []
        said = f"does not fit: {'; '.join(reasons)}" if reasons else "fits"
        lines.append(f"{plan.rows[0].recipe.name} on {card}: {said}")
    return lines


SHOWN_PARTS = ("weights", "gradients", "optimiser", "16-bit copies", "activations", "context")


def training_rows(rows: Sequence[OnCards], cards: Sequence[Card]) -> list[list[str]]:
    """One line for each training with and without checkpointing: parts on the first card, and the sum on each."""
    found = []
    for row in rows:
        for said, parts in (("yes", row.recomputed), ("no", row.kept)):
            sums = [
                f"{gb(whole_of(one))} {'fits' if whole_of(one) <= card.size else 'no'}"
                for one, card in zip(parts, cards, strict=True)
            ]
            found.append([row.recipe.name, said, *(gb(parts[0].get(name, 0)) for name in SHOWN_PARTS), *sums])
    return found


def traffic_rows(rows: Sequence[OnCards], rate: float) -> list[list[str]]:
    """One line for each training: what a round writes and reads, and the seconds at ``rate`` bytes a second."""
    found = []
    for row in rows:
        took = row.traffic.seconds(rate)
        written, read = sum(row.traffic.written.values()), sum(row.traffic.read.values())
        found.append([row.recipe.name, gb(written), f"{took['written']:,.0f}", gb(read), f"{took['read']:,.0f}"])
    return found


def gb(size: float) -> str:
    """Bytes in GB of 10⁹."""
    value = size / GB
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}"
