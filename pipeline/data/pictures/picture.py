"""Pictures from other people's files: decoded within bounds, as RGB, brought to a size, and as PNG. Torch-free."""

import base64
import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps, UnidentifiedImageError

# Formats with decoders of PIL's own. Others run programs (EPS), or read several files.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
LARGEST_FILE = 64 << 20  # bytes
MOST_PIXELS = 50_000_000
Fit = Literal["crop", "stretch", "exact"]
PictureCause = Literal["unreadable", "huge", "size"]


class PictureError(ValueError):
    """A picture that cannot be used, and why."""

    def __init__(self, cause: PictureCause, said: str) -> None:
        super().__init__(said)
        self.cause: PictureCause = cause


@dataclass(frozen=True, slots=True)
class Frame:
    """The size that a policy draws, in pixels, and how other sizes are brought to it.

    ``crop``: scaled until it covers the frame, and cut around its middle; ``stretch``: scaled to it, whatever its
    shape; ``exact``: another size is a fault. ``most_pixels``: a picture with more is not decoded.
    """

    height: int
    width: int
    fit: Fit = "crop"
    most_pixels: int = MOST_PIXELS


def picture_digest(data: bytes) -> str:
    """Return the SHA-256 of a picture's file."""
    return hashlib.sha256(data).hexdigest()


def decoded_picture(data: bytes, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Decode a picture as RGB, the way up that its EXIF data says; of several frames the first.

    Transparent parts are white. Raises ``PictureError``; nothing is decoded that has more than ``most_pixels``.
    """
    if len(data) > LARGEST_FILE:
        raise PictureError("huge", f"a file of {len(data) >> 20} MiB; at most {LARGEST_FILE >> 20}")
    with warnings.catch_warnings():
        # The size is judged here, by our own bound; other warnings are about metadata.
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = opened.size
            if width * height > most_pixels:
                raise PictureError("huge", f"{width} x {height} pixels; at most {most_pixels:,}")
            return _rgb(ImageOps.exif_transpose(opened))
        except PictureError:
            raise
        except Image.DecompressionBombError:
            raise PictureError("huge", f"more than {most_pixels:,} pixels") from None
        except Exception as error:  # noqa: BLE001 - what damaged files make PIL's decoders raise
            raise PictureError("unreadable", _reason(data, error)) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # 16 bits a channel: PIL's own conversion would cut, not scale.
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        clear = image.convert("RGBA")
        ground = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, clear).convert("RGB")
    return image.convert("RGB")


def _reason(data: bytes, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        begins = data[:8].hex(" ")
        return f"not a picture ({', '.join(FORMATS)}); it begins with the bytes {begins}" if data else "no bytes"
    said = (str(error).splitlines() or [""])[0][:200]
    return f"damaged: {said or type(error).__name__}"


def fitted(image: Image.Image, frame: Frame) -> Image.Image:
    """Bring ``image`` to the size of ``frame``. Raises ``PictureError`` if it has another and must not."""
    size = (frame.width, frame.height)
    if image.size == size:
        return image
    match frame.fit:
        case "exact":
            have, want = f"{image.width} x {image.height}", f"{frame.width} x {frame.height}"
            raise PictureError("size", f"{have} pixels, but the policy draws {want}; fit: crop or stretch scales it")
        case "stretch":
            return image.resize(size, Image.Resampling.BICUBIC)
        case "crop":
            return ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def png_bytes(image: Image.Image) -> bytes:
    """Encode ``image`` as PNG: the same pixels give the same bytes, without metadata."""
    made = io.BytesIO()
    # A fresh image: the old one's colour profile and text would be written, too.
    plain = Image.frombytes(image.mode, image.size, image.tobytes())
    plain.save(made, "PNG", optimize=False, compress_level=6)
    return made.getvalue()


def data_url(png: bytes) -> str:
    """Return a PNG file as a URL that holds it.

    >>> data_url(b"abc")
    'data:image/png;base64,YWJj'
    """
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
