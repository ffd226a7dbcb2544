"""What the page on data says is what the schema says."""

import re

import yaml

from pipeline.config import DatasetData, FileData, Limits
from pipeline.config.data.limits import FATES
from tests.support.places import ROOT

README = (ROOT / "pipeline" / "README.md").read_text()


def test_the_table_of_causes_is_the_schema() -> None:
    table = README.partition("| cause | what it is | such rows are | limit |\n| --- | --- | --- | --- |\n")[
        2
    ].partition("\n\n")[0]
    expected = [
        f"| `{name}` | {field.description} | {FATES[name]} | {field.default:g} |"
        for name, field in Limits.model_fields.items()
    ]
    assert table.splitlines() == expected


def test_the_examples_of_data_are_valid() -> None:
    examples = [yaml.safe_load(line)["pairs"] for line in re.findall(r"^pairs: \{.*\}$", README, re.M)]
    found = [
        DatasetData.model_validate(e) if e.get("kind") == "dataset" else FileData.model_validate(e) for e in examples
    ]
    assert len(found) == 4 and found[3].columns.prompt_columns == ("instruction", "input")
