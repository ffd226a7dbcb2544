"""The words of a stage's progress on Prefect's page."""

from types import SimpleNamespace
from typing import Any

from flows.prefect_api.artefacts import StageArtefact


class Kept:
    """A client that keeps what it is sent."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def create_artifact(self, made: Any) -> SimpleNamespace:
        self.said.append(made.description)
        return SimpleNamespace(id="one")

    def update_artifact(self, which: str, changed: Any) -> None:
        self.said.append(changed.description)


def test_the_whole_run_s_end_is_told_until_the_stage_ends() -> None:
    asked: list[float | None] = []

    def whole(left: float | None) -> str:
        asked.append(left)
        return "whole run: 3:20 left"

    client: Any = Kept()
    shown = StageArtefact("key", "round 2 - samples", "prompts", (None, None), whole)
    shown.report(10, 100, "9 tokens")
    shown.send(client)
    assert client.said == ["round 2 - samples: 10 of 100 prompts · 9 tokens · whole run: 3:20 left"]
    assert asked == [None]
    shown.report(100, 100, "")
    shown.end(complete=True)
    shown.send(client)
    assert client.said[1].endswith(" · complete") and "whole run" not in client.said[1]
