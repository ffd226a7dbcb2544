"""The notebooks: stored without outputs, and run from the first cell to the last in a real kernel."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from prefloop import load_run
from tests.support.places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# In a kernel an event loop runs, and an exception of the wrong kind would end the cell or the kernel.
MISTAKES = """
import asyncio
from prefloop import UserError, load_run, run

asyncio.get_running_loop()
function = {"kind": "function", "file": "no.py"}
for ask in (lambda: run("quickstart", lr=1), lambda: run("quickstart", scorer=function), lambda: load_run("none")):
    try:
        ask()
    except UserError as mistake:
        print(mistake)
"""


def carried_out(notebook: nbformat.NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run all cells in a kernel of this interpreter; return the text of their outputs. A cell that fails raises."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(folder / ".jupyter"))
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_are_stored_without_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 4 and all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.cells[0].source.startswith("# ")


@pytest.mark.whole
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = carried_out(nbformat.read(file, as_version=4), tmp_path, monkeypatch)
    made = load_run(tmp_path / "runs" / file.stem)
    assert [facts.round for facts in made.rounds] == [*range(made.config.rounds + 1)]
    match file.stem:
        case "offline":
            assert "pears.jsonl: no such file" in told and str(made.report) in told
        case "online":
            assert "round 2: reward" in told and "with 3 Axes>" in told
        case "own_loss":
            assert "['reference', 'rejected']" in told and "'custom'" in told


@pytest.mark.whole
def test_mistakes_in_a_kernel_are_one_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = carried_out(new_notebook(cells=[new_code_cell(MISTAKES)]), tmp_path, monkeypatch).splitlines()
    assert told[:2] == ["the config is not valid:", "  settings: lr: no such setting; did you mean 'lora'?"]
    assert [line for line in told if "no.py" in line] and told[-1] == "none: not a run folder (no config.yaml)"
