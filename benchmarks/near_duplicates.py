"""Which threshold `alignet dedupe` needs: cosines of altered copies beside those of different photos.

    python -m benchmarks.near_duplicates http://localhost:8000 ../shared/data/images/caltech101 --photos 300

FOLDER has a folder for each kind of thing; pairs of one kind are counted apart.
"""

import argparse
import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from alignet_client import Client


def jpeg(image: Image.Image, quality: int) -> bytes:
    """The image as a JPEG file."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def cropped(image: Image.Image) -> bytes:
    """Without a twentieth at each side."""
    w, h = image.size
    return jpeg(image.crop((w // 20, h // 20, w - w // 20, h - h // 20)), 90)


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "half size": lambda image: jpeg(image.resize((image.width // 2, image.height // 2)), 90),
    "quality 30": lambda image: jpeg(image, 30),
    "cropped": cropped,
}


def main() -> None:
    """Print a line a threshold, for each space."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--space", choices=("aligned", "base"), default="aligned")
    options = parser.parse_args()
    found = sorted(options.folder.rglob("*.jpg"))
    random.seed(0)
    found = random.sample(found, options.photos)
    opened = [Image.open(file).convert("RGB") for file in found]
    with Client(options.url) as client:

        def vectors(files: list[Path] | list[bytes]) -> np.ndarray:
            return client.embed(files, space=options.space, normalize=True, progress=True)

        originals = vectors(found)
        copies = {
            name: (originals * vectors([alter(image) for image in opened])).sum(1) for name, alter in COPIES.items()
        }
    above = np.triu_indices(len(found), 1)
    cosines = (originals @ originals.T)[above]
    kinds = np.array([file.parent.name for file in found])
    same = kinds[above[0]] == kinds[above[1]]
    print(f"{len(found)} photos of {len(set(kinds))} folders, space {options.space}")
    for threshold in (0.9, 0.95, 0.98):
        shares = ", ".join(f"{name} {(cosine >= threshold).mean():.0%}" for name, cosine in copies.items())
        one, two = (cosines[same] >= threshold).sum(), (cosines[~same] >= threshold).sum()
        pairs = f"pairs of one folder {one} of {same.sum()}, of two {two} of {(~same).sum()}"
        print(f">= {threshold}: {shares}; {pairs}")


if __name__ == "__main__":
    main()
