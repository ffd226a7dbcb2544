"""Trees, commands and files in README and pages are those of the code."""

import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
import yaml
from typer.testing import CliRunner

from flows.__main__ import app
from flows.commands.losses import FAMILIES
from pipeline.config import Composition, Gate, NamedComposition, RunConfig, ScorerSettings, preset_names, resolve
from pipeline.config.labellers.reward_model import Discriminator
from pipeline.config.loss.components import DecayWeights
from pipeline.config.loss.formula import Family
from pipeline.config.loss.margins import ConstantMargin
from pipeline.config.loss.needs import needs_of
from pipeline.config.loss.presets import AMBIGUOUS
from pipeline.config.loss.terms import HingeLink
from tests.support.places import ROOT
from tests.support.readme import PAGES, README, nearest, sources, tree

PRESETS = {name: Composition.model_validate(resolve(name, {})) for name in preset_names()}
# Those with runs are in tests/prefloop.
PYTHON = [code for code in re.findall(r"^```python\n(.*?)^```", README, re.M | re.S) if "from prefloop " not in code]
YAML = re.findall(r"^```yaml\n(.*?)^```", README, re.M | re.S)


def test_every_source_file_has_its_line_in_the_nearest_readme_and_in_no_other() -> None:
    files = {str(file.relative_to(ROOT)): nearest(file) for file in sources()}
    assert len(files) > 200
    told = {page: tree(page) for page in PAGES}
    assert [path for path, page in files.items() if not told[page].get(path)] == []
    lines = Counter(path for lines in told.values() for path in lines if not path.endswith("/"))
    assert {path: count for path, count in lines.items() if count > 1} == {}


def test_every_folder_of_the_code_has_its_line_in_the_readme() -> None:
    told = tree(ROOT / "README.md", "The folders")
    parts = {file.relative_to(ROOT).parts[:-1] for file in sources()}
    folders = {"/".join(part[:depth]) + "/" for part in parts for depth in (1, 2) if len(part) >= depth}
    expected = {folder for folder in folders if not folder.startswith("configs/") or folder == "configs/"}
    assert {path for path, said in told.items() if said} == expected


def test_every_folder_of_the_code_has_its_line_above_its_files() -> None:
    told = {path for page in PAGES for path in tree(page)}
    assert {f"{file.parent.relative_to(ROOT)}/" for file in sources()} - told == set()


def test_every_preset_file_is_a_preset() -> None:
    assert {file.stem for file in (ROOT / "configs" / "loss").iterdir()} == set(PRESETS)


def test_the_readme_counts_the_losses() -> None:
    assert re.findall(r"(\d+) losses", PAGES[ROOT / "README.md"]) == [str(len(PRESETS))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_trees_name_nothing_that_is_not_there(page: Path) -> None:
    for path in [*tree(page), *tree(page, "The folders")]:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_every_command_is_in_the_table_and_the_other_way_round() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert set(re.findall(r"^\| `prefloop ([\w-]+)", README, re.M)) == commands


def test_every_option_of_the_table_exists() -> None:
    for command, rest in re.findall(r"^\| `prefloop ([\w-]+)([^`]*)`", README, re.M):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        for option in re.findall(r"--[\w-]+", rest):
            assert option in re.sub(r"\x1b\[[0-9;]*m", "", shown), (command, option)


def test_commands_of_the_text_name_files_that_exist() -> None:
    for file in re.findall(r"configs/[\w.-]+\.yaml", README):
        assert (ROOT / file).is_file(), file
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make (\w+)", README)) <= targets | {"a", "the"}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first line is ``heading``."""
    table = README[README.index(heading) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_the_table_of_losses_says_what_the_presets_say() -> None:
    expected = []
    for family in get_args(Family):
        expected.append([f"**{FAMILIES[family]}**", ""])
        expected += [[f"`{name}`", loss.summary] for name, loss in PRESETS.items() if loss.family == family]
    assert rows("| preset | what it is |") == expected
    assert len(expected) == len(PRESETS) + len(FAMILIES)


def test_the_table_of_needs_names_exactly_the_losses_that_have_them() -> None:
    told: set[str] = set()
    for reads, losses, _ in rows("| it reads | losses |"):
        fields = re.findall(r"`(\w+)`", reads)
        expected = {name for name, loss in PRESETS.items() if needs_of(loss).fields & set(fields)}
        if not fields:
            expected = {name for name, loss in PRESETS.items() if needs_of(loss).references > 1}
        assert set(re.findall(r"`(\w+)`", losses)) == expected, reads
        told |= set(fields)
    # What every loss on pairs reads is no row, and one mask more is said with the other.
    assert set().union(*(needs_of(loss).fields for loss in PRESETS.values())) - told <= {
        "rejected",
        "reference",
        "kl_weights",
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("also take single responses", {name for name, loss in PRESETS.items() if needs_of(loss).accepts_unpaired}),
        ("read statistics over the whole batch", {name for name, loss in PRESETS.items() if needs_of(loss).statistics}),
        ("read no\nreference", {name for name, loss in PRESETS.items() if needs_of(loss).references == 0}),
    ],
)
def test_sentences_on_losses_name_all_of_them(words: str, expected: set[str]) -> None:
    sentence = re.split(r"[.;] |[.]\n|\n\n", README.partition(words)[0])[-1]
    assert set(re.findall(r"`(\w+)`", sentence)) == expected


def test_every_ambiguous_name_is_told() -> None:
    assert rows("| name | could be |") == [[f"`{name}`", "; ".join(meanings)] for name, meanings in AMBIGUOUS.items()]


def test_the_discriminator_in_yaml_is_valid() -> None:
    (section,) = [yaml.safe_load(text) for text in YAML if text.startswith("discriminator:")]
    settings = Discriminator.model_validate(section["discriminator"])
    assert (settings.budget, settings.select, settings.gate.accuracy) == (128, "uncertain", 0.6)


def test_the_gate_in_yaml_is_valid_and_tells_the_defaults() -> None:
    (section,) = [yaml.safe_load(text) for text in YAML if text.startswith("gate:")]
    told = Gate.model_validate(section["gate"])
    assert told.second is not None and told.model_copy(update={"second": None}) == Gate()


def test_losses_in_yaml_are_valid_and_mean_what_they_say() -> None:
    losses = [yaml.safe_load(text)["loss"] for text in YAML if text.startswith("loss:")]
    preset, written_out, added = [NamedComposition.model_validate(loss) for loss in losses]
    assert preset.preset == "simpo" and preset.beta == 2.5 and preset.margin == ConstantMargin(gamma=1.0)
    assert preset.aggregate == "mean" and preset.prior.kind == "none"
    assert written_out.preset == "custom" and written_out.link == HingeLink(delta=0.5)
    assert [(part.preset, part.weight) for part in added.sum] == [("dpo", 0.8), ("bco", 0.2), ("sft", 1.0)]
    assert written_out.prior.kind == "reference" and written_out.weights == DecayWeights(gamma=0.95)


def test_labellers_in_yaml_are_valid_and_every_kind_is_told() -> None:
    (text,) = [text for text in YAML if text.startswith("scorer:")]
    kinds = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows("| `scorer.kind` |"))))
    union = get_args(get_args(ScorerSettings)[0])
    assert kinds == {scorer.model_fields["kind"].default for scorer in union}
    policy = {"name": "x", "mode": "iterative", "policy": {"path": "m"}, "prompts": {"path": "p"}}
    configs = [RunConfig.model_validate({**policy, **document}) for document in yaml.safe_load_all(text)]
    assert [config.scorer.kind for config in configs if config.scorer] == [
        "function", "keywords", "pairwise", "judge", "ensemble"
    ]  # fmt: skip
    assert configs[-1].pairing.max_disagreement == 1.5


@pytest.mark.parametrize("code", PYTHON)
def test_python_prints_what_its_comments_say(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
    exec(compile(code, "README.md", "exec"), {})
    assert expected and capsys.readouterr().out.splitlines() == expected
    assert len(PYTHON) == 2


def anchors(text: str) -> set[str]:
    """Of all headings, as the pages of code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_that_a_page_names_is_there(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("names what is gone, too")
    named = re.findall(r"`((?:pipeline|flows|reward_models|configs|tests)/[\w./*]*)`", PAGES[page])
    assert [path for path in named if "NAME" not in path and not list(ROOT.glob(path))] == []


def test_modules_that_the_changelog_names_as_new_are_there() -> None:
    (table,) = re.findall(r"\| before \| now \|\n *\|[ -|]+\n(.*?)\n\n", PAGES[ROOT / "CHANGELOG.md"], re.S)
    cells = [row.strip(" |").split(" | ")[1] for row in table.splitlines()]
    now = [name for cell in cells for name in re.findall(r"`((?:pipeline|flows|reward_models)[.\w]*)`", cell)]
    assert len(now) > 15 and [name for name in now if importlib.util.find_spec(name) is None] == []


def test_the_readme_is_one_page() -> None:
    assert len(PAGES[ROOT / "README.md"].splitlines()) <= 160
