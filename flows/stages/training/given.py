"""mixed_model: a model folder that is sampled from besides the policy, with the values that engines are checked by."""

from pathlib import Path

from flows.stages.context import Context, Outcome
from pipeline.models.chat import load_chat
from pipeline.models.policy import load_policy, local_folder, save_probe
from pipeline.models.weights.weight_format import frozen_format
from pipeline.storage.integrity import POINTED_FILES, POINTER, model_files


def mixed_model(context: Context, folder: Path) -> Outcome:
    """Refer to the other model of a sampling mixture, and write its probe."""
    mixture = context.config.sampling.mixture
    assert mixture is not None and mixture.path is not None, "made only for a model that is none of the run's own"
    origin = local_folder(mixture.path)
    chat = load_chat(str(origin), context.config.chat)
    held = frozen_format(context.config, origin)
    model = load_policy(str(origin), trust_remote_code=False, held=held)
    save_probe(model, chat, folder)
    return Outcome(
        0,
        {
            POINTER: str(origin),
            POINTED_FILES: model_files(origin),
            "parameters": model.num_parameters(),
            "held_as": held.title,
        },
    )
