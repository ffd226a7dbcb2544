"""Images in the cells of tables: as bytes, or as a path within a folder; never fetched. Torch-free.

An image is named by the hash of its pixels at the size of the frame, so that two files with one picture are one image.
"""

import hashlib
import re
from pathlib import Path

from PIL import Image

from pipeline.data.forms.cells import FaultError, RowCause
from pipeline.data.pictures.picture import LARGEST_FILE, Frame, PictureError, decoded_picture, fitted

_URL = re.compile(r"[a-z][a-z0-9+.-]{1,20}:(?://|[a-z]+/)", re.IGNORECASE)
_CAUSES: dict[str, RowCause] = {"unreadable": "unreadable_image", "huge": "huge_image", "size": "image_size"}


class PictureCells:
    """Read the images of one table."""

    def __init__(self, root: Path, frame: Frame) -> None:
        """``root``: the folder that paths are relative to, and must lie in."""
        self._root = root.resolve()
        self._frame = frame

    def image(self, cell: object, column: str) -> Image.Image:
        """Return the image in ``cell``, brought to the frame. Raises ``FaultError`` that names ``column``."""
        try:
            data = self._bytes(cell, column)
            return fitted(decoded_picture(data, self._frame.most_pixels), self._frame)
        except PictureError as error:
            raise FaultError(f"{column}: {error}", _CAUSES[error.cause]) from None

    def _bytes(self, cell: object, column: str) -> bytes:
        path = cell
        if isinstance(cell, dict):
            data, path = cell.get("bytes"), cell.get("path")
            if isinstance(data, bytes | bytearray | memoryview) and len(data):
                return bytes(data)
        if isinstance(path, bytes | bytearray | memoryview):
            return bytes(path)
        if not isinstance(path, str) or not path:
            said = "is empty" if path is None or path == "" else f"must be bytes or a path, not {type(cell).__name__}"
            raise FaultError(f"{column}: {said}", "missing_image")
        if _URL.match(path):
            raise FaultError(
                f"{column}: {path[:80]!r} is a URL; nothing is fetched: store the image, and give its bytes or path",
                "image_url",
            )
        return self._file(path, column)

    def _file(self, path: str, column: str) -> bytes:
        try:
            file = (self._root / path).resolve()
            if not file.is_relative_to(self._root):
                raise FaultError(f"{column}: {path[:120]!r} is outside {self._root} (root)", "missing_image")
            if not file.is_file():
                raise FaultError(f"{column}: no file {path[:120]!r} in {self._root} (root)", "missing_image")
            if file.stat().st_size > LARGEST_FILE:
                raise PictureError("huge", f"{path[:120]}: a file of {file.stat().st_size >> 20} MiB")
            return file.read_bytes()
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, PictureError):
                raise
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise FaultError(f"{column}: {path[:120]!r} cannot be read ({reason})", "missing_image") from None


def picture_name(image: Image.Image) -> str:
    """Return the name of an image in rows: 32 hexadecimal digits of the hash of its size and pixels."""
    size = f"{image.width} {image.height} ".encode()
    return hashlib.sha256(size + image.tobytes()).hexdigest()[:32]
