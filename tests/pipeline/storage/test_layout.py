"""Run folders of other versions: known ones go on, later ones are refused and left as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.commands import dry_run
from flows.commands import run as commands
from flows.commands.dry_run import planned_stages
from flows.loop import entry
from flows.loop.preparation import prepare_run
from flows.planning import plan
from flows.preflight import check
from flows.preflight.check import check_new
from flows.run_folder.key_parts import plain_section
from pipeline.config import FileData, Gate, RunConfig
from pipeline.config.files import load_config
from pipeline.config.training import router_coefficient
from pipeline.data.sources import files_of, held_out_source
from pipeline.errors import UserError
from pipeline.storage import layout
from pipeline.storage.layout import LAYOUT_FILE, RUN_LAYOUT, as_now_called, note_version, own_version
from pipeline.storage.run_folder import RunFolder
from tests.support.places import ROOT

EARLIER = ROOT / "tests" / "fixtures" / "earlier_version" / "run_folders"


def folder(tmp_path: Path, config: str = "", **stated: Any) -> RunFolder:
    """A run folder with a config of 0.1.0, and what it says of itself."""
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    run.config_file.write_text(config or (EARLIER / "offline" / "config.yaml").read_text())
    if stated:
        (run.root / LAYOUT_FILE).write_text(json.dumps(stated))
    return run


def listed(run: RunFolder) -> dict[str, str]:
    return {file.name: file.read_text() for file in run.root.iterdir()}


def test_a_folder_of_a_later_layout_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run = folder(tmp_path, "a: setting of the future\n", layout=RUN_LAYOUT + 1, prefloop="9.1.0")
    before, config = listed(run), load_config([EARLIER / "offline" / "config.yaml"])
    said = rf"run: prefloop 9\.1\.0 wrote this run folder, in layout {RUN_LAYOUT + 1}; this is .* up to {RUN_LAYOUT}"
    for opened in (
        lambda: RunFolder.existing(run.root),
        lambda: run.config(),
        lambda: prepare_run(config, run.root),
        lambda: planned_stages(config, run.root),
        lambda: check_new(config, run.root),
        lambda: note_version(run.root, run.config_file),
    ):
        with pytest.raises(UserError, match=said):
            opened()
    assert listed(run) == before


def test_a_setting_of_a_later_version_is_named_with_the_version(tmp_path: Path) -> None:
    run = folder(tmp_path, "nmae: x\n", layout=RUN_LAYOUT, prefloop="9.1.0\x1b[31m/../x")
    with pytest.raises(
        UserError, match=r"nmae: no such setting[^\x1b]*\nprefloop 9\.1\.031m\.\.x wrote this run folder"
    ):
        run.config()


@pytest.mark.parametrize("text", ["", "[]", '{"layout": "new", "prefloop": "1"}', '{"layout": 1}', "[" * 9999, "\xff"])
def test_a_damaged_statement_is_named(tmp_path: Path, text: str) -> None:
    run = folder(tmp_path)
    (run.root / LAYOUT_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"layout\.json: cannot be read; restore it from a copy"):
        RunFolder.existing(run.root)


@pytest.mark.parametrize("stated", [{}, {"layout": 1, "prefloop": "0.0.9"}])
def test_a_folder_of_an_earlier_version_goes_on_and_keeps_its_config(tmp_path: Path, stated: dict[str, Any]) -> None:
    run = folder(tmp_path, **stated)
    before = run.config_file.read_text()
    kept = run.root / f"config.{stated.get('prefloop', '0.1.0')}.yaml"
    for _ in range(2):
        prepare_run(run.config(), run.root)
        assert kept.read_text() == before
        assert json.loads((run.root / LAYOUT_FILE).read_text()) == {"layout": RUN_LAYOUT, "prefloop": own_version()}
    assert run.config_file.read_text() != before, "the config is written as this version writes it"
    assert len([*run.root.glob("config*.yaml")]) == 2


def test_a_new_folder_states_its_version_and_keeps_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "new")
    config = load_config([EARLIER / "offline" / "config.yaml"])
    prepare_run(config, run.root)
    prepare_run(config.model_copy(update={"check_disk": False}), run.root)
    assert {file.name for file in run.root.iterdir() if file.suffix in (".json", ".yaml")} == {
        "config.yaml", LAYOUT_FILE
    }  # fmt: skip
    assert json.loads((run.root / LAYOUT_FILE).read_text()) == {"layout": RUN_LAYOUT, "prefloop": own_version()}


def test_settings_with_another_name_now_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder(tmp_path)
    config = run.config()
    text = run.config_file.read_text().replace("check_disk: true\n", "")
    run.config_file.write_text(f"{text}look_at_disk: false\nold: {{seed: 7}}\ngone: 3\n")
    with pytest.raises(UserError, match="no such setting"):
        run.config()
    renamed = {"look_at_disk": "check_disk", "old.seed": "sampling.top_k", "gone": None, "old": None, "no.such": "x.y"}
    monkeypatch.setattr(layout, "RENAMED", renamed)
    now = run.config()
    assert (now.check_disk, now.sampling.top_k) == (False, config.sampling.top_k), "a present name comes first"
    prepare_run(now, run.root)
    assert "look_at_disk" not in run.config_file.read_text() and run.config() == now
    assert "look_at_disk" in (run.root / "config.0.1.0.yaml").read_text()


def test_names_move_between_sections() -> None:
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    assert as_now_called(tree, {"a.b": "e.f.g", "d": None, "a.x": "y"}) == {"a": {"c": 2}, "e": {"f": {"g": 1}}}
    assert as_now_called(tree, {"d": "a.d", "a.b": "d.x"}) == {"a": {"c": 2, "d": 3}, "d": {"x": 1}}
    assert tree == {"a": {"b": 1, "c": 2}, "d": 3}
    assert as_now_called({}, {"a.b": "c"}) == {}


def test_values_that_json_cannot_hold_reach_the_schema(tmp_path: Path) -> None:
    text = (EARLIER / "offline" / "config.yaml").read_text()
    run = folder(tmp_path, text.replace("seed: ", "seed: 2026-01-01 #", 1))
    with pytest.raises(UserError, match=r"seed: must be a whole number .*datetime\.date"):
        run.config()
    run.config_file.write_text(text.replace("seed: ", "seed: 1.0e+999 #", 1))
    with pytest.raises(UserError, match=r"seed: input should be a finite number"):
        run.config()


def test_every_setting_of_the_earlier_version_is_read() -> None:
    for mode in ("offline", "iterative"):
        run = RunFolder(EARLIER / mode)
        assert isinstance(run.config(), RunConfig) and run.config().mode == mode


def split_folder(tmp_path: Path, mode: str) -> RunFolder:
    """A run folder of 0.1.0 whose data is a folder with two splits, both of which 0.1.0 read."""
    for name in ("train", "test"):
        row = {"prompt": name, "chosen": "a", "rejected": "b"}
        file = tmp_path / "data" / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps({**row, "prompt": f"{name} {n}"}) + "\n" for n in range(4)))
    plain = yaml.safe_load((EARLIER / mode / "config.yaml").read_text())
    for section in ("prompts", "pairs"):
        if plain[section] is not None:
            plain[section] = {**plain[section], "path": str(tmp_path / "data")}
    return folder(tmp_path, yaml.safe_dump(plain))


@pytest.mark.parametrize("mode", ["offline", "iterative"])
def test_a_folder_that_read_every_split_goes_on_reading_them(tmp_path: Path, mode: str) -> None:
    run = split_folder(tmp_path, mode)
    old = yaml.safe_load(run.config_file.read_text())
    section = "pairs" if mode == "offline" else "prompts"
    # The user's own file says nothing of splits.
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(old))
    mine = load_config([tmp_path / "mine.yaml"])
    for _ in range(2):
        config = run.carried(mine)
        assert [file.name for file in files_of(getattr(config, section))] == ["test.jsonl", "train.jsonl"]
        assert config.identity() == run.config().identity(), "its stages keep their keys"
        assert "split" not in plain_section(config, section)
        prepare_run(config, run.root)
        assert yaml.safe_load(run.config_file.read_text())[section]["split"] == "all"
    with pytest.raises(UserError, match="holds several splits"):
        files_of(getattr(RunFolder(tmp_path / "new").carried(mine), section))
    named = load_config([tmp_path / "mine.yaml"], [f"{section}.split=train"])
    assert getattr(run.carried(named), section) == getattr(named, section)
    with pytest.raises(UserError, match="holds a run with another config"):
        prepare_run(named, run.root)


def test_held_out_prompts_of_such_a_folder_come_from_every_split_too(tmp_path: Path) -> None:
    run = split_folder(tmp_path, "offline")
    given = held_out_source(run.config([f"held_out.path={tmp_path / 'data'}"]))
    assert given is not None and len(files_of(given)) == 2
    one = held_out_source(run.config([f"held_out.path={tmp_path / 'data' / 'test.jsonl'}"]))
    assert one is not None and len(files_of(one)) == 1


@pytest.mark.parametrize("begins", ["run", "dry run", "firing", "plan", "deployment"])
def test_whatever_goes_on_with_such_a_folder_reads_every_split(
    begins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mine, used = split_folder(tmp_path, "offline"), tmp_path / "mine.yaml", list[RunConfig]()
    mine.write_text(run.config_file.read_text())

    def noted(config: RunConfig, *_: object) -> None:
        used.append(config)
        raise UserError("far enough")

    monkeypatch.setattr(commands, "check_new", noted)
    monkeypatch.setattr(entry, "check_new", noted)
    monkeypatch.setattr(dry_run, "planned_stages", noted)
    monkeypatch.setattr(plan, "load_data", noted)
    monkeypatch.setattr(check, "check_run", noted)
    with pytest.raises(UserError, match="far enough"):
        if begins == "firing":
            entry.prepare(entry.Firing("offline", str(run.root), (str(mine),)))
        elif begins == "plan":
            plan.plan_config([mine], [], run.root, {}, probe=False, response_tokens=None)
        elif begins == "deployment":
            check.check_new(load_config([mine]), run.root)
        elif begins == "run":
            commands.run_config([mine], [], run.root, False, None)
        else:
            commands.dry([mine], [], run.root, None)
    (config,) = used
    assert isinstance(config.pairs, FileData) and config.pairs.split == "all"


def test_prompts_of_an_earlier_folder_begin_as_they_did(tmp_path: Path) -> None:
    run = split_folder(tmp_path, "offline")
    begun = run.config()
    assert begun.chat.bos == "earlier" and "bos" not in begun.chat.identity()
    given = begun.model_copy(update={"chat": begun.chat.model_copy(update={"bos": "written"})})
    assert run.carried(given).chat.bos == "earlier"
    asked = given.model_copy(update={"chat": begun.chat.model_copy(update={"bos": "always"})})
    assert run.carried(asked).chat.identity()["bos"] == "always"


def test_a_mixture_of_experts_of_an_earlier_folder_goes_on_without_a_router_loss(tmp_path: Path) -> None:
    run = split_folder(tmp_path, "iterative")
    begun = run.config()
    assert begun.warm_start is not None
    for section in ("training", "warm_start"):
        own = begun.__dict__[section]
        assert own.router_aux_loss_coef == "earlier" and router_coefficient("earlier") == 0
        assert "router_aux_loss_coef" not in own.identity()

        def given(value: object, name: str = section, old: Any = own) -> Any:
            update = {name: old.model_copy(update={"router_aux_loss_coef": value})}
            return run.carried(begun.model_copy(update=update)).__dict__[name]

        assert given("config").router_aux_loss_coef == "earlier"
        assert given(0.5).identity()["router_aux_loss_coef"] == 0.5
    assert router_coefficient("config") is None


def test_a_folder_goes_on_with_the_precision_and_the_adapters_that_it_was_begun_with(tmp_path: Path) -> None:
    plain = yaml.safe_load((EARLIER / "iterative" / "config.yaml").read_text())
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": "all-linear"}
    plain["training"] |= {"lora": lora, "optimiser_state": "fresh"}
    members = [{"scorer": {"kind": "classifier", "path": "m", "dtype": "float32"}}, {"scorer": {"kind": "length"}}]
    plain["scorer"] = {"kind": "ensemble", "members": members}
    plain["policy"] = {"kind": "pretrained", "path": "model"}
    run = folder(tmp_path, yaml.safe_dump(plain))
    begun = run.config()
    assert begun.policy.identity() == {
        "kind": "pretrained", "path": "model", "revision": None, "trust_remote_code": False,
    }, "its keys stay"  # fmt: skip
    assert begun.training.lora is not None and begun.training.lora.lifetime == "round"
    assert "lifetime" not in begun.training.lora.identity()
    # The user's own file says nothing of either.
    mine = {
        **plain,
        "scorer": {"kind": "ensemble", "members": [{"scorer": {"kind": "classifier", "path": "m"}}, members[1]]},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    new = load_config([tmp_path / "mine.yaml"])
    assert new.identity() != begun.identity() and new.policy.identity()["dtype"] == "auto"
    assert run.carried(new).identity() == begun.identity()
    named = load_config([tmp_path / "mine.yaml"], ["policy.dtype=bfloat16", "training.dtype=bfloat16"])
    assert run.carried(named).policy == named.policy, "what is asked for is not overruled"


def test_a_folder_from_before_the_rule_on_sliding_lengths_is_judged_without_it(tmp_path: Path) -> None:
    run = split_folder(tmp_path, "iterative")
    begun = run.config()
    assert begun.gate is not None and begun.gate.min_length_falling is None
    assert "min_length_falling" not in begun.gate.identity(), "its keys stay"
    new = Gate()
    assert new.min_length_falling == 0.6 and new.identity()["min_length_falling"] == 0.6

    def carried(gate: Gate) -> Gate | None:
        return run.carried(begun.model_copy(update={"gate": gate})).gate

    went_on, asked = carried(new), carried(Gate(min_length_falling=0.4))
    assert went_on is not None and went_on.min_length_falling is None
    assert asked is not None and asked.min_length_falling == 0.4
