"""Parameters of the flows, with titles, descriptions and ranges for the form in Prefect's UI."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from flows.run_folder.stage_table import STAGES, made_in, names_in
from pipeline.config import RunConfig

MAX_ROUNDS = 1000
# Rounds whose stages a form offers to choose from, at most.
OFFERED_ROUNDS = 20
_STAGES = "|".join(name for name, spec in STAGES.items() if spec.parts)
STAGE_OF_ROUND = rf"^[0-9]{{1,4}}:({_STAGES})$"
SETTING = r"^[A-Za-z_][A-Za-z0-9_.]*="


def _shown(title: str, description: str) -> dict[str, str]:
    # Not pydantic's own title and description: Prefect overwrites those with the parameter's name and the docstring.
    return {"title": title, "description": description}


RunDir = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1000,
        json_schema_extra=_shown(
            "Run folder",
            "Created by the first run; later runs continue in it. %Y-%m-%d and the like are filled in from the "
            "time of the firing, so that each firing gets its own folder.",
        ),
    ),
]
ConfigFiles = Annotated[
    tuple[str, ...],
    Field(
        max_length=20,
        json_schema_extra=_shown(
            "Config files",
            "YAML, each laid over the ones before. None: the run folder's own config.",
        ),
    ),
]
Settings = Annotated[
    tuple[Annotated[str, Field(pattern=SETTING, max_length=2000)], ...],
    Field(
        max_length=200,
        json_schema_extra=_shown(
            "Settings",
            "KEY=VALUE over the config files, such as training.learning_rate=1e-5. Settings that change results need a "
            "run folder of their own.",
        ),
    ),
]
RoundsMore = Annotated[
    int,
    Field(
        ge=0,
        le=MAX_ROUNDS,
        json_schema_extra=_shown(
            "Rounds to add",
            "How many rounds this run adds to those that are complete. 0: up to the config's rounds.",
        ),
    ),
]
Until = Annotated[
    Annotated[str, Field(pattern=STAGE_OF_ROUND)] | None,
    Field(
        json_schema_extra=_shown("Stop after", "ROUND:STAGE, such as 1:pairs; the next run continues from there."),
    ),
]
RedoFrom = Annotated[
    Annotated[str, Field(pattern=STAGE_OF_ROUND)] | None,
    Field(
        json_schema_extra=_shown(
            "Redo from",
            "ROUND:STAGE, such as 2:labels: set aside and redo this stage and everything that depends on it.",
        ),
    ),
]


def offer_stages(schema: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """``schema`` with the stages of the config's rounds as choices; a run that grows may still be given any other."""
    rounds = range(min(config.rounds, OFFERED_ROUNDS) + 1)
    known = [f"{n}:{name}" for n in rounds for name in names_in(config, n) if made_in(config, n, name)]
    for name in ("until", "redo_from"):
        typed, none = schema["properties"][name]["anyOf"]
        choices = {"title": "A stage of the config's rounds", "type": "string", "enum": known}
        any_ = [choices, {**typed, "title": "Any round and stage"}, none]
        schema = {**schema, "properties": {**schema["properties"], name: {**schema["properties"][name], "anyOf": any_}}}
    return schema


def dated(run_dir: str, due: datetime) -> str:
    """Fill the local date and time ``due`` into the %-fields of ``run_dir`` (%Y-%m-%d)."""
    return due.astimezone().strftime(run_dir) if "%" in run_dir else run_dir
