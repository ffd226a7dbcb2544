"""Images small enough for a page or an artefact, as URLs that hold them: nothing is fetched."""

import base64
import io

from PIL import Image

from pipeline.data.pictures.picture import PictureError, decoded_picture, png_bytes

# Sides in pixels of the thumbnails that are tried, the largest first, and the quality of each.
THUMBNAIL_SIZES = ((160, 80), (128, 75), (96, 70), (64, 60), (40, 50))
# Longest side of an image that is shown pixel by pixel.
_PIXEL_ART = 32


def thumbnail(png: bytes, side: int, quality: int) -> str:
    """Return an image as a data URL; a small one as it is, others as WebP with at most ``side`` pixels a side."""
    image = _readable(png)
    if max(image.size) <= _PIXEL_ART:
        return _url("png", png_bytes(image))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    image.save(made, "WEBP", quality=quality)
    return _url("webp", made.getvalue())


def contact_sheet(rows: list[list[bytes]], side: int, gap: int = 2) -> str:
    """Return images in rows as one PNG, each at most ``side`` pixels a side, as a data URL."""
    columns = max(map(len, rows))
    cell = side + gap
    sheet = Image.new("RGB", (columns * cell - gap, len(rows) * cell - gap), (128, 128, 128))
    for down, row in enumerate(rows):
        for across, png in enumerate(row):
            image = _readable(png)
            times = max(1, side // max(image.size))
            resized = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
            resized.thumbnail((side, side), Image.Resampling.LANCZOS)
            sheet.paste(resized, (across * cell, down * cell))
    return _url("png", png_bytes(sheet))


def _readable(png: bytes) -> Image.Image:
    """Return the image; a grey one for a damaged file, which must not cost the page."""
    try:
        return decoded_picture(png)
    except PictureError:
        return Image.new("RGB", (8, 8), (128, 128, 128))


def _url(form: str, data: bytes) -> str:
    return f"data:image/{form};base64," + base64.b64encode(data).decode("ascii")
