"""Robustness sets in ImageNet's layout: a readout learned on ImageNet, tested on A, R, V2, C and ReaL.

    DATA/imagenet/train/WNID/...                        to learn from (or DATA/imagenet/WNID/...)
    DATA/robustness/NAME/WNID/...                       ImageNet-A, -R, -V2, -Sketch: classes are folders
    DATA/robustness/NAME/CORRUPTION/SEVERITY/WNID/...   ImageNet-C: each folder above the class is reported
    DATA/robustness/NAME/real.json with val images      ReaL (Beyer et al. 2020): a list of classes for each of
                                                        ILSVRC2012_val_000NNNNN.JPEG; any of them is right

Where a set has fewer classes (A and R have 200), only those compete, as their authors do. The mean over corruptions
and severities is plain accuracy, not AlexNet-normalised. Frozen features, linear readout, Wald or bootstrap over
images (Muttenthaler et al. 2025, "Out-of-distribution"; its readout is not described further).
"""

import json
import re
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from training.evaluation.image_sets import imagenet, synsets
from training.evaluation.result import NotHere, Plot, Result, Setting
from training.evaluation.subjects import Vectors
from training.evaluation.transfer import Hits, hit_rows, readout
from training.images import FileImages, read_folder

VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")
ALL = "mean of all"


def robustness(setting: Setting) -> Result:
    """Accuracy on every set under DATA/robustness/."""
    folders = sorted(path for path in (setting.data / "robustness").glob("*") if path.is_dir())
    found = imagenet(setting.data)
    if not folders or found is None:
        lacks = "robustness/" if not folders else "ImageNet photos to learn from (imagenet/WNID/)"
        raise NotHere(f"{setting.data} has no {lacks}")
    images, rows, number = found
    learned = {name: x[rows] for name, x in setting.vectors(images).items()}
    out = Result(notes=[f"readout learned on {len(rows)} photos of {len(np.unique(number))} classes."])
    for folder in folders:
        shifted, truth, part = read_shifted(folder)
        scores = _scores(setting, learned, number, setting.vectors(shifted), truth)
        lost = int(sum(not (classes & set(number.tolist())) for classes in truth))
        if lost:
            out.notes.append(
                f"{folder.name}: {lost} of {len(truth)} images are of classes with no photo to learn from."
            )
        names = [*dict.fromkeys(part), ALL] if len(set(part)) > 1 else [part[0] if part else ""]
        for name in names:
            mine = np.array([name in (own, ALL) for own in part])
            group = f"{folder.name} {name}".strip()
            out.rows += hit_rows({m: {"linear": s[mine]} for m, s in scores.items()}, setting, "robust accuracy", group)
    out.plots.append(Plot("bars", "Robustness", {"figure": "robust accuracy"}))
    return out


def read_shifted(folder: Path) -> tuple[FileImages, list[set[int]], list[str]]:
    """(images, classes that are right for each, what stands above the class: corruption and severity, or nothing).

    Raises:
        ValueError: a folder that is no WordNet id of ImageNet, or a validation image without its number.
    """
    images = read_folder(folder)
    if (folder / "real.json").is_file():
        return _real(folder, images)
    number = {wnid: i for i, wnid in enumerate(synsets())}
    parts = [PurePosixPath(name).parts[:-1] for name in images.names]
    for name, above in zip(images.names, parts, strict=True):
        if not above or above[-1] not in number:
            raise ValueError(f"{folder / name}: expected the folder of a class, as n01440764.")
    return images, [{number[above[-1]]} for above in parts], [" ".join(above[:-1]) for above in parts]


def _real(folder: Path, images: FileImages) -> tuple[FileImages, list[set[int]], list[str]]:
    labels = json.loads((folder / "real.json").read_text())
    kept, truth = [], []
    for name in images.names:
        found = VALIDATION.search(name)
        if found is None or not 1 <= int(found[1]) <= len(labels):
            raise ValueError(f"{folder / name}: expected ILSVRC2012_val_00000001 to {len(labels):08d}.")
        if right := set(labels[int(found[1]) - 1]):  # some images have no label at all: they are not judged
            kept.append(name)
            truth.append(right)
    return FileImages(images.root, tuple(kept)), truth, [""] * len(kept)


def _scores(
    setting: Setting,
    learned: dict[str, Vectors],
    number: NDArray[np.int64],
    tested: dict[str, Vectors],
    truth: list[set[int]],
) -> dict[str, Hits]:
    """Right or wrong [images] of each model, with the classes of the set alone in competition."""
    classes = set().union(*truth) & set(number.tolist())
    mine = np.isin(number, sorted(classes))
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} classes of the set have photos to learn from; expected at least 2.")
    scores = {}
    for name, x in learned.items():
        predicted = readout(x[mine], number[mine], setting.constants.classifier, None)(tested[name])
        hits = [int(one) in right for one, right in zip(predicted, truth, strict=True)]
        scores[name] = np.array(hits, np.float64)
    return scores
