"""Labelled image sets of a data folder, for everything that asks what features are worth to a classifier.

DATA/images.csv                      each `dataset` of it with two classes or more of two photos or more
DATA/classification/NAME/            train/CLASS/... and test/CLASS/..., or CLASS/..., divided here by half
DATA/imagenet/WNID/...               ImageNet photos, or DATA/imagenet/train/WNID/...; classes are WordNet ids
DATA/images.csv with `wordnet_id`    ImageNet photos too, where there is no DATA/imagenet
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.images import FileImages, read_folder, read_manifest
from training.tables import read_rows


@dataclass(frozen=True)
class ImageSet:
    """Images with classes, divided into a part to learn from and a part to be tested on.

    Attributes:
        name: of the set.
        images: the files.
        rows: [k] rows of `images` that belong to the set.
        label: [k] class of each.
        test: [k] whether it is tested on.
        note: what was left out; empty for nothing.
    """

    name: str
    images: FileImages
    rows: NDArray[np.int64]
    label: NDArray[np.str_]
    test: NDArray[np.bool_]
    note: str = ""


def image_sets(data: Path, seed: int) -> list[ImageSet]:
    """Every labelled set, in the order of the module docstring.

    Args:
        data: folder.
        seed: of the halves, where a set has no test part of its own.
    """
    found = []
    if (data / "images.csv").is_file():
        images, dataset, label = manifest(data / "images.csv")
        for name in dict.fromkeys(dataset):
            rows = np.flatnonzero(np.array(dataset) == name)
            one = _halved(name, images, rows, np.array(label)[rows], seed)
            if one is not None:
                found.append(one)
    for folder in sorted(path for path in (data / "classification").glob("*") if path.is_dir()):
        one = _folder(folder, seed)
        if one is not None:
            found.append(one)
    return found


@cache
def manifest(file: Path) -> tuple[FileImages, list[str], list[str]]:
    """(images, data set of each, label of each) of a manifest; one data set of its folder's name without a column."""
    images = read_manifest(file)
    label = list(images.labels or [""] * len(images))
    try:
        dataset = [row["dataset"] for row in read_rows(file, ("dataset",))]
    except ValueError:
        dataset = [file.parent.name] * len(images)
    return FileImages(images.root, images.names), dataset, label


def _folder(folder: Path, seed: int) -> ImageSet | None:
    images = read_folder(folder)
    parts = [name.split("/") for name in images.names]
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        rows = np.array([i for i, p in enumerate(parts) if p[0] in ("train", "test") and len(p) > 2], np.int64)
        test = np.array([parts[i][0] == "test" for i in rows])
        label = np.array([parts[i][1] for i in rows])
        unknown = sorted(set(label[test].tolist()) - set(label[~test].tolist()))
        if unknown:
            raise ValueError(f"{folder}/test has {len(unknown)} classes that train/ has not: {unknown[:3]}.")
        return ImageSet(folder.name, images, rows, label, test)
    if images.labels is None:
        raise ValueError(f"{folder}: some images lie in no folder of a class; expected CLASS/... for all.")
    return _halved(folder.name, images, np.arange(len(images)), np.array(images.labels), seed)


def _halved(
    name: str, images: FileImages, rows: NDArray[np.int64], label: NDArray[np.str_], seed: int
) -> ImageSet | None:
    """Half of each class, to be tested on; classes of one photo are left out.

    None without two classes, or where most photos are left out: a photo of each class is no set for classifiers.
    """
    count = Counter(label.tolist())
    kept = np.array([bool(one) and count[one] > 1 for one in label.tolist()], bool)
    if len(set(label[kept].tolist())) < 2 or 2 * kept.sum() < len(kept):
        return None
    rng = np.random.default_rng(seed)
    rows, label = rows[kept], label[kept]
    test = np.zeros(len(rows), bool)
    for one in sorted(set(label.tolist())):
        mine = rng.permutation(np.flatnonzero(label == one))
        test[mine[: len(mine) // 2]] = True
    left = int((~kept).sum())
    note = f"{name}: {left} photos of classes with one photo, or without a class, are left out." if left else ""
    return ImageSet(name, images, rows, label, test, note)


def imagenet(data: Path) -> tuple[FileImages, NDArray[np.int64], NDArray[np.int64]] | None:
    """(images, rows of ImageNet photos, class 0 to 999 of each), or None where there are none."""
    number = {wnid: i for i, wnid in enumerate(synsets())}
    for folder in (data / "imagenet/train", data / "imagenet"):
        if folder.is_dir():
            images = read_folder(folder)
            wnids = [name.partition("/")[0] for name in images.names]
            break
    else:
        file = data / "images.csv"
        if not file.is_file():
            return None
        try:
            wnids = [row["wordnet_id"] for row in read_rows(file, ("wordnet_id",))]
        except ValueError:
            return None
        images, _, _ = manifest(file)
    rows = np.array([i for i, wnid in enumerate(wnids) if wnid in number], np.int64)
    if not len(rows):
        return None
    return images, rows, np.array([number[wnids[i]] for i in rows])


@cache
def synsets() -> tuple[str, ...]:
    """WordNet ids of the 1,000 classes of ImageNet-1k, in their order."""
    from timm import data

    info: Any = vars(data)["ImageNetInfo"]("imagenet-1k")
    return tuple(info.index_to_label_name(i) for i in range(info.num_classes()))
