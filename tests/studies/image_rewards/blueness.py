"""A reward of blueness."""


def reward(prompt, image, answer):  # type: ignore[no-untyped-def]
    """Return how much more of blue a picture has than of red and green."""
    red, green, blue = (float(image[..., channel].mean()) / 255 for channel in range(3))
    return blue - (red + green) / 2
