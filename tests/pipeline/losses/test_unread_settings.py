"""A setting that a loss would pass over in silence is refused; so are single responses where it reads pairs."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.losses import load_preset, preset_names
from tests.support.loss_batches import random_pairs, random_unpaired

OF_PAIRS: tuple[dict[str, Any], ...] = (
    {"shape": {"kind": "alpha"}},
    {"dispersion": {"kind": "entropy"}},
    {"scale": {"kind": "batch"}},
    {"weights": "tail"},
    {"weights": "learned"},
    {"pair_weight": "policy"},
    {"calibration": {"sign": 1}},
    {"advantage": {}},
    {"adversary": {}},
)


@pytest.mark.parametrize(
    "given",
    [
        *OF_PAIRS,
        {"margin": {"kind": "constant", "gamma": 1.0}},
        {"label": {"kind": "smoothed"}},
        {"unscale": 2},
        {"prior": "harmonic"},
        {"prior": "learned"},
    ],
    ids=str,
)
def test_list_heads_refuse_what_they_do_not_read(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(UserError, match=rf"{name}: not read by a loss over K responses \(head: cross_entropy\)"):
        load_preset("infonca", **given)


@pytest.mark.parametrize("name", ["kto", "sft", "apo_zero"])
def test_a_margin_needs_a_link(name: str) -> None:
    with pytest.raises(UserError, match="margin: read by link alone, and this loss has no link"):
        load_preset(name, margin={"kind": "constant", "gamma": 1.0})


def test_which_presets_take_single_responses() -> None:
    assert [name for name in preset_names() if load_preset(name).composition.unpaired] == [
        "aot_unpaired",
        "apo_zero",
        "bco",
        "diffusion_kto",
        "kto",
        "nca",
    ]


@pytest.mark.parametrize("given", [*OF_PAIRS, {"nll": 1.0}], ids=str)
def test_single_responses_are_refused_where_a_part_of_the_loss_reads_pairs(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="kto: this loss compares two responses; it cannot use single ones"):
        load_preset("kto", **given)(random_unpaired())


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sft", {"adversary": {}}, "adversary: not read by a loss without link, terms or head"),
        ("sft", {"kl": 1.0, "prior": "reference"}, "kl: not read by a loss without"),
        ("sft", {"weights": "decay"}, "weights: not read by a loss without"),
        ("beta_dpo", {"pair_weight": "policy"}, "scale: batch needs the statistics"),
        ("beta_dpo", {"margin": "gap"}, "scale: batch needs the statistics"),
        ("dpo", {"terms": [{"chosen": 1.0, "link": "mallows_phi"}]}, "terms: the links mallows_phi, reverse_kl and"),
        ("dpo", {"pair_weight_cap": 2.0}, "pair_weight_cap: only read with pair_weight: policy"),
        ("orpo", {"prior": "reference"}, "shape: log_odds needs a likelihood a token"),
        ("kto", {"prior": {"kind": "reference", "weight": 0.5}}, "is not normalised"),
        ("alpha_dpo", {"reference_free": True}, r"reference_free: alpha_dpo needs a reference \(margin\)"),
        ("mrpo", {"prior": {"kind": "harmonic", "weights": []}}, "adaptive, or numbers above 0"),
        ("mrpo", {"clip": 3.0}, "less than 1"),
        ("tis_dpo", {"low": 2.0}, "low: 2.0 is above high 1.5"),
        ("ganpo", {"heads": 3}, "heads: 3 do not divide hidden_size 512"),
    ],
)
def test_parts_that_do_not_fit_are_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_preset(name, **given)


def test_numbers_of_terms_are_settings() -> None:
    terms = load_preset("kto", **{"terms.1.coefficient": 1.33}).composition.terms
    assert [term.coefficient for term in terms] == [1.0, 1.33]
    with pytest.raises(UserError, match=r"coefficient: could be any of terms\.0\.coefficient, terms\.1\.coefficient"):
        load_preset("kto", coefficient=2.0)


def test_entropies_in_nats_go_with_the_vocabulary_s_size() -> None:
    batch = replace(random_pairs(), dispersion=None)
    with pytest.raises(ValueError, match=r"Side\.ref_entropy: .* need dispersion\.vocab_size"):
        load_preset("mallows_theta")(batch)
    in_nats = load_preset("mallows_theta", vocab_size=40, **{"dispersion.scale": 1.0})(batch).per_pair
    assert (
        batch.chosen.ref_entropy is not None and batch.rejected is not None and batch.rejected.ref_entropy is not None
    )
    means = [
        torch.stack([row[where].mean() for row, where in zip(side.ref_entropy, side.mask, strict=True)])
        for side in (batch.chosen, batch.rejected)
    ]
    d = -((means[0] + means[1]) / 2 / math.log(40)).log()
    torch.testing.assert_close(in_nats, load_preset("mallows_theta")(replace(batch, dispersion=d)).per_pair)
