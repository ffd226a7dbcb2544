"""The key of a stage: everything that its content depends on. Torch-free."""

from collections.abc import Mapping

from flows.run_folder.inputs import Place
from flows.run_folder.key_parts import IDS_ONLY, plain_section, scorer_digests, shared_template
from flows.run_folder.stage_table import spec_of
from pipeline.config import RunConfig
from pipeline.storage.manifest import StageKey
from pipeline.storage.run_folder import RunFolder


def stage_key(
    run: RunFolder, config: RunConfig, round_: int, name: str, known: Mapping[str, str] | None = None
) -> StageKey:
    """The key of a stage whose inputs are complete, or in ``known`` by title. Raises ``RunError`` if one is not."""
    known = known or {}
    spec, place = spec_of(name), Place(run, config, round_, known)
    inputs = {stage.title: known.get(stage.title) or stage.require().key for stage in spec.inputs(place)}
    sections = spec.sections_at(place)
    # A key names a section as the config does, also where only a part of it counts.
    plain = {section.removesuffix(IDS_ONLY): plain_section(config, section) for section in sections}
    if "scorer" in sections and config.scorer is not None:
        plain |= {**dict(scorer_digests(config.scorer)), **shared_template(config, config.scorer)}
    return StageKey(config=plain | spec.facts(place), inputs=inputs, seed=config.seed)


def reference_name(number: int) -> str:
    """The folder of the reference stage for the loss's reference ``number``, counted from 0."""
    return f"reference_{number}"
