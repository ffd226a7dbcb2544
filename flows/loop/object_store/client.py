"""Reads and writes of one run's objects, with conditional writes, by fsspec's S3 file system.

Import this module only where a run has a URL: the packages are those of the extra ``s3``. Credentials, region and
endpoint come from the environment or fsspec's configuration. Torch-free.
"""

import asyncio
import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError, ClientError

from flows.loop.object_store.address import StoreAddress, StoreError
from pipeline.errors import UserError

# Seconds until a server that does not answer counts as gone, and tries before it does.
_PATIENT: Mapping[str, Any] = {
    "connect_timeout": 5,
    "read_timeout": 20,
    "retries": {"mode": "standard", "max_attempts": 2},
}
_LOST = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_REFUSED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_ABSENT = {"NoSuchKey", "404"}
# Errors of this machine's disk.
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EISDIR, errno.ENOTDIR}
_FAULTS = (OSError, BotoCoreError, ClientError, asyncio.TimeoutError)


class LostWriteError(Exception):
    """A conditional write found another object than it expected."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object: ``etag`` changes with its content; ``bytes`` is its size."""

    etag: str
    bytes: int


class ObjectStore:
    """The objects below the prefix of ``address``, by their names in the run folder."""

    def __init__(self, address: StoreAddress, root: Path) -> None:
        """``root``: the run's work folder, for messages."""
        self.address = address
        self._root = root
        given = fsspec.config.conf.get(address.scheme, {})
        options = {} if "config_kwargs" in given else {"config_kwargs": _PATIENT}
        self._files = fsspec.filesystem(address.scheme, use_listings_cache=False, **options)
        self._files.retries = 2

    def __str__(self) -> str:
        return str(self.address)

    def listing(self) -> dict[str, StoredObject]:
        """Return all objects of the run by name."""
        base = f"{self.address.bucket}/{self.address.prefix}/"
        with self._told("listing its objects"):
            found = self._files.find(base, detail=True)
        return {
            name.removeprefix(base): StoredObject(str(facts["ETag"]), int(facts["size"]))
            for name, facts in found.items()
            # A prefix that objects share is listed as a folder.
            if facts.get("type") == "file"
        }

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return an object's content and ETag; None if it does not exist."""
        try:
            with self._told(f"reading {name}"):
                answer = self._files.call_s3("get_object", **self._place(name))
                return self._content(answer), str(answer["ETag"])
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> str:
        """Write an object that must not exist; return its ETag. Raises ``LostWriteError``."""
        return self._put(name, content, IfNoneMatch="*")

    def replace(self, name: str, content: bytes, etag: str) -> str:
        """Write an object whose ETag must be ``etag``; return the new one. Raises ``LostWriteError``."""
        try:
            return self._put(name, content, IfMatch=etag)
        except FileNotFoundError:
            raise LostWriteError(name) from None

    def write(self, name: str, content: bytes) -> str:
        """Write an object, whatever is there; return its ETag."""
        return self._put(name, content)

    def upload(self, name: str, file: Path, sha256: str) -> None:
        """Write ``file``, in parts if it is large, unless the object has its SHA-256 already.

        Raises:
            LostWriteError: the object did not exist, and another process has written it meanwhile.
        """
        with self._told(f"publishing {name}"):
            there = self._sha256(name)
            if there == sha256:
                return
            mode = "create" if there is None else "overwrite"
            self._files.put_file(str(file), self._path(name), mode=mode, Metadata={"sha256": sha256})

    def download(self, name: str, file: Path) -> None:
        """Write an object to ``file``. Raises ``FileNotFoundError`` if it does not exist."""
        with self._told(f"fetching {name}"):
            self._files.get_file(self._path(name), str(file))

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects, in this order."""
        for name in names:
            with self._told(f"removing {name}"):
                self._files.call_s3("delete_object", **self._place(name))

    def copy(self, name: str, other: str) -> None:
        """Copy an object within the store."""
        with self._told(f"copying {name}"):
            self._files.copy(self._path(name), self._path(other))

    def _put(self, name: str, content: bytes, **condition: str) -> str:
        with self._told(f"writing {name}"):
            return str(self._files.call_s3("put_object", **self._place(name), Body=content, **condition)["ETag"])

    def _sha256(self, name: str) -> str | None:
        """The SHA-256 that the object was uploaded with, empty if it does not say; None if there is no object."""
        try:
            answer = self._files.call_s3("head_object", **self._place(name))
        except FileNotFoundError:
            return None
        return str(answer.get("Metadata", {}).get("sha256", ""))

    def _content(self, answer: Mapping[str, Any]) -> bytes:
        async def read() -> bytes:
            async with answer["Body"] as body:
                return bytes(await body.read())

        return bytes(fsspec.asyn.sync(self._files.loop, read))

    def _place(self, name: str) -> dict[str, str]:
        return {"Bucket": self.address.bucket, "Key": f"{self.address.prefix}/{name}"}

    def _path(self, name: str) -> str:
        return f"{self.address.bucket}/{self.address.prefix}/{name}"

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn the libraries' errors into those that this class raises; a missing bucket is a ``UserError``."""
        try:
            yield
        except _FAULTS as error:
            if isinstance(error, OSError) and error.errno in _LOCAL and error.__cause__ is None:
                raise
            code, message = _said(error)
            if code in _LOST or isinstance(error, FileExistsError):
                raise LostWriteError(f"{self.address}: {what}: {message}") from None
            if code == "NoSuchBucket":
                raise UserError(f"{self.address}: there is no bucket {self.address.bucket!r}; make it first") from None
            if code in _ABSENT or isinstance(error, FileNotFoundError):
                raise FileNotFoundError(what) from None
            verdict = "refuses" if code in _REFUSED or isinstance(error, PermissionError) else "cannot be used"
            why = f"{self.address}: the store {verdict} ({code or type(error).__name__}: {message})"
            raise StoreError(
                f"{why}; the run was {what}. All local work is intact in {self._root}; the same command continues from "
                "there, and publishes what is not yet in the store, once it answers",
                why,
            ) from None


def _said(error: BaseException) -> tuple[str, str]:
    """The store's code for an error, empty if it gave none, and the first line of the message."""
    cause: BaseException | None = error
    code = ""
    while cause is not None and not code:
        if isinstance(cause, ClientError):
            code = str(cause.response.get("Error", {}).get("Code", ""))
        cause = cause.__cause__
    return code, (str(error).splitlines() or [""])[0][:300]
