"""Settings that came after 0.1.0 leave the keys of its run folders and label caches as they are."""

import importlib
import json
import pkgutil
from collections.abc import Iterator

import pytest
from pydantic import Field, create_model

import pipeline.config
from pipeline.config.base import LATER, OPERATIONAL, Closed
from pipeline.config.files import load_config
from tests.support.places import ROOT

# Of 0.1.0: the settings of each section that are in keys.
FIRST: dict[str, list[str]] = json.loads((ROOT / "tests" / "fixtures" / "settings_0_1_0.json").read_text())
EARLIER = ROOT / "tests" / "fixtures" / "earlier_version" / "run_folders"

for _module in pkgutil.walk_packages(pipeline.config.__path__, "pipeline.config."):
    importlib.import_module(_module.name)


def sections(base: type[Closed] = Closed) -> Iterator[type[Closed]]:
    for section in base.__subclasses__():
        if section.__module__.startswith("pipeline."):
            yield section
            yield from sections(section)


SECTIONS = sorted({section.__name__: section for section in sections()}.items())


def test_all_sections_are_looked_at() -> None:
    assert {name for name, _ in SECTIONS} >= set(FIRST) and len(FIRST) == 93


@pytest.mark.parametrize(("name", "section"), SECTIONS)
def test_a_new_setting_of_a_section_that_was_there_is_marked_as_later(name: str, section: type[Closed]) -> None:
    """If this fails: give the setting json_schema_extra=LATER, or OPERATIONAL if it decides no result."""
    if name not in FIRST:
        return
    found = {field: section.model_fields[field] for field in section.model_fields}
    keyed = {field for field, info in found.items() if info.json_schema_extra not in (OPERATIONAL, LATER)}
    assert keyed == set(FIRST[name]), "a setting of 0.1.0 stays in keys, and no other comes in"
    later = [info for info in found.values() if info.json_schema_extra == LATER]
    assert not any(info.is_required() for info in later), "runs of 0.1.0 do not set it"


@pytest.mark.parametrize("mode", ["offline", "iterative"])
def test_a_later_setting_in_any_section_of_a_run_changes_no_identity_by_its_default(mode: str) -> None:
    config = load_config([EARLIER / mode / "config.yaml"])
    tried = 0
    for section in _parts(config):
        grown = create_model(
            type(section).__name__,
            __base__=type(section),
            added=(tuple[int, ...] | None, Field((1, 2), json_schema_extra=LATER)),
        )
        values = {name: section.__dict__[name] for name in type(section).model_fields}
        assert grown.model_construct(**values).identity() == section.identity()
        other = grown.model_construct(**values, added=None).identity()
        assert other == {**section.identity(), "added": None}
        tried += 1
    assert tried > 20


def _parts(value: object) -> Iterator[Closed]:
    if isinstance(value, Closed):
        yield value
        for inner in value.__dict__.values():
            yield from _parts(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _parts(inner)
