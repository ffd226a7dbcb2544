"""mixed_model, second_policy: models that are sampled from besides the policy, and the values to check engines by."""

from pathlib import Path

from pydantic import JsonValue

from flows.stages.context import Context, Outcome
from pipeline.config import ChatSettings
from pipeline.models.chat import load_chat
from pipeline.models.policy import load_policy, local_folder, save_probe
from pipeline.models.weights.weight_format import WeightFormat, frozen_format, stored_dtype
from pipeline.storage.integrity import POINTED_FILES, POINTER, model_files


def mixed_model(context: Context, folder: Path) -> Outcome:
    """Refer to the other model of a sampling mixture, and write its probe."""
    mixture = context.config.sampling.mixture
    assert mixture is not None and mixture.path is not None, "made only for a model that is none of the run's own"
    origin = local_folder(mixture.path)
    return _referred(origin, frozen_format(context.config, origin), context.config.chat, folder)


def second_policy(context: Context, folder: Path) -> Outcome:
    """Refer to the model whose responses are paired with the policy's, and write its probe."""
    second = context.config.pairing.second
    assert second is not None, "made only for a second policy"
    origin = local_folder(second.path)
    return _referred(origin, WeightFormat(stored_dtype(str(origin))), second_chat(context.config.chat), folder)


def second_chat(chat: ChatSettings) -> ChatSettings:
    """The chat settings of a second policy: its own template, given nothing that is meant for the policy's."""
    return chat.model_copy(update={"template_file": None, "template_kwargs": {}})


def _referred(origin: Path, held: WeightFormat, chat: ChatSettings, folder: Path) -> Outcome:
    model = load_policy(str(origin), trust_remote_code=False, held=held)
    save_probe(model, load_chat(str(origin), chat), folder)
    files: dict[str, JsonValue] = model_files(origin)
    facts: dict[str, JsonValue] = {POINTER: str(origin), POINTED_FILES: files, "held_as": held.title}
    return Outcome(0, {**facts, "parameters": model.num_parameters()})
