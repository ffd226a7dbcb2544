import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Closed, RewardModelConfig, RunConfig, preset_names
from pipeline.config.data.mixture import MixtureData
from pipeline.config.files import changed_fields, dump_config, load_config, load_settings
from pipeline.config.loss.margins import ConstantMargin
from pipeline.errors import UserError
from tests.support.places import CONFIGS, ROOT

BASE = """
name: a
mode: iterative
policy: {kind: pretrained, path: model}
prompts: {kind: file, path: prompts.jsonl}
scorer: {kind: length}
"""


def write(tmp_path: Path, text: str, name: str = "run.yaml") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_config_is_valid_and_survives_being_written_out(file: Path, tmp_path: Path) -> None:
    needed = ["prompts.path=/data.jsonl"] if "e2e" in file.name else []
    needed += ["policy.path=/model", "pairs.path=/pairs.jsonl"] if file.name == "offline.yaml" else []
    own = file.name in ("online.yaml", "judge.yaml")
    needed += ["policy.path=/model", "prompts.path=/prompts.jsonl"] if own else []
    needed += ["model.path=/model", "pairs.path=/pairs.jsonl"] if file.name == "reward_model.yaml" else []
    schema = RewardModelConfig if file.name == "reward_model.yaml" else RunConfig
    config = load_settings(schema, [file], needed)
    assert_means_the_same(config, load_settings(schema, [write(tmp_path, dump_config(config))]))


@pytest.mark.parametrize("preset", preset_names())
def test_every_loss_survives_being_written_out(preset: str, tmp_path: Path) -> None:
    config = load_config([write(tmp_path, BASE)], [f"loss.preset={preset}"])
    assert_means_the_same(config, load_config([write(tmp_path, dump_config(config))]))


def assert_means_the_same(config: Closed, again: Closed) -> None:
    assert again == config and dump_config(again) == dump_config(config) and again.identity() == config.identity()
    assert [part.changed for part in parts(again)] == [part.changed for part in parts(config)]


def parts(value: object) -> Iterator[Closed]:
    if isinstance(value, Closed):
        yield value
        for inner in value.__dict__.values():
            yield from parts(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from parts(inner)


def test_nothing_depends_on_which_settings_were_written() -> None:
    """A run folder's config writes all of them: what is read back would mean something else."""
    sources = (file for room in ("flows", "pipeline", "reward_models") for file in (ROOT / room).rglob("*.py"))
    assert [file.name for file in sources if "model_fields_set" in file.read_text()] == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rounds=yes", "rounds: must be a number, not True"),
        ("training.learning_rate=on", "training.learning_rate: must be a number, not True"),
        ("evaluation.max_gap=true", "evaluation.max_gap: must be a number, not True"),
        ("scorer={kind: classifier, path: m, outputs: {0: true}}", "scorer.outputs: must be a number, not "),
        ("prompts.votes={chosen: yes, rejected: no}", "prompts.votes.chosen: quote the word: YAML reads true, yes"),
        ("prompts.labels.good=[yes]", "prompts.labels.good.0: quote the word"),
        ("prompts.labels={good: ['yes', 'true'], bad: ['no', 0]}", None),
        ("prompts.parse=yes", None),
    ],
)
def test_true_is_no_number_and_no_word(setting: str, said: str | None, tmp_path: Path) -> None:
    if said is None:
        load_config([write(tmp_path, BASE)], [setting])
        return
    with pytest.raises(UserError, match=re.escape(said)):
        load_config([write(tmp_path, BASE)], [setting])


@pytest.mark.parametrize(
    "settings",
    [
        ["loss.preset=kto", "pairing.rule=marked", "pairing.threshold=1"],
        ["pairs={kind: file, path: /p}", "replay.anchor=0.1"],
        ["replay.share=0.5", "replay.max_age=2"],
        ["scorer={kind: ensemble, members: [{scorer: {kind: length}}, {scorer: {kind: length}}]}"],
        ["prompts.votes={chosen: 0, rejected: 1}", "prompts.columns.votes=v"],
    ],
)
def test_a_config_that_leaves_a_setting_out_survives_being_written_out_in_full(
    settings: list[str], tmp_path: Path
) -> None:
    config = load_config([write(tmp_path, BASE)], settings)
    assert load_config([write(tmp_path, dump_config(config))]) == config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["pairing.rule=marked", "pairing.max_margin=1"], "pairing.max_margin: rule marked makes no pairs"),
        (["pairs={kind: file, path: /p}", "replay={anchor: 0.1, decay: 1}"], "replay.decay: share is 0"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused_unless_it_has_its_default(
    settings: list[str], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=expected):
        load_config([write(tmp_path, BASE + "loss: {preset: kto}\n")], settings)


def test_files_overlay_left_to_right_then_the_command_line(tmp_path: Path) -> None:
    first = write(tmp_path, BASE + "training: {learning_rate: 1e-4, epochs: 2}\n")
    second = write(tmp_path, "training: {learning_rate: 2e-4}\n", "second.yaml")
    config = load_config([first, second], ["seed=7", "sampling.n=8"])
    assert (config.training.learning_rate, config.training.epochs, config.seed, config.sampling.n) == (2e-4, 2, 7, 8)


def test_another_kind_drops_the_settings_of_the_old_one(tmp_path: Path) -> None:
    first = write(tmp_path, BASE.replace("{kind: length}", "{kind: length, target_words: 3}"))
    config = load_config([first], ["scorer={kind: match}"])
    assert config.scorer is not None and config.scorer.kind == "match"


def test_another_preset_drops_the_settings_of_the_old_one(tmp_path: Path) -> None:
    first = write(tmp_path, BASE + "loss: {preset: dpo, beta: 0.3, nll: 0.5}\n")
    assert load_config([first]).loss.beta == 0.3 and load_config([first], ["loss.nll=0"]).loss.beta == 0.3
    assert (load_config([first], ["loss.preset=simpo"]).loss.beta, load_config([first]).loss.nll) == (2.5, 0.5)
    for settings in (["loss.preset=simpo", "loss.beta=3"], ["loss.beta=3", "loss.preset=simpo"]):
        other = load_config([first], settings).loss
        assert (other.preset, other.beta, other.nll) == ("simpo", 3, 0)


def test_of_two_spellings_of_a_setting_the_later_layer_counts(tmp_path: Path) -> None:
    first = write(tmp_path, BASE + "loss: {preset: simpo, margin: {gamma: 1}}\n")
    second = write(tmp_path, "loss: {gamma: 2}\n", "second.yaml")
    assert load_config([first, second]).loss.margin == ConstantMargin(gamma=2)
    assert load_config([first, second], ["loss.margin.gamma=3"]).loss.margin == ConstantMargin(gamma=3)
    assert load_config([first], ["loss.margin.gamma=3", "loss.gamma=4"]).loss.margin == ConstantMargin(gamma=4)


def test_a_preset_and_a_composition_do_not_mix_across_files(tmp_path: Path) -> None:
    composed = write(tmp_path, BASE + "loss: {prior: reference, link: {kind: hinge, delta: 2}, beta: 0.2}\n")
    named = load_config([composed], ["loss.preset=simpo"]).loss
    assert (named.preset, named.prior.kind, named.link.kind, named.beta) == ("simpo", "none", "logistic", 2.5)
    first = write(tmp_path, BASE + "loss: {preset: dpo, nll: 0.2}\n", "named.yaml")
    over = write(tmp_path, "loss: {prior: reference, link: hinge}\n", "over.yaml")
    loss = load_config([first, over]).loss
    assert (loss.preset, loss.link.kind, loss.nll) == ("custom", "hinge", 0)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_survives_being_written_out(name: str, tmp_path: Path) -> None:
    config = load_config([write(tmp_path, BASE)], [f"loss.preset={name}"])
    again = load_config([write(tmp_path, dump_config(config), "again.yaml")])
    assert again == config and again.identity() == config.identity()


def test_a_loss_may_be_written_out_component_by_component(tmp_path: Path) -> None:
    text = "loss: {prior: reference, link: {kind: hinge, delta: 2}, beta: 0.2, margin: {kind: length, alpha: 0.5}}\n"
    loss = load_config([write(tmp_path, BASE + text)]).loss
    assert (loss.preset, loss.prior.kind, loss.link.kind, loss.beta) == ("custom", "reference", "hinge", 0.2)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("{preset: rpo}", "loss.preset: 'rpo' is ambiguous; it could mean"),
        ("{preset: cdpo, epsilon: 0.5}", "loss.label.epsilon: input should be less than 0.5 (got 0.5)"),
        ("{preset: d2po_decay, gamma: 0}", "loss.weights.gamma: input should be greater than 0 (got 0)"),
        ("{preset: d2po_decay, gamma: 1.5}", "loss.weights.gamma: input should be less than or equal to 1"),
        ("{preset: rainbowpo, prior: {weight: 3}}", "loss.prior.weight: input should be less than or equal to 1"),
        ("{preset: kto, prior: extrapolated}", "loss.prior: extrapolated is not normalised"),
        ("{preset: kto, reference_free: true}", "loss.reference_free: kto needs a reference"),
        ("{preset: focalpo, link: {gama: 1}}", "loss.link.gama: no such setting; did you mean 'gamma'"),
        ("{terms: [{chosen: 1, link: {kind: focal, gamma: -2}}]}", "loss.terms.0.link.gamma: input should be greater"),
        ("{preset: dpo, head: nca}", "loss.head: nca: a loss over K responses has no link"),
    ],
)
def test_a_wrong_loss_names_its_field_without_the_kinds_on_the_way(loss: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config([write(tmp_path, BASE + f"loss: {loss}\n")])
    assert f"run.yaml: {expected}" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("training: {learning_rate: -1}", ["run.yaml: training.learning_rate", "greater than 0", "-1"]),
        ("training: {learning_rte: 1}", ["run.yaml: training.learning_rte", "no such setting", "learning_rate"]),
        ("sampling: {n: 1}", ["sampling.n", "at least 2"]),
        ("sampling: {stop: [END, '']}", ["run.yaml: sampling.stop.1", "must not be empty (got '')"]),
        ("sampling: {temperature: 0}", ["sampling.temperature", "greedy"]),
        ("sampler: {kind: magic}", ["run.yaml: sampler", "magic", "vllm"]),
        ("training: {learning_rate: .inf}", ["training.learning_rate", "finite"]),
        ("name: ../up", ["name"]),
        ("mode: offline", ["pairs: offline mode needs"]),
        ("policy: {kind: scratch}", ["warm_start"]),
        ("policy: {kind: scratch, hidden_size: 100}", ["policy", "multiple of head_size"]),
    ],
)
def test_a_wrong_value_names_file_field_value_and_what_is_allowed(
    change: str, expected: list[str], tmp_path: Path
) -> None:
    base = "\n".join(line for line in BASE.splitlines() if not line.startswith(change.split(":")[0] + ":"))
    file = write(tmp_path, base + "\n" + change + "\n")
    with pytest.raises(UserError) as caught:
        load_config([file])
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "mapping"),
        ("name: a\nname: b\n", "is given twice"),
        ("name: !!python/object/apply:os.system [true]\n", "not valid YAML"),
        ("? [1]\n: 2\n", "not valid YAML"),
        ("policy: &a {x: *a}\n", "line 1: not valid YAML: aliases are not used in configs"),
        ("x: &a [1]\ny: [*a, *a]\n", "line 2: not valid YAML: aliases are not used in configs"),
        ("x: &a {b: 1}\ny:\n  <<: *a\n", "line 3: not valid YAML: aliases are not used in configs"),
    ],
)
def test_a_malformed_file_is_named(text: str, expected: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_config([file])
    assert str(file) in str(caught.value) and expected in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "prompts.columns.reference=x",
            "no such setting here; 'reference' exists at sampling.mixture.reference, training.reference",
        ),
        ("prompts.columns.kind=x", "no such setting here; 'kind' exists at prompts.kind"),
        (
            "scorer={kind: ensemble, members: [{scorer: &}, {kind: x, scorer: &}, {scorer: &}]}".replace(
                "&", "{kind: length}"
            ),
            "no such setting here; 'kind' exists at scorer.members.1.scorer.kind",
        ),
        ("kind=x", "no such setting here; 'kind' exists at policy.kind, prompts.kind, pairs.kind, ..."),
        ("scorer.pattern=x", "no such setting; it belongs to kind match or regex"),
        ("prompts.columns.answr=x", "no such setting; did you mean 'answer'?"),
        ("prompts.columns.zzzz=x", "no such setting"),
    ],
)
def test_a_misplaced_setting_is_answered_with_its_place_and_never_with_its_own_name(
    override: str, expected: str, tmp_path: Path
) -> None:
    field = "scorer.members.1.kind" if "ensemble" in override else override.partition("=")[0]
    with pytest.raises(UserError) as caught:
        load_config([write(tmp_path, BASE)], [override])
    assert str(caught.value) == f"the config is not valid:\n  command line: {field}: {expected}"


@pytest.mark.parametrize("pairs", ["[{path: a}, {path: b, weight: 2}]", "{kind: mixture, of: [{path: a}, {path: b}]}"])
def test_a_setting_may_name_an_item_of_a_list(pairs: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"name: t\nmode: offline\npolicy: {{path: m}}\nloss: {{preset: dpo}}\npairs: {pairs}\n")
    found = load_config([file], ["pairs.of.1.columns.prompt=q", "pairs.of.1.weight=3"]).pairs
    assert isinstance(found, MixtureData)
    assert [(one.path, one.columns.prompt, one.weight) for one in found.of] == [("a", "prompt", None), ("b", "q", 3.0)]
    with pytest.raises(UserError, match=r"pairs\.of"):
        load_config([file], ["pairs.of.2.weight=3"])


def test_a_wrong_override_is_shown_as_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"command line: loss\.betta: is not a setting of dpo: beta"):
        load_config([write(tmp_path, BASE)], ["loss.betta=1"])
    with pytest.raises(UserError, match=r"command line: loss\.betta: no such setting; did you mean 'beta'"):
        load_config([write(tmp_path, BASE)], ["loss={link: logistic, betta: 1}"])
    with pytest.raises(UserError, match=r"a\.b=value"):
        load_config([write(tmp_path, BASE)], ["loss..beta=1"])
    with pytest.raises(UserError, match=r"policy=&a .*: the value is not valid YAML"):
        load_config([write(tmp_path, BASE)], ["policy=&a {x: *a}"])


def test_operational_settings_are_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    file = write(tmp_path, BASE)
    plain = load_config([file]).identity()
    assert load_config([file], ["training.micro_batch_size=1", "sampler.retries=9"]).identity() == plain
    assert load_config([file], ["sampling.stop=[END]"]).sampling.identity()["stop"] == ["END"]
    other = load_config([file], ["training.batch_size=1"]).identity()
    assert changed_fields(plain, other) == ["training.batch_size: 32 -> 1"]


def test_settings_that_came_later_are_no_part_of_a_run_that_leaves_them_alone(tmp_path: Path) -> None:
    file = write(tmp_path, BASE)
    plain = load_config([file]).identity()
    assert "alarms" not in load_config([file]).training.identity()
    assert load_config([file], ["training.alarms={}"]).identity() == plain
    other = load_config([file], ["training.alarms.stop=[]"]).identity()
    assert changed_fields(plain, other)[0].startswith("training.alarms")


def test_every_field_is_documented() -> None:
    waiting, seen = [RunConfig], set()
    while waiting:
        section = waiting.pop()
        seen.add(section)
        assert section.__doc__, section
        waiting += [child for child in section.__subclasses__() if child not in seen]


def test_config_code_loads_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.config.files, pipeline.storage.run_folder, pipeline.storage.rows, pipeline.data.reading;"
        "import pipeline.training.pairs.from_data, flows.preflight.loss_needs;"
        "print([m for m in ('torch', 'vllm', 'prefect', 'transformers', 'datasets') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
