"""What the page on data says is what the schema says."""

import re

import yaml
from pydantic import TypeAdapter

from pipeline.config import Limits, MixtureData, PairData
from pipeline.config.data.limits import FATES
from pipeline.config.data.mixture import usual_source
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
    examples = [yaml.safe_load(line)["pairs"] for line in re.findall(r"^pairs: [{\[].*[}\]]$", README, re.M)]
    sources = TypeAdapter[PairData](PairData)
    given = [sources.validate_python(usual_source(example)) for example in examples]
    mixed = [source for source in given if isinstance(source, MixtureData)]
    assert [[one.weight for one in source.of] for source in mixed] == [[0.7, 0.3]] * 2
    found = [source for source in given if not isinstance(source, MixtureData)]
    assert len(found) == 4 and found[3].columns.prompt_columns == ("instruction", "input")
