"""A run's data in memory, for a plan, which measures all of it. Torch-free."""

from dataclasses import dataclass, field

from flows.stages.data import HELD_OUT_PAIRS, Text, open_data
from pipeline.config import RunConfig
from pipeline.data.counts import Contents
from pipeline.types import Prompt, TextGroup, TextPair, UnpairedText


@dataclass(frozen=True)
class Tables:
    """What the data stage would write, but for held-out pairs; of the three forms one at most holds rows."""

    prompts: list[Prompt]
    held_out: list[Prompt]
    texts: list[Text]
    contents: Contents
    pairs: list[TextPair] = field(default_factory=list)
    groups: list[TextGroup] = field(default_factory=list)
    unpaired: list[UnpairedText] = field(default_factory=list)


def load_data(config: RunConfig) -> Tables:
    """Read and split what the config names; rows that cannot be read are left out. Raises ``UserError``."""
    run_data, contents = open_data(config), Contents()
    tables = Tables([*run_data.prompts()], [*run_data.split.held_out], [*run_data.texts()], contents)
    for table, row in run_data.preferences():
        if table == HELD_OUT_PAIRS:
            continue
        contents.add(row)
        match row:
            case TextPair():
                tables.pairs.append(row)
            case TextGroup():
                tables.groups.append(row)
            case UnpairedText():
                tables.unpaired.append(row)
    return tables
