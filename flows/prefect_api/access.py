"""Who may talk to Prefect's server: its address, and the secret that it asks for.

The servers of ``prefloop up`` and ``ui`` share a secret in a file of the Prefect home that only its owner can read. The
private server of a run has one of its own, which is in no file.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)

from pipeline.errors import RunError, UserError
from pipeline.sampling.ports import is_ours

SECRET_FILE = "prefloop.secret"  # noqa: S105 - the name of a file
REACH_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
_REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


@dataclass(frozen=True)
class Api:
    """The URL of a Prefect API, and the auth string that it asks for; None if it asks for none that we know."""

    url: str
    secret: str | None = field(default=None, repr=False)

    def environment(self) -> dict[str, str]:
        """Return the variables with which a process talks to it."""
        known = {} if self.secret is None else {"PREFECT_API_AUTH_STRING": self.secret}
        return {"PREFECT_API_URL": self.url, **known}

    def settings(self) -> dict[Any, str]:
        """Return the settings with which this process talks to it, for ``temporary_settings``."""
        known = {} if self.secret is None else {PREFECT_API_AUTH_STRING: self.secret}
        return {PREFECT_API_URL: self.url, **known}


def lasting_api() -> Api | None:
    """Return the API of a server that outlives this command, or None.

    It is ``PREFECT_API_URL``, or the URL that ``prefloop up`` or ``ui`` wrote to the same Prefect home.

    Raises ``UserError`` if the secret's file is not this user's alone.
    """
    noted = _noted()
    configured: str | None = PREFECT_API_URL.value()
    given: str | None = PREFECT_API_AUTH_STRING.value()
    if configured:
        own = noted is not None and _plain(configured) == _plain(noted) and is_own(noted)
        return Api(configured, given or (known_secret() if own else None))
    if noted is None or not is_own(noted) or not is_healthy(noted):
        return None
    return Api(noted, known_secret() or given)


@contextmanager
def connected(api: Api) -> Iterator[None]:
    """Send this process's requests to ``api`` within the block.

    Raises:
        UserError: the server refuses the secret, or it is needed and not known.
        RunError: the server is out of reach, or fails.
    """
    try:
        with temporary_settings(api.settings()), said_plainly():
            yield
    except httpx.TransportError as error:
        raise RunError(f"Prefect's server at {api.url} is out of reach ({error})") from error
    except httpx.HTTPStatusError as error:
        with secret_refused(api.url, error):
            raise RunError(f"Prefect's server at {api.url} failed ({status_of(error)})") from error


@contextmanager
def secret_refused(url: str, error: httpx.HTTPStatusError) -> Iterator[None]:
    """Raise ``UserError`` in place of the block if ``error`` says that the server at ``url`` refuses the secret."""
    if error.response.status_code in _REFUSED:
        raise UserError(
            f"PREFECT_API_AUTH_STRING: Prefect's server at {url} refuses it, or asks for it and it is not set "
            f"({status_of(error)}); that of 'prefloop up' and 'ui' is in {secret_file()}"
        ) from error
    yield


def status_of(error: httpx.HTTPStatusError) -> str:
    """Return an answer's status, such as ``500 Internal Server Error``."""
    return f"{error.response.status_code} {error.response.reason_phrase}"


@contextmanager
def said_plainly() -> Iterator[None]:
    """Raise the error that Prefect's version check, its first request to a server, hides in another error."""
    try:
        yield
    except RuntimeError as error:
        hidden = error.__cause__
        if isinstance(hidden, (httpx.TransportError, httpx.HTTPStatusError)) and "reach API" in str(error):
            raise hidden from None
        raise


def is_healthy(url: str) -> bool:
    """Return whether a server answers at ``url``; it asks for no secret then."""
    try:
        # A proxy for outside traffic must not handle this machine's own ports.
        with httpx.Client(trust_env=not _is_local(url), timeout=_ANSWER_SECONDS) as client:
            return client.get(f"{url}/health").status_code == httpx.codes.OK
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def is_own(url: str) -> bool:
    """Return whether a server of this user has the port: another's must not get the secret."""
    try:
        port = httpx.URL(url).port
    except httpx.InvalidURL:
        return False
    return port is not None and is_ours(port)


def prefect_home() -> Path:
    """Return Prefect's own folder, where its database is; made if it is not there."""
    home: Path = PREFECT_HOME.value()
    home.mkdir(parents=True, exist_ok=True)
    return home


def url_file() -> Path:
    """Return the file in which a lasting server writes its URL while it runs."""
    return prefect_home() / "prefloop.url"


def secret_file() -> Path:
    """Return the file of the lasting servers' secret."""
    return prefect_home() / SECRET_FILE


def new_secret() -> str:
    """Return a random auth string in the form that Prefect asks for, ``user:password``."""
    return f"prefloop:{secrets.token_urlsafe(32)}"


def lasting_secret() -> str:
    """Return the lasting servers' secret: ``PREFECT_SERVER_API_AUTH_STRING``, else the file's, which is made if needed.

    Raises ``UserError`` if the file is not this user's alone, or cannot be made.
    """
    known = known_secret()
    if known is not None:
        return known
    file, made = secret_file(), new_secret()
    scratch = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:  # noqa: PTH123
            handle.write(made + "\n")
        # Unlike a rename, a link fails if another server has just made the file.
        with suppress(FileExistsError):
            file.hardlink_to(scratch)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from None
    finally:
        scratch.unlink(missing_ok=True)
    return read_secret(file) or made


def known_secret() -> str | None:
    """Return the secret that ``lasting_secret`` returns; None if there is none yet."""
    configured: str | None = PREFECT_SERVER_API_AUTH_STRING.value()
    return configured or read_secret(secret_file())


def read_secret(file: Path) -> str | None:
    """Return the secret in ``file``, or None if there is no file.

    Raises ``UserError`` if others can read or write it, if it belongs to another user, or if it holds no secret.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); remove it, and 'prefloop up' makes another"
        ) from None
    try:
        _require_own(file, os.fstat(descriptor))
        text = os.read(descriptor, 4096).decode("utf-8", "replace").strip()
    finally:
        os.close(descriptor)
    if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
        raise UserError(f"{file}: holds no secret (16 to 4096 letters, without spaces); remove it")
    return text


def _require_own(file: Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"{file}: not a file; remove it, and 'prefloop up' makes another")
    if about.st_uid != os.geteuid():
        raise UserError(f"{file}: belongs to user {about.st_uid}, not to {os.geteuid()}; set PREFECT_HOME to your own")
    if about.st_mode & 0o077:
        raise UserError(
            f"{file}: its mode is {stat.S_IMODE(about.st_mode):04o}, so others may have read it; remove it, and "
            "'prefloop up' makes another (or set PREFECT_SERVER_API_AUTH_STRING where files have no modes)"
        )


def _noted() -> str | None:
    try:
        return url_file().read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _plain(url: str) -> str:
    return url.rstrip("/").replace("//localhost:", "//127.0.0.1:")


def _is_local(url: str) -> bool:
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
