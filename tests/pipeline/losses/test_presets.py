"""Preset files and overrides."""

import re

import pytest

from pipeline.config.loss.terms import FocalLink
from pipeline.errors import UserError
from pipeline.losses import load_preset, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_file_loads_and_cites_its_source(name: str) -> None:
    loss = load_preset(name)
    assert loss.name == name
    assert re.search(r"arXiv:\d{4}\.\d{5}|Mitchell 2023", loss.composition.citation)


def test_dpo_and_sft_are_there() -> None:
    assert {"dpo", "sft"} <= set(preset_names())


def test_needs_follow_from_the_components() -> None:
    assert load_preset("dpo").needs.fields == {"rejected", "reference"}
    assert load_preset("dpo", prior="none").needs.fields == {"rejected"}
    assert load_preset("dpo", reference_free=True).needs.fields == {"rejected"}
    assert load_preset("dpo", link="none", nll=1.0).needs.fields == frozenset()


def test_overrides_replace_fields() -> None:
    composition = load_preset("dpo", beta=0.5, nll=0.1, link="savage").composition
    assert (composition.beta, composition.nll, composition.link.kind) == (0.5, 0.1, "savage")


def test_a_setting_of_a_component_that_replaces_another() -> None:
    assert load_preset("dpo", link="focal", gamma=0.2).composition.link == FocalLink(gamma=0.2)
    with pytest.raises(UserError, match=r"loss\.gamma: is not a setting of dpo"):
        load_preset("dpo", link="logistic", gamma=0.2)


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UserError, match=r"loss\.preset: '\.\./dpo' is not a loss; did you mean 'dpo'\?"):
        load_preset("../dpo")


@pytest.mark.parametrize(("field", "value"), [("beta", -1), ("beta", float("inf")), ("gamma", 1.0), ("link", "cubic")])
def test_an_override_that_the_schema_refuses_names_the_field(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"loss\.{field}: "):
        load_preset("dpo", **{field: value})


def test_a_loss_without_any_term_is_refused() -> None:
    with pytest.raises(UserError, match="neither"):
        load_preset("sft", nll=0)
