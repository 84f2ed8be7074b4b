"""Stand-ins for judged sets, in their own layouts, of photos one has.

    python -m benchmarks.judged_sets --data DATA --out SETS --shares 0.75 0.05 0.2 --seed 4

No person judged them. They let the ablation of data sets run where none is at hand, through the loaders of real ones:

- SETS/nights: crops, warps and counts of objects, graded: what is in a photo, and where (NIGHTS's layout)
- SETS/bapps: patches of 64 pixels, blurred, coloured and compressed, graded (BAPPS's layout)
- SETS/things: three photos of concepts, the pair that VICE holds most similar first (the layout of DreamSim's THINGS)
- SETS/classes.csv: photos with their classes, for `classes:` triplets

`--shares` and `--seed` are those of `python -m benchmarks.perceptual`, which makes the data that alignments are judged
on; photos that it reports are in no set.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from contract import triplets
from training.images import read_manifest
from training.people import read_people
from training.perceptual.class_triplets import split_images
from training.perceptual.generated import GeneratorConfig, generate
from training.perceptual.trials import Trials
from training.photos import NO_CONCEPT, read_photos
from training.subset import Subset
from training.tables import read_rows

PATCH = 64
"""Side of BAPPS's patches."""
FOLDERS = {"blur": "traditional", "compression": "traditional", "colour": "color"}
"""BAPPS's folder of each kind."""


def main() -> None:
    """Write the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images.csv and things/")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    given = GeneratorConfig()
    parser.add_argument("--shares", type=float, nargs=3, default=given.shares, help="of images; the last is left out")
    parser.add_argument("--seed", type=int, default=given.seed)
    parser.add_argument("--trials", type=int, default=600, help="of each set, a sixth of them to choose weights on")
    args = parser.parse_args()
    manifest = args.data / "images.csv"
    images = read_manifest(manifest)
    rows = np.flatnonzero(split_images(len(images), args.seed, args.shares) != "test")
    taught = Subset(images, rows)
    for name, kinds, longest in (("nights", ("crop", "warp", "count"), 160), ("bapps", tuple(FOLDERS), PATCH)):
        config = GeneratorConfig(
            per_image=1, kinds=kinds, own_draw=True, gap=(0.13, 0.3), longest=longest, shares=SHARES, seed=args.seed
        )
        trials = some_of(generate(taught, str(manifest), config), args.trials)
        {"nights": write_nights, "bapps": write_bapps}[name](trials, args.out / name)
    write_things(args.data, rows, args.trials, args.seed, args.out / "things")
    write_classes(args.data, rows, args.out / "classes.csv")


SHARES = (0.8, 0.15, 0.05)
"""Of the photos of a set; the sets report nothing, but every generated set has a test split."""


def some_of(trials: Trials, n: int) -> Trials:
    """The first n trials of the splits `train` and `val` together, a sixth of them `val`."""
    val = np.flatnonzero(trials.split == "val")[: n // 6]
    train = np.flatnonzero(trials.split == "train")[: n - n // 6]
    chosen = np.zeros(len(trials.split), bool)
    chosen[np.concatenate([train, val])] = True
    return trials.take(chosen)


def shown(trials: Trials) -> Iterator[tuple[int, list[bytes]]]:
    """(number, PNGs of reference, left, right) of each trial."""
    for number, index in enumerate(tqdm(trials.index.tolist(), desc="trials", unit="trial")):
        yield number, [trials.images.read(image) for image in index]


def keep(png: bytes, file: Path) -> None:
    """Write a file and the folders it is in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png)


def write_nights(trials: Trials, out: Path) -> None:
    """data.csv, ref/ and distort/; all six votes agree."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "data.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        names = ("id", "prompt", "right_vote", "left_vote", "ref_path", "left_path", "right_path")
        table.writerow([*names, "votes", "split", "is_imagenet"])
        for number, images in shown(trials):
            paths = [f"ref/{number:06d}.png", f"distort/{number:06d}_0.png", f"distort/{number:06d}_1.png"]
            for png, path in zip(images, paths, strict=True):
                keep(png, out / path)
            right = int(trials.votes[number])
            table.writerow([number, "", right, 1 - right, *paths, 6, trials.split[number], False])


def write_bapps(trials: Trials, out: Path) -> None:
    """{train,val}/KIND/{ref,p0,p1,judge}; all people agree."""
    for number, images in shown(trials):
        place = out / str(trials.split[number]) / FOLDERS[str(trials.kind[number])]
        for png, part in zip(images, ("ref", "p0", "p1"), strict=True):
            keep(png, place / part / f"{number:06d}.png")
        (place / "judge").mkdir(exist_ok=True)
        np.save(place / f"judge/{number:06d}.npy", trials.votes[number : number + 1])


def write_things(data: Path, rows: NDArray[np.int64], n: int, seed: int, out: Path) -> None:
    """Photos of concepts, and choices among them; a concept is in one split only."""
    vice, _ = read_people(data)
    photos = read_photos(data / "images.csv", len(vice))
    concepts = np.unique(photos.concept[rows][photos.concept[rows] != NO_CONCEPT])
    rng = np.random.default_rng([seed, 30])
    order = rng.permutation(concepts)
    photo_of = {int(concept): int(rows[photos.concept[rows] == concept][0]) for concept in concepts}
    for concept, row in photo_of.items():
        with Image.open(data / read_rows(data / "images.csv", ("path",))[row]["path"]) as image:
            small = image.convert("RGB")
            small.thumbnail((160, 160), Image.Resampling.BICUBIC)
            out.mkdir(parents=True, exist_ok=True)
            small.save(out / f"{concept}.png")
    cut = round(len(order) * 5 / 6)
    for split, own, wanted in (("train", order[:cut], n - n // 6), ("val", order[cut:], n // 6)):
        drawn = np.stack([rng.choice(own, 3, replace=False) for _ in range(wanted)])
        odd = triplets.odd_one_out(triplets.pair_similarities(vice[drawn]))
        lines = []
        for three, position in zip(drawn.tolist(), odd.tolist(), strict=True):
            lines.append(" ".join(map(str, [*three[:position], *three[position + 1 :], three[position]])))
        (out / f"things_{split}set.txt").write_text("\n".join(lines) + "\n")


def write_classes(data: Path, rows: NDArray[np.int64], out: Path) -> None:
    """images.csv of the photos that have a class, paths absolute."""
    every = read_rows(data / "images.csv", ("path", "label"))
    kept = [every[row] for row in rows.tolist()]
    with out.open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["path", "label"])
        table.writeheader()
        table.writerows({"path": str((data / row["path"]).resolve()), "label": row["label"]} for row in kept)


if __name__ == "__main__":
    main()
