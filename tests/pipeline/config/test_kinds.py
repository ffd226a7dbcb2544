"""Sections that have kinds: what a message says if the kind is unknown, missing, or no section at all."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.config import Closed, RunConfig
from pipeline.config.base import kinds_of, sections_in, settings_in
from pipeline.config.files import load_config, load_settings
from pipeline.config.files.yaml_text import Tree
from pipeline.errors import UserError


def kinded_fields() -> Iterator[tuple[type[Closed], str]]:
    """Every field of the config, and of its sections, that holds one of several kinds of section."""
    for place, section in settings_in(RunConfig):
        kinds = [kind for one in sections_in(section.model_fields[place[-1]].annotation) for kind in kinds_of(one)]
        if len(kinds) > 1:
            yield section, place[-1]


FIELDS = sorted(set(kinded_fields()), key=lambda one: (one[0].__name__, one[1]))


def said_of(schema: type[Closed], tree: Tree) -> list[str]:
    with pytest.raises(UserError) as error:
        load_settings(schema, [("typed", tree)])
    return str(error.value).splitlines()


def wrapped(schema: type[Closed], name: str, given: Any) -> tuple[str, Tree]:
    """The setting's path in messages and a tree that holds it, in a list where it is a list's item."""
    if str(schema.model_fields[name].annotation).startswith("tuple["):
        return f"{name}.0", {name: [given]}
    return name, {name: given}


@pytest.mark.parametrize(("schema", "name"), FIELDS, ids=lambda one: getattr(one, "__name__", one))
def test_an_unknown_kind_is_answered_with_all_that_are_allowed(schema: type[Closed], name: str) -> None:
    path, tree = wrapped(schema, name, {"kind": "nope"})
    kinds = dict.fromkeys(kind for one in sections_in(schema.model_fields[name].annotation) for kind in kinds_of(one))
    (line,) = (line for line in said_of(schema, tree) if f" {path}.kind: " in line)
    assert line.startswith(f"  typed: {path}.kind: 'nope' is not one of its kinds")
    assert line.endswith(f"; allowed: {', '.join(kinds)}")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("evaluation.suites=[{file: x}]", "evaluation.suites.0.kind: must be given; allowed: ifeval, lm_eval, "),
        ("evaluation.suites=[{kind:ifeval}]", "0.kind: must be given; a space must follow the colon in 'kind:ifeval';"),
        ("evaluation.suites=[ifeval]", "0: must be a section, such as {kind: ifeval, ...} (got 'ifeval'); allowed"),
        ("evaluation.suites=ifeval", "evaluation.suites: must be a list, such as [...] (got 'ifeval')"),
        ("gate.second={path: x}", "gate.second.kind: must be given; allowed: slots, match"),
        ("scorer=length", "scorer: must be a section, such as {kind: slots, ...} (got 'length'); allowed kinds: "),
        ("scorer.kind=lenght", "scorer.kind: 'lenght' is not one of its kinds; did you mean 'length'?; allowed: "),
        ("pairs={kind:file, path: x}", "pairs.kind:file: no such setting; a space must follow the colon: kind: file"),
    ],
)
def test_a_section_without_its_kind_is_answered_with_what_it_may_be(setting: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([], [setting])
    assert expected in str(error.value) and "discriminator '" not in str(error.value)
