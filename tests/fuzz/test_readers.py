"""A few hundred of the inputs of ``python -m tests.fuzz``, and that it finds what it looks for."""

from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.fuzz.__main__ import report
from tests.fuzz.readers import Tried, readers, try_inputs
from tests.support.tiny_model import tiny_tokenizer

INPUTS = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_every_reader_takes_or_refuses_whatever_it_is_given(model: Path, tmp_path: Path) -> None:
    tried = Tried()
    for name, (reader, share) in readers(model).items():
        try_inputs(name, reader, INPUTS * share // 100, 1, tmp_path, tmp_path / "failures", tried)
    assert not tried.failures, report(tried, 0)
    assert tried.inputs >= 0.9 * INPUTS and 0 < tried.refused < tried.inputs


def test_the_shares_of_the_readers_are_a_whole(model: Path) -> None:
    assert sum(share for _, share in readers(model).values()) == 100


def test_a_reader_that_fails_is_found_with_its_input(tmp_path: Path) -> None:
    def read(data: st.DataObject, folder: Path) -> None:
        (folder / "x").write_text(str(data.draw(st.integers(0, 9))))
        if (folder / "x").read_text() == "7":
            raise KeyError("seven")

    tried = Tried()
    try_inputs("reader", read, 60, 0, tmp_path / "scratch", tmp_path / "kept", tried)
    ((what, count),) = tried.failures.items()
    assert "KeyError" in what and count >= 1 and (tried.kept[what] / "x").read_text() == "7"
    assert "failures: " in report(tried, 1.0) and str(tried.kept[what]) in report(tried, 1.0)


def test_a_reader_that_hangs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.readers.CPU_SECONDS", 0.05)

    def hang(data: st.DataObject, folder: Path) -> None:
        while True:
            pass

    tried = Tried()
    try_inputs("reader", hang, 1, 0, tmp_path / "scratch", tmp_path / "kept", tried)
    assert "of CPU time" in next(iter(tried.failures))
