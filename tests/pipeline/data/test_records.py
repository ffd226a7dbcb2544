"""Data sets read through ``datasets``: saved folders, and hub names from a hub of our own, then offline."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from pipeline.config import Columns, DatasetData
from pipeline.data.files.records import read_records
from pipeline.data.reading import read_preferences
from pipeline.errors import UserError
from pipeline.types import TextPair

ROWS = [{"prompt": f"p{n}", "chosen": "c", "rejected": "r" if n != 300 else None} for n in range(600)]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
REVISION, BLOB = "a" * 40, "b" * 40
READ = """
import json, sys
from pipeline.config import DatasetData
from pipeline.data.reading import read_preferences
rows = [*read_preferences(DatasetData(path="owner/name"))]
print(json.dumps([[row.place, row.fault] for row in rows]))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as ``datasets`` asks for one file."""

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        listed = {"type": "file", "path": "train.jsonl", "size": len(CONTENT), "oid": BLOB}
        if path.endswith("/train.jsonl"):
            self._send(CONTENT)
        elif path.startswith("/api/datasets/owner/name/tree") and not path.endswith("/data"):
            self._send(json.dumps([listed]).encode())
        elif path.startswith("/api/datasets/owner/name") and "/tree/" not in path:
            self._send(json.dumps({"_id": "1", "id": "owner/name", "sha": REVISION, "siblings": []}).encode())
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        for name, value in {"ETag": f'"{BLOB}"', "X-Repo-Commit": REVISION, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.server_close()


def test_a_hub_name_is_fetched_once_and_read_offline_after(
    hub: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    def read(**more: str) -> list[list[str | None]]:
        given = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path), **more}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        command = [sys.executable, "-c", READ]
        done = subprocess.run(command, env={**environment, **given}, capture_output=True, text=True, check=True)
        found: list[list[str | None]] = json.loads(done.stdout)
        return found

    online = read()
    assert len(online) == 600 and online[599] == ["owner/name, row 600", None]
    assert online[300] == ["owner/name, row 301", "rejected: is null"]
    hub.shutdown()
    assert read(HF_HUB_OFFLINE="1") == online


def test_a_saved_folder_is_read_with_its_rows_numbered(tmp_path: Path) -> None:
    Dataset.from_list([*ROWS]).save_to_disk(tmp_path / "one")
    rows = [*read_preferences(DatasetData(path=str(tmp_path / "one")))]
    assert [row.number for row in rows] == [*range(1, 601)] and rows[300].fault == "rejected: is null"
    assert isinstance(rows[0].value, TextPair) and rows[0].value.prompt.messages[0].content == "p0"
    assert rows[300].place == f"{tmp_path / 'one'}, row 301"


def test_a_split_is_one_of_the_data_set(tmp_path: Path) -> None:
    turns = {"messages": [{"role": "user", "content": "Hi"}], "best": "c", "worst": "r"}
    parts = {"train": Dataset.from_list([turns]), "test": Dataset.from_list([turns] * 2)}
    DatasetDict(parts).save_to_disk(tmp_path / "two")
    columns = Columns(prompt="messages", chosen="best", rejected="worst")
    data = DatasetData(path=str(tmp_path / "two"), split="test", columns=columns)
    assert [row.fault for row in read_preferences(data)] == [None, None]
    with pytest.raises(UserError, match=r"no split 'dev'; it has 'train', 'test'"):
        [*read_records(data.model_copy(update={"split": "dev"}))]


def test_another_split_than_that_of_one_saved_data_set_is_refused(tmp_path: Path) -> None:
    Dataset.from_list([{"prompt": "p"}]).save_to_disk(tmp_path / "one")
    data = DatasetData(path=str(tmp_path / "one"))
    assert len([*read_records(data)]) == 1
    for split in ("test", "train[:1%]"):
        with pytest.raises(UserError, match="it is one data set, of no split"):
            [*read_records(data.model_copy(update={"split": split}))]


def test_what_is_no_data_set_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be read as a data set"):
        [*read_records(DatasetData(path=str(tmp_path / "folder")))]
