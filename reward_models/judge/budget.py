"""Budget of a paid labeller: calls and money. Torch-free."""

import threading
from uuid import uuid4

from pipeline.config import Endpoint
from reward_models.answers.accounts import Accounts
from reward_models.answers.spending import UNDER_WAY, Call


class BudgetMeter:
    """Let calls through while the run's ledger and the calls under way stay within the section ``budget``.

    A call goes through only if its highest possible cost still fits, so the cap is never exceeded; it waits for calls
    under way that may turn out cheaper. It is written down before it is made, so a call cut off by a kill counts with
    its highest possible cost.
    """

    def __init__(self, settings: Endpoint, labeller: str, accounts: Accounts) -> None:
        """Count what this labeller's earlier calls in the same run used up."""
        self._settings = settings
        self._labeller = labeller
        self._accounts = accounts
        earlier = accounts.ledger.spent(lambda call: call.labeller == labeller)
        self._calls, self._cost = earlier.calls, earlier.cost
        self._reserved: dict[str, float] = {}
        self._moved = threading.Condition()

    def highest_cost(self, text: str, max_tokens: int, more_tokens: int = 0) -> float:
        """Return the highest possible cost of a question ``text``: no token is shorter than a byte.

        ``more_tokens``: the most that what is no text has.
        """
        # A chat template adds some tokens per message.
        return self._price(len(text.encode()) + 64 + more_tokens, max_tokens)

    def reserve(self, highest: float) -> str | None:
        """Reserve ``highest`` for a call until ``settle``; return the call's id, or None if it may not be made.

        Raises ``OSError`` if it cannot be written down.
        """
        name = self._reserve(highest)
        if name is not None:
            try:
                self._accounts.ledger.add(self._call(name, UNDER_WAY, cost=highest))
            except BaseException:
                # The call is not made; those that wait for it must not wait forever.
                with self._moved:
                    del self._reserved[name]
                    self._moved.notify_all()
                raise
        return name

    def _reserve(self, highest: float) -> str | None:
        budget = self._settings.budget
        with self._moved:
            while True:
                under_way = len(self._reserved)
                calls_left = budget.calls is None or self._calls + under_way < budget.calls
                reserved = sum(self._reserved.values())
                money_left = budget.cost is None or self._cost + reserved + highest <= budget.cost
                if calls_left and money_left:
                    name = uuid4().hex
                    self._reserved[name] = highest
                    return name
                hopeless = budget.cost is not None and self._cost + highest > budget.cost
                if not calls_left or hopeless or under_way == 0:
                    return None
                self._moved.wait()

    def settle(self, name: str, outcome: str, tokens: tuple[int, int] | None, billed: bool) -> None:
        """Write down the outcome of the call. Its cost is that of ``tokens`` (question, answer) if known, else the
        highest possible.

        A call that the server rejected is not ``billed``.
        """
        given = tokens or (0, 0)
        with self._moved:
            # First of all: those that wait must not wait forever, whatever the tokens are.
            highest = self._reserved.pop(name)
            self._moved.notify_all()
            cost = 0.0
            if billed:
                cost = highest if tokens is None else self._price(*tokens)
            self._calls += 1
            self._cost += cost
        self._accounts.ledger.add(self._call(name, outcome, given, cost))

    def _call(self, name: str, outcome: str, tokens: tuple[int, int] = (0, 0), cost: float = 0.0) -> Call:
        return Call(
            id=name,
            stage=self._accounts.stage,
            labeller=self._labeller,
            outcome=outcome,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            cost=cost,
        )

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float:
        price = self._settings.price
        return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6
