"""Entry of the child process that runs every stage that needs torch (``python -m flows.trainer_child``)."""

from pathlib import Path
from typing import Any

from flows.child import Progress, serve
from flows.stages import Context
from flows.stages.run import run_stage
from pipeline.config import RunConfig
from pipeline.store import RunFolder


class TrainerService:
    """Runs one stage a call and commits it."""

    def init(self, args: dict[str, Any], progress: Progress) -> None:
        """Take the run folder and the resolved config."""
        self._run = RunFolder(Path(args["run"]))
        self._config = RunConfig.model_validate(args["config"])

    def stage(self, args: dict[str, Any], progress: Progress) -> None:
        """Run stage ``name`` of ``round``."""

        def report(done: int, total: int, note: str) -> None:
            progress({"done": done, "total": total, "note": note})

        run_stage(Context(self._run, self._config, report), args["round"], args["name"])


def main() -> None:
    """Serve until the parent closes the connection."""
    service = TrainerService()
    serve({"init": service.init, "stage": service.stage})


if __name__ == "__main__":
    main()
