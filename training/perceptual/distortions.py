"""Graded distortions: each takes a strength from 0 to 1, and more strength is less like the original.

    crop          a part is shown; its area shrinks
    warp          a smooth displacement field, as a change of pose would give; its amplitude grows
    colour        hue, saturation and brightness move away, in a direction of their own
    blur          Gaussian; its radius grows
    compression   JPEG; its quality falls
    count         copies of an object are pasted; their number moves away from the reference's

Eight more are each related to one of these six, and held out together with it:

    shift         (crop) the frame moves; what comes in is mirrored
    rotation      (warp) about the middle; corners are mirrored
    perspective   (warp) seen from a side: corners move inwards
    tone          (colour) contrast and gamma move away
    pixelation    (blur) blocks of one colour; they grow
    noise         (compression) Gaussian, of each pixel and channel; its deviation grows
    occlusion     (count) a rectangle of one colour hides a part; its area grows
    shuffle       (count) tiles change places; their number grows

What a distortion draws at random (place, field, direction) it draws from the generator it is given, the same at
every strength: with equal generators the weaker of two is nearer without doubt.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import map_coordinates, zoom
from torchvision.transforms.v2 import functional

KINDS = ("crop", "warp", "colour", "blur", "compression", "count")

RELATED = {
    "shift": "crop",
    "rotation": "warp",
    "perspective": "warp",
    "tone": "colour",
    "pixelation": "blur",
    "noise": "compression",
    "occlusion": "count",
    "shuffle": "count",
}
"""Kinds besides these, and which of them each is related to."""

PASTED = 3
"""Objects that are pasted into the reference of a trial about their count."""

COUNTS = 8
"""Objects that full strength adds; also the steps of strength in which the count can differ."""


def crop(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """A part of 100 to 15 % of the area, sides in proportion."""
    side = float(np.sqrt(1 - 0.85 * strength))
    across, down = rng.random(2)
    width, height = (max(1, round(side * whole)) for whole in image.size)
    left, top = round(across * (image.width - width)), round(down * (image.height - height))
    return image.crop((left, top, left + width, top + height))


def warp(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Displaced by up to a fifth of the shorter side; what leaves the image is mirrored."""
    height, width = image.height, image.width
    coarse = rng.uniform(-1, 1, (2, 4, 4))
    field = np.stack([zoom(part, (height / 4, width / 4), order=3, mode="nearest", grid_mode=True) for part in coarse])
    amplitude = 0.2 * strength * min(height, width) / max(float(np.abs(field).max()), 1e-6)
    return _sampled(image, np.mgrid[:height, :width] + amplitude * field[:, :height, :width])


def shift(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """By up to half of each side, in a random direction; what comes in is mirrored."""
    angle = rng.uniform(0, 2 * np.pi)
    by = 0.5 * strength * np.array([image.height * np.sin(angle), image.width * np.cos(angle)])
    return _sampled(image, np.mgrid[: image.height, : image.width] + by[:, None, None])


def rotation(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """By up to 60 degrees about the middle, either way; corners are mirrored."""
    angle = rng.choice([-1.0, 1.0]) * strength * np.pi / 3
    middle = np.array([image.height - 1, image.width - 1])[:, None, None] / 2
    down, across = np.mgrid[: image.height, : image.width] - middle
    cos, sin = np.cos(angle), np.sin(angle)
    return _sampled(image, np.stack([cos * down - sin * across, sin * down + cos * across]) + middle)


def perspective(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Corners move inwards by up to 35 % of each side, each by its own share."""
    width, height = image.size
    inwards = rng.uniform(0, 1, (4, 2)) * 0.35 * strength * np.array([width, height])
    corners = np.array([[0, 0], [0, height], [width, height], [width, 0]])
    corners = corners + inwards * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    return image.transform(image.size, Image.Transform.QUAD, tuple(corners.ravel()), Image.Resampling.BILINEAR)


def colour(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Hue by up to 70 degrees, saturation and brightness by up to 60 %, in a random direction."""
    hue, saturation, brightness = rng.choice([-1.0, 1.0], 3) * rng.uniform(0.4, 1.0, 3) * strength
    image = functional.adjust_hue(image, 0.195 * hue)
    image = functional.adjust_saturation(image, 1 + 0.6 * saturation)
    out: Image.Image = functional.adjust_brightness(image, 1 + 0.6 * brightness)
    return out


def tone(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Contrast by up to 75 %, gamma by up to 1.6 octaves, each in a random direction."""
    contrast, gamma = rng.choice([-1.0, 1.0], 2) * np.array([0.75, 1.6 * rng.uniform(0.4, 1.0)]) * strength
    image = functional.adjust_contrast(image, 1 + contrast)
    out: Image.Image = functional.adjust_gamma(image, 2**gamma)
    return out


def blur(image: Image.Image, strength: float, _: np.random.Generator) -> Image.Image:
    """A radius of up to 4 % of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(0.04 * strength * min(image.size)))


def pixelation(image: Image.Image, strength: float, _: np.random.Generator) -> Image.Image:
    """Blocks with a side of up to 8 % of the shorter side."""
    side = max(1.0, 0.08 * strength * min(image.size))
    across, down = (max(1, round(whole / side)) for whole in image.size)
    blocks = image.resize((across, down), Image.Resampling.BOX)
    return blocks.resize(image.size, Image.Resampling.NEAREST)


def noise(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian, with a deviation of up to 70 of 255."""
    pixels = np.asarray(image) + rng.normal(0, 70 * strength, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def occlusion(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """A rectangle of up to 60 % of the area, in a random colour; a smaller one lies inside a larger."""
    share, (across, down) = float(np.sqrt(0.6 * strength)), rng.random(2)
    width, height = (max(1, round(share * whole)) for whole in image.size)
    left, top = round(across * (image.width - width)), round(down * (image.height - height))
    red, green, blue = rng.integers(0, 256, 3).tolist()
    out = image.copy()
    out.paste((red, green, blue), (left, top, left + width, top + height))
    return out


def shuffle(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Up to all of 6 x 6 tiles go round in a circle, two at least."""
    width, height = image.width // 6, image.height // 6
    tiles = rng.permutation(36)[: max(2, round(36 * strength))]
    places = [(width * across, height * down) for down, across in zip(*np.divmod(tiles, 6), strict=True)]
    out = image.copy()
    for (left, top), place in zip(places, np.roll(places, 1, axis=0).tolist(), strict=True):
        out.paste(image.crop((left, top, left + width, top + height)), tuple(place))
    return out


def compression(image: Image.Image, strength: float, _: np.random.Generator) -> Image.Image:
    """JPEG of quality 60 down to 1, in equal ratios."""
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=max(1, round(60 ** (1 - strength))))
    return Image.open(packed).convert("RGB")


def _sampled(image: Image.Image, at: NDArray[np.float64]) -> Image.Image:
    """The image at positions [2, height, width] in pixels, down and across; beyond its borders it is mirrored."""
    pixels = np.asarray(image)
    moved = [map_coordinates(pixels[..., channel], at, order=1, mode="mirror") for channel in range(3)]
    return Image.fromarray(np.stack(moved, -1))


DISTORTIONS: dict[str, Callable[[Image.Image, float, np.random.Generator], Image.Image]] = {
    "crop": crop,
    "warp": warp,
    "colour": colour,
    "blur": blur,
    "compression": compression,
    "shift": shift,
    "rotation": rotation,
    "perspective": perspective,
    "tone": tone,
    "pixelation": pixelation,
    "noise": noise,
    "occlusion": occlusion,
    "shuffle": shuffle,
}
"""All but `count`, which needs a second image."""


def pasted(image: Image.Image, other: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """With copies of an object, an ellipse out of the middle of another image; `PASTED` of them at strength 0.

    Places come from one sequence, so that the objects of a weaker image are among those of a stronger one.
    """
    side = max(2, round(0.18 * min(image.size)))
    cut = min(other.size) // 2
    left, top = (other.width - cut) // 2, (other.height - cut) // 2
    piece = other.crop((left, top, left + max(1, cut), top + max(1, cut))).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    mask = Image.new("L", piece.size, 0)
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    out = image.copy()
    for across, down in places(PASTED + int(np.ceil(COUNTS * strength - 1e-9)), rng):
        out.paste(piece, (round(across * (image.width - side)), round(down * (image.height - side))), mask)
    return out


def places(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The first n of a random order of the 4 x 4 cells, each moved a little, so that objects do not hide each other."""
    cells = np.stack(np.divmod(rng.permutation(16), 4), 1) + rng.uniform(0.35, 0.65, (16, 2))
    return ((cells - 0.35) / 3.3)[:n]
