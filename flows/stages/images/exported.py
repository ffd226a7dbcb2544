"""Pairs of images as a data set: a table of paths, and the images in a folder beside it."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import JsonValue

from flows.stages.replay import OWN
from pipeline.config import RunConfig
from pipeline.data.pictures.image_rows import IMAGES, StoredPictures
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import json_line, write_text
from pipeline.storage.rows import read_preference_file
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Group, Pair, Preference, Response
from pipeline.types.counts import number_of


def export_image_pairs(run: RunFolder, config: RunConfig, out: Path, rounds: Sequence[int]) -> str:
    """Write the pairs of ``rounds`` to the JSONL file ``out``, in a layout of ``pairs.kind: images``; say how many.

    Raises:
        UserError: the folder for the images exists.
        RunError: a pair names an image that the run does not hold.
    """
    folder = out.with_name(f"{out.stem}_images")
    if folder.exists():
        raise UserError(f"{folder}: exists; --export writes images to a new folder beside {out.name}")
    folder.mkdir(parents=True)
    lines: list[str] = []
    for number in rounds:
        source = run.stage(0, "data") if config.mode == "offline" else run.stage(number, "samples")
        stored = StoredPictures([source.folder / IMAGES])

        def path(response: Response, stored: StoredPictures = stored) -> str:
            # Names come from files of the run folder, and become paths.
            if not re.fullmatch(r"[0-9a-f]{1,64}", response.text) or response.text not in stored:
                raise RunError(f"a pair names the image {response.text!r}, which the run does not hold")
            (folder / f"{response.text}.png").write_bytes(stored[response.text])
            return f"{folder.name}/{response.text}.png"

        rows = read_preference_file(run.stage(number, "pairs").folder / OWN)
        lines += [json_line(_row_of(row, path)) for row in rows]
    write_text(out, "".join(lines))
    return f"{number_of(len(lines), 'row')} of round {', '.join(map(str, rounds))}: {out}, images in {folder}"


def _row_of(row: Preference, path: Callable[[Response], str]) -> dict[str, JsonValue]:
    told: dict[str, JsonValue] = {"prompt": row.prompt.messages[-1].content}
    if row.prompt.answer is not None:
        told["answer"] = row.prompt.answer
    match row:
        case Pair():
            return {**told, "chosen": path(row.chosen), "rejected": path(row.rejected), "soft_label": row.soft_label}
        case Group():
            # The best has the lowest rank; these give the scores back.
            known = [(path(r), score) for r, score in zip(row.responses, row.scores, strict=True) if score is not None]
            return {**told, "image_path": [one for one, _ in known], "rank": [-score for _, score in known]}
        case _:
            return {**told, "image": path(row.response), "label": row.desirable}
