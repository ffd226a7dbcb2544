"""The secret of Prefect's servers: who may read its file, and who gets it."""

import os
import re
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_HOME,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)

from flows.prefect_api import access
from flows.prefect_api.access import Api, connected, lasting_api, lasting_secret, read_secret
from flows.prefect_api.starting import _further_origins
from pipeline.errors import RunError, UserError

URL = "http://127.0.0.1:4321/api"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_the_secret_is_made_once_for_this_user_alone(home: Path) -> None:
    before = os.umask(0)
    try:
        with temporary_settings({PREFECT_HOME: home}):
            secret = lasting_secret()
            assert lasting_secret() == secret
    finally:
        os.umask(before)
    file = home / "prefloop.secret"
    assert [one.name for one in home.iterdir()] == ["prefloop.secret"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text() == secret + "\n"
    assert re.fullmatch(r"prefloop:[\w-]{43}", secret)
    file.unlink()
    with temporary_settings({PREFECT_HOME: home}):
        assert lasting_secret() != secret


def test_a_secret_of_the_user_s_own_is_used_and_makes_no_file(home: Path) -> None:
    with temporary_settings({PREFECT_HOME: home, PREFECT_SERVER_API_AUTH_STRING: "me:my-own"}):
        assert lasting_secret() == "me:my-own" and not (home / "prefloop.secret").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o666])
def test_a_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "secret"
    file.write_text("prefloop:0123456789abcdef\n")
    file.chmod(mode)
    with pytest.raises(UserError, match=rf"secret: its mode is {mode:04o}, so others may have read it; remove it"):
        read_secret(file)
    file.chmod(0o600)
    assert read_secret(file) == "prefloop:0123456789abcdef"


@pytest.mark.parametrize("text", [b"", b"short", b"two words are no secret", b"\xff" * 40, b"a" * 20 + b"\0"])
def test_a_file_without_a_secret_is_refused(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(text)
    file.chmod(0o600)
    with pytest.raises(UserError, match="holds no secret"):
        read_secret(file)


def test_links_folders_and_other_users_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text("prefloop:0123456789abcdef\n")
    file.chmod(0o600)
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, said in (("link", "cannot be read"), ("pipe", "not a file"), (".", "not a file")):
        with pytest.raises(UserError, match=said):
            read_secret(tmp_path / name)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UserError, match=r"belongs to user [0-9]+, not to 12345"):
        read_secret(file)


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "prefloop.secret").symlink_to(tmp_path / "nowhere" / "else")
    with temporary_settings({PREFECT_HOME: home}), pytest.raises(UserError, match=r"prefloop.secret: cannot be"):
        lasting_secret()


def test_each_server_gets_the_secret_that_is_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "is_healthy", lambda url: True)
    monkeypatch.setattr(access, "is_ours", lambda port: True)
    with temporary_settings({PREFECT_HOME: home}):
        assert lasting_api() is None
        secret = lasting_secret()
        access.url_file().write_text(URL + "\n")
        assert lasting_api() == Api(URL, secret)
        for configured, given, wanted in (
            (URL, None, secret),
            ("http://localhost:4321/api/", None, secret),
            ("http://other.example/api", None, None),
            ("http://other.example/api", "them:theirs", "them:theirs"),
        ):
            with temporary_settings({PREFECT_API_URL: configured, PREFECT_API_AUTH_STRING: given}):
                assert lasting_api() == Api(configured, wanted)
        monkeypatch.setattr(access, "is_ours", lambda port: port != 4321)
        assert lasting_api() is None, "somebody else's server has taken the port"
        with temporary_settings({PREFECT_API_URL: URL}):
            assert lasting_api() == Api(URL, None)
    assert secret not in repr(Api(URL, secret))


def test_every_page_is_not_allowed_by_the_user_s_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "https://a.example/, http://b.example")
    assert _further_origins() == ["https://a.example", "http://b.example"]
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "*")
    with pytest.raises(UserError, match=r"PREFECT_SERVER_CORS_ALLOWED_ORIGINS: '\*' lets every web page"):
        _further_origins()


@pytest.mark.parametrize(
    "named",
    [
        "prefect.example.com",
        "https://",
        "http://[::1",
        "http://h:99999",
        "https://a.b/path",
        "https://u@a.b",
        "ftp://a.b",
    ],
)
def test_what_is_no_origin_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", f"https://a.example, {named}")
    with pytest.raises(UserError, match=r"^PREFECT_SERVER_CORS_ALLOWED_ORIGINS: '.*': not an origin such as"):
        _further_origins()


def test_origins_have_hosts_and_ports_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "http://[::1]:80/,https://A.example:8443")
    assert _further_origins() == ["http://[::1]:80", "https://a.example:8443"]


class Answering(BaseHTTPRequestHandler):
    """A server that answers every request with the status that its path names."""

    def do_GET(self) -> None:
        self.send_error(int(self.path.split("/")[1]))

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def answering() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (
            401,
            UserError,
            r"^PREFECT_API_AUTH_STRING: .*/401/api refuses it, .*401 Unauthorized\); .*prefloop.secret$",
        ),
        (403, UserError, r"^PREFECT_API_AUTH_STRING: .*/403/api refuses it, .* \(403 Forbidden\)"),
        (500, RunError, r"^Prefect's server at .*/500/api failed \(500 Internal Server Error\)$"),
    ],
)
def test_a_server_that_refuses_or_fails_is_told_in_a_line(
    answering: str, home: Path, status: int, error: type[Exception], said: str
) -> None:
    with (
        temporary_settings({PREFECT_HOME: home}),
        pytest.raises(error, match=said),
        connected(Api(f"{answering}/{status}/api", "me:wrong")),
        get_client(sync_client=True) as client,
    ):
        client.read_work_pool("prefloop")


def test_a_server_out_of_reach_is_told_in_a_line(home: Path) -> None:
    with (
        temporary_settings({PREFECT_HOME: home, PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.raises(RunError, match=r"^Prefect's server at http://127.0.0.1:9/api is out of reach \("),
        connected(Api("http://127.0.0.1:9/api")),
        get_client(sync_client=True) as client,
    ):
        client.read_work_pool("prefloop")
