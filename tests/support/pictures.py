"""Small pictures, made by PIL itself."""

import io

from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(
    colour: tuple[int, int, int], size: tuple[int, int] = (8, 8), form: str = "PNG", **options: object
) -> bytes:
    """A file of one colour; ``size``: width and height."""
    made = io.BytesIO()
    Image.new("RGB", size, colour).save(made, form, **options)
    return made.getvalue()


def halves(left: tuple[int, int, int], right: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG whose left half has one colour, and its right half another."""
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()
