"""What keys of stages hold of how images are scored; nothing for text. Torch-free."""

import math

from pydantic import JsonValue

from flows.run_folder.inputs import Place
from flows.run_folder.key_parts import held_facts, reference_facts
from pipeline.config.images.scoring import ImageScore


def scored_reference_facts(place: Place) -> dict[str, JsonValue]:
    """Models and formats, and of images the draws that the reference's errors are stored for."""
    config = place.config
    if config.modality != "image":
        return reference_facts(place)
    training = config.training
    drawn: dict[str, JsonValue] = {"score": training.score.drawn().identity(), "epochs": math.ceil(training.epochs)}
    return {**reference_facts(place), **drawn}


def evaluation_facts(place: Place) -> dict[str, JsonValue]:
    """Formats, and of images how held-out pairs are scored, where that is not the default."""
    score = place.config.training.score.for_held_out(1)
    changed = place.config.modality == "image" and score != ImageScore()
    return {**held_facts(place), **({"score": score.identity()} if changed else {})}
