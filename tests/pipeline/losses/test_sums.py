"""Weighted sums of losses: the sum of their values and gradients, with what all parts read."""

import pytest
import torch
import yaml
from pydantic import ValidationError

from pipeline.config import NamedComposition
from pipeline.config.files import dump_config
from pipeline.errors import UserError
from pipeline.losses import Loss, load_preset
from tests.support.loss_batches import assert_same, random_groups, random_pairs, random_unpaired


def summed(*parts: dict[str, object]) -> Loss:
    return Loss("custom", NamedComposition.model_validate({"sum": [*parts]}))


@pytest.mark.parametrize(
    "parts",
    [
        [("dpo", 0.8, {}), ("kto", 0.2, {"beta": 0.3}), ("sft", 1.0, {})],
        [("tdpo2", 0.5, {}), ("beta_dpo", 2.0, {}), ("simpo", 1.0, {"gamma": 0.2})],
        [("apo_accelerated", 0.5, {}), ("hpo", 2.0, {}), ("mallows_theta", 0.1, {"beta": 0.4})],
        [("orpo", 0.5, {"nll": 0.3}), ("ganpo", 1.5, {}), ("vpo_online", 0.3, {"alpha": 0.5})],
    ],
    ids=lambda parts: " + ".join(name for name, _, _ in parts),
)
def test_value_and_gradient_are_the_weighted_sum(parts: list[tuple[str, float, dict[str, object]]]) -> None:
    batch = random_pairs(1, references=2)
    whole = summed(*({"preset": name, "weight": weight, **given} for name, weight, given in parts))
    expected = sum(weight * load_preset(name, **given)(batch).per_pair for name, weight, given in parts)
    assert isinstance(expected, torch.Tensor)
    output = whole(batch)
    assert_same(output.per_pair, expected, batch)
    needs = [load_preset(name, **given).needs for name, _, given in parts]
    assert whole.needs.fields == frozenset().union(*(one.fields for one in needs))
    assert whole.needs.references == max(one.references for one in needs)
    assert whole.needs.token_facts == frozenset().union(*(one.token_facts for one in needs))
    for (name, _, given), mean in zip(parts, output.parts.values(), strict=True):
        torch.testing.assert_close(mean, load_preset(name, **given)(batch).per_pair.mean().detach())
    assert output.metrics["margin"] == load_preset(parts[0][0], **parts[0][2])(batch).metrics["margin"]


def test_groups_and_single_responses_are_summed_too() -> None:
    groups = random_groups(2, gaps=True)
    whole = summed({"preset": "rpo_sqloo", "weight": 0.5}, {"preset": "infonca", "weight": 2})
    expected = 0.5 * load_preset("rpo_sqloo")(groups).per_pair + 2 * load_preset("infonca")(groups).per_pair
    assert_same(whole(groups).per_pair, expected, groups)
    marked = random_unpaired(2)
    whole = summed({"preset": "kto"}, {"preset": "bco", "weight": 0.5})
    expected = load_preset("kto")(marked).per_pair + 0.5 * load_preset("bco")(marked).per_pair
    assert_same(whole(marked).per_pair, expected, marked)
    assert whole.needs.accepts_unpaired and not summed({"preset": "kto"}, {"preset": "dpo"}).needs.accepts_unpaired
    with pytest.raises(ValueError, match="dpo: this loss compares two responses"):
        summed({"preset": "kto"}, {"preset": "dpo"})(marked)


def test_each_part_has_running_statistics_of_its_own() -> None:
    batch = random_pairs(1)
    whole = summed({"preset": "bco", "beta": 0.2}, {"preset": "bco", "beta": 0.7})
    observed = whole.observe(batch)
    statistics, after = whole.summarise(observed, {"bco.reward_sum": 3.0, "bco.reward_count": 2.0})
    for name, beta, before in (("bco", 0.2, (3.0, 2.0)), ("bco_2", 0.7, (0.0, 0.0))):
        one = load_preset("bco", beta=beta)
        seen = one.observe(batch)
        known, state = one.summarise(seen, {"reward_sum": before[0], "reward_count": before[1]})
        assert {key: statistics[f"{name}.{key}"] for key in known} == known
        assert {key: after[f"{name}.{key}"] for key in state} == state


def test_it_is_read_back_as_it_is_written() -> None:
    for given in (
        {"preset": "mpo", "sum.1.beta": 0.4},
        {"preset": "mpo", "sum": {"0": {"weight": 0.5}}},
        {
            "sum": [
                {"preset": "orpo", "weight": 2, "settings": {"weight": 0.4}},
                {"link": "hinge", "prior": "reference"},
            ]
        },
    ):
        read = NamedComposition.model_validate(given)
        again = NamedComposition.model_validate(yaml.safe_load(dump_config(read)))
        assert again == read and again.identity() == read.identity()
    assert (read.sum[0].weight, read.sum[0].settings.weight, read.sum[0].settings.nll) == (2.0, 0.4, 1.0)
    assert (read.sum[1].preset, read.sum[1].settings.link.kind, read.preset) == ("custom", "hinge", "custom")
    assert "sum" not in NamedComposition.model_validate({"preset": "dpo"}).identity()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sum": [{"preset": "dpo"}, {"preset": "infonca"}]},
            r"dpo and infonca read different data\. Losses that may be summed:\n"
            r" +over K responses: apa, apa_token, infonca, nca_list,.*\n +over pairs: alpha_dpo, .*, xpo",
        ),
        ({"sum": [{"preset": "dpo"}, {"preset": "mpo"}]}, r"sum\.1\.preset: mpo is itself a weighted sum"),
        ({"sum": [{"preset": "apo"}]}, r"sum\.0\.preset: 'apo' is ambiguous"),
        ({"sum": [{"preset": "dpo", "gamma": 1}]}, r"sum\.0\.gamma: is not a setting of dpo"),
        ({"sum": [{"preset": 3}]}, r"sum\.0\.preset: 3: the name of a loss"),
        ({"preset": "mpo", "beta": 0.2}, r"beta: not read by a weighted sum; give it to a part, as in sum\.0\.beta"),
        ({"preset": "mpo", "sum.3.beta": 0.2}, r"sum\.3: mpo is a sum of 3 parts"),
        ({"sum": [{"preset": "tis_dpo"}, {"preset": "mapo"}]}, r"two parts have weights .*\(given and activation\)"),
        ({"sum": [{"preset": "mrpo"}, {"preset": "apo_accelerated"}]}, r"two parts have prior .*harmonic and extrapo"),
        (
            {"sum": [{"preset": "sppo"}, {"preset": "dpo", "label": "wins"}]},
            r"one part reads the probability to beat the other",
        ),
        ({"sum": [{"preset": "dpo", "weight": 0}]}, r"greater than 0"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_cannot_be_summed_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NamedComposition.model_validate(given)


def test_a_setting_of_a_part_is_named_by_its_path() -> None:
    assert load_preset("mpo", **{"sum.1.beta": 0.4}).members[1][1].composition.beta == 0.4
    assert load_preset("mpo", **{"sum.1.settings.beta": 0.4}).members[1][1].composition.beta == 0.4
    assert load_preset("mpo", **{"sum.0.prior.weight": 0.5}).members[0][1].composition.prior.weight == 0.5
    assert load_preset("mpo", **{"sum.1.terms.0.coefficient": 2.0}).members[1][1].composition.terms[0].coefficient == 2
    with pytest.raises(UserError, match=r"loss\.epsilon: is not a setting of mpo"):
        load_preset("mpo", epsilon=0.1)
