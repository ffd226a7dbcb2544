"""Pictures: decoded within bounds, brought to a size, and encoded alike."""

import io
import struct
import zlib

import pytest
from PIL import Image

from pipeline.data.pictures.picture import Frame, PictureError, decoded_picture, fitted, png_bytes
from tests.support.pictures import BLUE, RED, halves, picture


def test_every_format_becomes_rgb_pixels() -> None:
    for form in ("PNG", "BMP", "TIFF", "GIF", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        assert decoded_picture(picture(BLUE, form=form, **options)).getpixel((3, 3)) == BLUE, form
    red = decoded_picture(picture(RED, form="JPEG", quality=95)).getpixel((3, 3))
    assert isinstance(red, tuple) and red[0] > 240 and max(red[1:]) < 16


def test_transparent_parts_are_white_and_grey_is_scaled_from_16_bits() -> None:
    made = io.BytesIO()
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(made, "PNG")
    assert decoded_picture(made.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    made = io.BytesIO()
    Image.new("I;16", (2, 2), 32896).save(made, "PNG")
    assert decoded_picture(made.getvalue()).getpixel((0, 0)) == (128, 128, 128)


def test_exif_turns_the_picture() -> None:
    image = Image.open(io.BytesIO(halves(RED, BLUE)))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    made = io.BytesIO()
    image.save(made, "PNG", exif=exif)
    assert decoded_picture(made.getvalue()).getpixel((0, 0)) == BLUE


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says that it has side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_000, 12_000, 100_000])
def test_a_bomb_is_told_by_its_header_and_not_decoded(side: int) -> None:
    with pytest.raises(PictureError, match="pixels") as caught:
        decoded_picture(bomb(side))
    assert caught.value.cause == "huge"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture .* begins with the bytes 3c 73 76 67"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (picture(RED, (64, 64), "BMP")[:-500], "damaged"),
        (halves(RED, BLUE, (64, 64))[:60], "damaged|not a picture"),
    ],
)
def test_what_is_no_picture_is_told(data: bytes, said: str) -> None:
    with pytest.raises(PictureError, match=said) as caught:
        decoded_picture(data)
    assert caught.value.cause == "unreadable"


def test_other_sizes_are_cut_around_the_middle_or_stretched_or_refused() -> None:
    wide = decoded_picture(halves(RED, BLUE, (32, 8)))
    cropped = fitted(wide, Frame(8, 8, "crop"))
    assert cropped.size == (8, 8)
    assert cropped.getpixel((0, 0)) == RED and cropped.getpixel((7, 7)) == BLUE
    stretched = fitted(wide, Frame(4, 8, "stretch"))
    assert stretched.size == (8, 4)
    with pytest.raises(PictureError, match="32 x 8 pixels, but the policy draws 8 x 8") as caught:
        fitted(wide, Frame(8, 8, "exact"))
    assert caught.value.cause == "size"
    assert fitted(cropped, Frame(8, 8, "exact")) is cropped


def test_a_png_holds_the_pixels_and_no_more() -> None:
    made = io.BytesIO()
    image = decoded_picture(halves(RED, BLUE))
    image.info["icc_profile"] = b"profile"
    image.info["comment"] = "made by"
    image.save(made, "PNG", icc_profile=b"profile")
    plain = png_bytes(image)
    assert b"iCCP" in made.getvalue()
    assert b"iCCP" not in plain and b"made by" not in plain
    assert decoded_picture(plain).tobytes() == image.tobytes()
    assert png_bytes(decoded_picture(plain)) == plain
