"""What a stage's manifest says about its labels."""

from pydantic import JsonValue

from reward_models.answers.accounts import Accounts, label_summary
from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Ledger


def test_the_counts_of_an_ensembles_models_add_up() -> None:
    accounts = Accounts(LabelCache(None), Ledger(None))
    facts: list[dict[str, JsonValue]] = [
        {"broken_conversations": 3, "padded_because": None},
        {"broken_conversations": 4, "padded_because": "its attention is its own"},
        {"broken_conversations": 0, "padded_because": None},
    ]
    accounts.facts += [lambda told=told: told for told in facts]
    assert label_summary([], accounts) == {"broken_conversations": 7, "padded_because": "its attention is its own"}
