"""``flow_run.json``: Prefect's flow run, and the process, that wrote to a run folder last. Torch-free."""

import json
from pathlib import Path

FLOW_RUN_FILE = "flow_run.json"
ENDED_WELL = "ended"


def may_be_shown_as_running(root: Path) -> bool:
    """Return whether the last flow run did not come to its end, so that Prefect may not know of its end either."""
    try:
        last = json.loads((root / FLOW_RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return not isinstance(last, dict) or last.get(ENDED_WELL) is not True
