import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.__main__ import main
from flows.commands.losses import NEEDS, PLOT_ENDINGS, needs, preset, settings
from pipeline.config import preset_names
from pipeline.config.loss.needs import needs_of
from pipeline.config.loss.presets import AMBIGUOUS, PRESETS

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prefloop", "losses", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert call(monkeypatch, *arguments) == 0
    return capsys.readouterr().out.splitlines()


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert call(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert not shown.out and "Traceback" not in shown.err and len(shown.err.splitlines()) <= 10
    return shown.err


def test_every_preset_has_one_line_under_its_family(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(monkeypatch, capsys)
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    on_disk = {file.stem: yaml.safe_load(file.read_text())["summary"] for file in PRESETS.glob("*.yaml")}
    assert listed == on_disk
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)
    heading = [line for line in lines[: lines.index(next(x for x in lines if x.startswith("  simpo ")))] if line]
    assert [line for line in heading if not line.startswith(" ")][-1].startswith("Prior")


def test_a_preset_is_shown_with_formula_needs_settings_citation_and_identity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = "\n".join(said(monkeypatch, capsys, "tdpo2"))
    written = yaml.safe_load((PRESETS / "tdpo2.yaml").read_text())
    for part in (written["summary"], written["formula"], written["citation"], written["identity_with"]):
        assert part in shown
    assert all(departure in shown for departure in written["departures"])
    assert "beta = 0.1" in shown and "kl = 0.5" in shown and "KL(π_ref ‖ π) over the whole vocabulary" in shown


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_shown(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(monkeypatch, capsys, name)
    headings = [line.split()[0] for line in lines[1:] if line.startswith("  ") and line[2] != " "]
    assert headings == ["formula", "parts", "needs", "settings", "identity", "departures", "citation"]
    assert all(len(line) > 14 for line in lines)


def test_needs_are_said_in_words() -> None:
    assert needs(preset("sft")) == ["only chosen responses"]
    assert needs(preset("simpo")) == [NEEDS["rejected"]]
    assert needs(preset("dpo")) == [NEEDS["rejected"], NEEDS["reference"]]
    assert any("the newest policy and the one before it" in line for line in needs(preset("apo_accelerated")))
    assert any("training.references" in line for line in needs(preset("mrpo")))
    assert NEEDS["weights:given"] in needs(preset("tis_dpo")) and NEEDS["weights:learned"] in needs(preset("sparsepo"))
    assert any("completion and label" in line for line in needs(preset("kto")))
    assert not any("completion and label" in line for line in needs(preset("dpo")))


def test_no_need_of_any_preset_goes_unsaid() -> None:
    said_with_another = {"reward_rejected", "critic_rejected", "kl_weights"}
    for name in preset_names():
        for need in needs_of(preset(name)).fields - said_with_another:
            assert any(key.partition(":")[0] == need for key in NEEDS), (name, need)


def test_settings_have_their_defaults_meanings_and_choices() -> None:
    assert settings(preset("f_dpo"))[-2].startswith("shape.divergence = js")
    assert settings(preset("f_dpo"))[-2].endswith("one of reverse_kl, forward_kl, js, alpha")
    assert any(line.split("  ")[0] == "margin.gamma = 1.375" for line in settings(preset("simpo")))


def test_ambiguous_names_are_refused_with_what_they_could_mean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("d2po", "D2PO", "apo", "rpo", "vpo", "SPO", "SDPO", "DSPO", "Nash-MD"):
        message = refused(monkeypatch, capsys, name)
        assert "ambiguous" in message and all(
            meaning in message for meaning in AMBIGUOUS[name.lower().replace("-", "_")]
        )


def test_unknown_names_are_refused_with_the_nearest_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "simpo" in refused(monkeypatch, capsys, "simp")
    assert "mallows_theta" in refused(monkeypatch, capsys, "Mallows-Theta")
    assert "no such loss" in refused(monkeypatch, capsys, "zzzz")
    assert "no such loss" in refused(monkeypatch, capsys, "../loss/dpo")


def test_listing_loads_no_torch() -> None:
    code = (
        "import sys; from flows.commands.losses import print_presets, print_preset;"
        "print_presets(); print_preset('sparsepo');"
        "assert not {'torch', 'matplotlib', 'prefect'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("ending", PLOT_ENDINGS)
def test_the_plot_has_the_format_of_its_ending(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"links{ending}"
    assert said(monkeypatch, capsys, "--plot", file) == [str(file)]
    assert file.read_bytes().startswith(SIGNATURES[ending]) and list(tmp_path.iterdir()) == [file]


def test_plots_that_cannot_be_written_are_refused_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("links.jpg", "links", ".png"):
        assert ".png, .svg, .pdf" in refused(monkeypatch, capsys, "--plot", tmp_path / name)
    assert str(tmp_path / "no") in refused(monkeypatch, capsys, "--plot", tmp_path / "no" / "links.png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "links.png").mkdir()
    assert "cannot be written" in refused(monkeypatch, capsys, "--plot", tmp_path / "links.png")
    assert [file.name for file in tmp_path.iterdir()] == ["links.png"]
    assert "NAME" in refused(monkeypatch, capsys, "dpo", "--plot", tmp_path / "dpo.png")


def test_on_a_terminal_long_lines_go_on_under_their_own_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    lines = said(monkeypatch, capsys, "tdpo2")
    needs_line = next(number for number, line in enumerate(lines) if line.startswith("  needs"))
    assert lines[needs_line] == "  needs       pairs: a chosen and a rejected response to"
    assert lines[needs_line + 1] == " " * 14 + "each prompt"
