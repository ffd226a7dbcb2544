"""The URL of a run folder in an object store, the local folder that its work happens in, and the link between them.

Torch-free, and without the store's libraries: a mistake in a URL is reported before anything is loaded.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_json

# Schemes whose writes can be conditional, the package that each needs, and the extra that installs it.
CONDITIONAL: Mapping[str, tuple[str, str]] = {"s3": ("s3fs", "s3")}
ALLOWED = "a local folder, or s3://BUCKET/PREFIX"
# In the work folder: the URL that it belongs to, and what was last seen there.
LINK_FILE = "store.json"
# Names the folder that holds the work folders of all URLs.
WORK_VARIABLE = "PREFLOOP_WORK"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_PART = re.compile(r"[A-Za-z0-9!\-_.*'()=+,&$ ]+")
# ``Path`` merges slashes: a URL that went through it has only one.
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]+):/(?P<rest>.*)", re.DOTALL)


class StoreError(RunError):
    """The store cannot be reached, or refuses: nothing of the local work is lost. ``why`` tells of the store alone."""

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message)
        self.why = why or message


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """A run folder in an object store; ``prefix`` has neither a leading nor a trailing slash."""

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}"

    @property
    def work_folder(self) -> Path:
        """The local folder for this URL: ``runs/SCHEME/BUCKET/PREFIX``, or there in the folder that is set instead."""
        return Path(os.environ.get(WORK_VARIABLE) or "runs", self.scheme, self.bucket, self.prefix).resolve()


def is_url(place: str | Path) -> bool:
    """Return whether ``place`` is written as a URL, also if ``Path`` has merged its slashes."""
    return _URL.fullmatch(str(place)) is not None


def parse_address(field: str, text: str) -> StoreAddress:
    """Return the address that ``text`` names. Raises ``UserError`` that names ``field`` and what is allowed."""
    found = _URL.fullmatch(text)
    if found is None:
        raise UserError(f"{field}: {text}: not a URL; allowed: {ALLOWED}")
    scheme, rest = found["scheme"].lower(), found["rest"].lstrip("/")
    if "@" in rest.partition("/")[0]:
        raise UserError(
            f"{field}: {scheme}://...: a user or password in a URL would be kept in files and logs; allowed: "
            f"{ALLOWED}, with credentials in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE) or fsspec's configuration"
        )
    # A query may hold a key.
    text = f"{text.partition('?')[0]}?..." if "?" in text else text
    _require_conditional(field, scheme, text)
    bucket, _, prefix = rest.partition("/")
    parts = prefix.rstrip("/").split("/")
    if _BUCKET.fullmatch(bucket) is None:
        raise UserError(f"{field}: {text}: {bucket!r} is not the name of a bucket; allowed: {ALLOWED}")
    if any(_PART.fullmatch(part) is None or part.strip(". ") == "" for part in parts):
        raise UserError(
            f"{field}: {text}: the prefix is one or more names between slashes, of letters, digits, spaces and "
            f"!-_.*'()=+,&$, and not only dots; allowed: {ALLOWED}"
        )
    return StoreAddress(scheme, bucket, "/".join(parts))


def _require_conditional(field: str, scheme: str, text: str) -> None:
    if scheme == "file":
        raise UserError(f"{field}: {text}: give a local folder as its path; allowed: {ALLOWED}")
    if scheme not in CONDITIONAL:
        why = f"unknown scheme {scheme!r}"
        if find_spec("fsspec") is not None:
            from fsspec.registry import known_implementations

            if scheme in known_implementations:
                why = f"{scheme} has no conditional writes through fsspec, and a run's lease needs them"
        raise UserError(f"{field}: {text}: {why}; allowed: {ALLOWED}")
    package, extra = CONDITIONAL[scheme]
    if find_spec(package) is None:
        raise UserError(f"{field}: {text}: needs the package {package}: pip install 'prefloop[{extra}]'")


@dataclass(frozen=True)
class StoreLink:
    """What a work folder knows of its store.

    Attributes:
        seen: the ETag and the SHA-256 of the run's own files, such as ``config.yaml``, when both sides were equal.
    """

    address: StoreAddress
    seen: dict[str, tuple[str, str]]

    def write(self, root: Path) -> None:
        """Write the link into the work folder ``root``."""
        write_json(root / LINK_FILE, {"url": str(self.address), "seen": self.seen})


def read_link(root: Path) -> StoreLink | None:
    """Return the link of a work folder; None for a run folder that is only local. Raises ``UserError``."""
    file = root / LINK_FILE
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        seen = {str(name): (str(etag), str(sha256)) for name, (etag, sha256) in plain["seen"].items()}
        url = str(plain["url"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{file}: cannot be read; remove it, and give the run's URL again") from None
    return StoreLink(parse_address(f"{file}: url", url), seen)


def linked(address: StoreAddress) -> StoreLink:
    """Make the work folder of ``address``, or find it; return its link. Raises ``UserError`` if it is another run's."""
    root = address.work_folder
    known = read_link(root)
    if known is not None and known.address != address:
        raise UserError(f"{root}: is the work folder of {known.address}, not of {address}; set {WORK_VARIABLE}")
    if known is not None:
        return known
    if (root / "config.yaml").exists():
        raise UserError(f"{root}: holds a local run, not the work of {address}; set {WORK_VARIABLE}")
    made = StoreLink(address, {})
    try:
        root.mkdir(parents=True, exist_ok=True)
        made.write(root)
    except OSError as error:
        raise UserError(f"{root}: cannot write there ({error.strerror}); set {WORK_VARIABLE}") from None
    return made
