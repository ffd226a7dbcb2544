"""A run folder from Python: typed rounds, tables of metrics, samples and pairs, and the policies. Torch-free."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import UserError
from pipeline.storage.run_folder import RunFolder, Stage

if TYPE_CHECKING:
    import pyarrow as pa

    from flows.report.facts import RoundFacts
    from pipeline.config import RunConfig

HeldOutSamples = Literal["sampled", "greedy"]


@dataclass(frozen=True)
class Run:
    """A run, complete or not. Everything is read from its folder when it is asked for.

    Methods raise ``UserError`` if the round does not have what is asked for, and ``RunError`` for a damaged file.
    """

    folder: Path

    @property
    def config(self) -> "RunConfig":
        """The resolved config."""
        return self._run.config()

    @property
    def rounds(self) -> tuple["RoundFacts", ...]:
        """The evaluated rounds, from round 0, the policy before preference training."""
        from flows.report.gather import evaluated_rounds, round_facts

        run, config = self._run, self.config
        return tuple(round_facts(run, config, number) for number in evaluated_rounds(run))

    @property
    def metrics(self) -> "pa.Table":
        """A row per evaluated round, with all its metrics and its gate's measures (``gate.``)."""
        from flows.report.terminal import read_rounds
        from prefloop.tables import metric_table

        return metric_table(read_rounds(self.folder))

    def pairs(self, round: int) -> "pa.Table":
        """What ``round`` trained on, replayed rows too: pairs, groups or marked responses, whichever its loss reads."""
        from pipeline.storage.rows import read_preference_rows
        from prefloop.tables import preference_table

        return preference_table(read_preference_rows(self._made(round, "pairs").folder))

    def samples(self, round: int, held_out: HeldOutSamples | None = None) -> "pa.Table":
        """A row per response of ``round``, with its score.

        Args:
            round: 1 or more for training samples; round 0 has only held-out ones.
            held_out: instead the responses to held-out prompts, ``sampled`` at temperature 1 or ``greedy``.
        """
        from pipeline.storage.rows import read_groups
        from prefloop.tables import sample_table

        if held_out is not None:
            folder = self._made(round, "evaluation").folder / held_out
            if not folder.is_dir():
                raise UserError(f"{self.folder}: round {round} has no {held_out} samples of held-out prompts")
            return sample_table(read_groups(folder))
        labelled = self._run.stage(round, "labels").manifest() is not None
        return sample_table(read_groups(self._made(round, "labels" if labelled else "samples").folder))

    def policy_folder(self, round: int | None = None) -> Path:
        """The folder of a round's policy, for transformers or (if it is an adapter) peft; ``prefloop export`` merges.

        Without ``round``: the gate's best round, else the newest.
        """
        from flows.commands.export import exported_round
        from flows.stages.context import Context

        run, config = self._run, self.config
        number = exported_round(run, config) if round is None else round
        self._made(number, "policy")
        return Context(run, config).policy_path(number)

    @property
    def report(self) -> Path:
        """The HTML report."""
        file = self.folder / "report.html"
        if not file.is_file():
            raise UserError(f"{self.folder}: no round is complete, so there is no report yet")
        return file

    @property
    def _run(self) -> RunFolder:
        return RunFolder.existing(self.folder)

    def _made(self, round_: int, stage: str) -> Stage:
        run = self._run
        made = [number for number in run.rounds() if run.stage(number, stage).manifest() is not None]
        if round_ not in made:
            has = f"rounds that have them: {', '.join(map(str, made))}" if made else "no round has them yet"
            raise UserError(f"{self.folder}: round {round_} has no {stage}; {has}")
        return run.stage(round_, stage)


def load_run(folder: "str | os.PathLike[str]") -> Run:
    """Return the run in ``folder``, or at its URL.

    Raises ``UserError`` if there is none, or one of a later version.
    """
    from flows.loop.object_store.places import fetched_run

    return Run(RunFolder.existing(fetched_run(os.fspath(folder))).root)
