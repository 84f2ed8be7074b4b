"""Made-up data of photos one has, for what no judged set is at hand: items to retrieve, and objects to count.

    python -m benchmarks.perceptual --data DATA --out DIR --dataset caltech101 --shares 0.5 0.1 0.4

DIR is a data folder of `python -m training evaluate`, of the photos of DATA/images.csv that
`python -m training perceptual RECIPE generated:DATA/images.csv` with the same shares and seed keeps for reporting, so
that no training of that run has seen one:

- images.csv: these photos with their classes, for retrieval and nearest neighbours
- instances/views: each query is a photo changed by three kinds of distortion, the gallery holds the photos of its class
  and of all others as they are; an item is one photo
- counting/pasted: photos with 3 to 11 copies of an object, cut out of another photo; half to learn from
- two-alternative/reported: new trials on these photos, with settings that `--gap`, `--own-draw` and `--per-image` name

What is drawn depends on the seed alone.
"""

import argparse
import csv
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training.images import read_manifest
from training.perceptual.class_triplets import split_images
from training.perceptual.distortions import COUNTS, DISTORTIONS, KINDS, PASTED, pasted
from training.perceptual.generated import GeneratorConfig
from training.stage import write_json
from training.tables import read_rows

CHANGES = 3
"""Kinds of distortion that a query has gone through."""


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--dataset", help="photos of this data set of images.csv alone; all if not given")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--counted", type=int, default=600, help="images with objects to count")
    given = GeneratorConfig()
    parser.add_argument("--shares", type=float, nargs=3, default=given.shares, help="those of the run")
    parser.add_argument("--seed", type=int, default=given.seed, help="that of the run")
    parser.add_argument("--longest", type=int, default=given.longest)
    parser.add_argument("--gap", type=float, nargs=2, default=given.gap, help="of the two-alternative trials")
    parser.add_argument("--own-draw", action="store_true", help="of the two-alternative trials")
    parser.add_argument("--per-image", type=int, default=given.per_image, help="two-alternative trials of a photo")
    args = parser.parse_args()
    config = GeneratorConfig(
        shares=tuple(args.shares),
        seed=args.seed,
        longest=args.longest,
        gap=tuple(args.gap),
        own_draw=args.own_draw,
        per_image=args.per_image,
    )
    photos = reported_photos(args.data, config, args.dataset)
    print(f"{len(photos)} photos that are reported")
    args.out.mkdir(parents=True, exist_ok=True)
    write_photos(photos, args.out)
    write_views(photos, args.out / "instances/views", args.queries, config)
    write_counts(photos, args.out / "counting/pasted", args.counted, config)
    write_trials(photos, args.out / "two-alternative/reported", config)


def reported_photos(data: Path, config: GeneratorConfig, dataset: str | None) -> list[dict[str, str]]:
    """Rows of images.csv that generated trials with these shares and seed report on, paths absolute.

    Raises:
        ValueError: none is left.
    """
    file = data / "images.csv"
    rows = read_rows(file, ("path", "dataset", "label"))
    split = split_images(len(read_manifest(file)), config.seed, config.shares)
    kept = [
        row | {"path": str((data / row["path"]).resolve())}
        for row, part in zip(rows, split, strict=True)
        if part == "test" and dataset in (None, row["dataset"])
    ]
    if not kept:
        raise ValueError(f"{file} has no photo of {dataset} among those that are reported.")
    return kept


def write_photos(photos: list[dict[str, str]], out: Path) -> None:
    """images.csv with the columns of the first photo."""
    with (out / "images.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(photos[0]))
        writer.writeheader()
        writer.writerows(photos)


def write_views(photos: list[dict[str, str]], out: Path, n: int, config: GeneratorConfig) -> None:
    """Queries that are strongly changed photos, and a gallery of all photos, each an item of its own."""
    asked = set(np.random.default_rng([config.seed, 20]).permutation(len(photos))[:n].tolist())
    for item, photo in enumerate(tqdm(photos, desc="views", unit="photo")):
        whole = small(photo, config.longest)
        keep(whole, out / f"gallery/{item:05d}/photo.png")
        if item in asked:
            keep(view(whole, np.random.default_rng([config.seed, 21, item])), out / f"queries/{item:05d}/view.png")


def view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image after `CHANGES` kinds of distortion of more than half their strength."""
    for kind in rng.permutation(sorted(set(KINDS) - {"count"}))[:CHANGES]:
        image = DISTORTIONS[str(kind)](image, float(rng.uniform(0.5, 0.9)), rng)
    return image


def write_counts(photos: list[dict[str, str]], out: Path, n: int, config: GeneratorConfig) -> None:
    """counts.csv and images: every count as often, the first half of a random order to learn from."""
    rng = np.random.default_rng([config.seed, 22])
    chosen: NDArray[np.int64] = rng.permutation(len(photos))[:n]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "counts.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "count", "split"])
        for i, row in enumerate(tqdm(chosen.tolist(), desc="counts", unit="image")):
            more = i % (COUNTS + 1)
            other = small(photos[int(rng.integers(len(photos)))], config.longest)
            image = pasted(small(photos[row], config.longest), other, more / COUNTS, rng)
            keep(image, out / f"images/{i:05d}.png")
            writer.writerow([f"{i:05d}.png", PASTED + more, "train" if i < len(chosen) // 2 else "test"])


def write_trials(photos: list[dict[str, str]], out: Path, config: GeneratorConfig) -> None:
    """generated.json and links to the photos: their own trials, of a seed that no training used."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    for item, photo in enumerate(photos):
        link = out / f"images/{item:05d}{Path(photo['path']).suffix}"
        link.unlink(missing_ok=True)
        link.symlink_to(photo["path"])
    stored = asdict(config) | {"seed": config.seed + 1000, "shares": (0.05, 0.05, 0.9), "held_out": ()}
    assert set(stored) == {field.name for field in fields(GeneratorConfig)}
    write_json(out / "generated.json", stored)


def small(photo: dict[str, str], longest: int) -> Image.Image:
    """A photo, its longer side at most this."""
    image = Image.open(photo["path"]).convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    return image


def keep(image: Image.Image, file: Path) -> None:
    """Save an image and the folders it is in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


if __name__ == "__main__":
    main()
