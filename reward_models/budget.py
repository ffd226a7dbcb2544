"""What a paid labeller may still use up: calls and money. Torch-free."""

import threading

from pipeline.config import Endpoint
from reward_models.accounts import Accounts, Call


class Budget:
    """Calls are let through while the run's ledger and the calls under way stay within the section ``budget``.

    A call is let through only if the most that it can cost still fits, so the cap is never passed; where calls under
    way may turn out cheaper, it waits for them.
    """

    def __init__(self, settings: Endpoint, labeller: str, accounts: Accounts) -> None:
        """Count what earlier calls of this labeller in the same run used up."""
        self._settings = settings
        self._labeller = labeller
        self._accounts = accounts
        earlier = accounts.ledger.spent(lambda call: call.labeller == labeller)
        self._calls, self._cost = earlier.calls, earlier.cost
        self._reserved: list[float] = []
        self._moved = threading.Condition()

    def highest_cost(self, text: str, max_tokens: int) -> float:
        """The most that a question of ``text`` can cost: no token is shorter than a byte."""
        # What a chat template adds is some tokens a message.
        return self._price(len(text.encode()) + 64, max_tokens)

    def reserve(self, highest: float) -> bool:
        """Whether a call that costs at most ``highest`` may be made; it then counts until ``settle``."""
        budget = self._settings.budget
        with self._moved:
            while True:
                under_way = len(self._reserved)
                calls_left = budget.calls is None or self._calls + under_way < budget.calls
                reserved = sum(self._reserved)
                money_left = budget.cost is None or self._cost + reserved + highest <= budget.cost
                if calls_left and money_left:
                    self._reserved.append(highest)
                    return True
                hopeless = budget.cost is not None and self._cost + highest > budget.cost
                if not calls_left or hopeless or under_way == 0:
                    return False
                self._moved.wait()

    def settle(self, highest: float, outcome: str, tokens: tuple[int, int] | None, billed: bool) -> None:
        """Write the call down: at ``tokens`` (of question and answer), or at its ``highest`` cost if they are unknown.

        A call that the server turned away is not ``billed``.
        """
        cost = 0.0
        if billed:
            cost = highest if tokens is None else self._price(*tokens)
        given = tokens or (0, 0)
        with self._moved:
            self._reserved.remove(highest)
            self._calls += 1
            self._cost += cost
            self._moved.notify_all()
        self._accounts.ledger.add(
            Call(
                stage=self._accounts.stage,
                labeller=self._labeller,
                outcome=outcome,
                prompt_tokens=given[0],
                completion_tokens=given[1],
                cost=cost,
            )
        )

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float:
        price = self._settings.price
        return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6
