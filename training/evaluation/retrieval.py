"""Retrieval: image to image on labelled sets, image to text and text to image for models with a text tower.

Image to image: every photo asks for the others by cosine; recall at k is the share of queries with one of their class
among the first k. Image and text: DATA/retrieval/NAME/images/ and captions.csv (`image,caption`, several rows an
image); recall at 1, 5 and 10 both ways, as on Flickr30k (gLocal: cosine of image and text embedding). A caption's
right answer is its image; an image's is any of its captions.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import triplets
from training.evaluation.image_sets import image_sets
from training.evaluation.result import NotHere, Plot, Result, Setting
from training.evaluation.subjects import Vectors
from training.evaluation.text_tower import text_vectors
from training.evaluation.transfer import Hits, hit_rows
from training.images import FileImages, require_present
from training.tables import read_rows

AT = (1, 5, 10)
CHUNK = 1024
"""Queries whose similarities are in memory at once."""


def retrieval(setting: Setting) -> Result:
    """Recall at 1, 5 and 10 of everything that the data has."""
    out = Result()
    for one in image_sets(setting.data, setting.constants.seed):
        scores = {m: image_recall(x[one.rows], one.label) for m, x in setting.vectors(one.images).items()}
        out.rows += hit_rows(scores, setting, "image to image recall", one.name)
    out.rows += _with_text(setting, out.notes)
    if not out.rows:
        raise NotHere(f"{setting.data} has no labelled images and no retrieval/")
    for figure in dict.fromkeys(row.figure for row in out.rows):
        out.plots.append(Plot("bars", figure.capitalize(), {"figure": figure}))
    return out


def image_recall(x: Vectors, label: NDArray[Any]) -> dict[str, Hits]:
    """Whether one of a photo's class is among the first k others, [n] for each k."""
    number = np.unique(label, return_inverse=True)[1]
    first = np.empty(len(x), np.int64)
    for start in range(0, len(x), CHUNK):
        sims = triplets.similarity_matrix(x[start : start + CHUNK], x, "cosine")
        rows = np.arange(len(sims))
        sims[rows, start + rows] = -np.inf
        same = number[None, :] == number[start : start + CHUNK, None]
        same[rows, start + rows] = False
        first[start : start + CHUNK] = _first_right(sims, same)
    return {f"at {k}": (first < k).astype(np.float64) for k in AT}


def cross_recall(queries: Vectors, gallery: Vectors, right: NDArray[np.bool_]) -> dict[str, Hits]:
    """Whether a right answer is among the first k, [queries] for each k; `right` is [queries, gallery]."""
    first = _first_right(triplets.similarity_matrix(queries, gallery, "cosine"), right)
    return {f"at {k}": (first < k).astype(np.float64) for k in AT}


def _first_right(sims: NDArray[np.floating], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many wrong answers are at least as similar as the best right one: ties count against the model."""
    best = np.where(right, sims, -np.inf).max(1, keepdims=True)
    worse: NDArray[np.int64] = ((sims >= best) & ~right).sum(1)
    return np.where(right.any(1), worse, np.iinfo(np.int64).max)


def _with_text(setting: Setting, notes: list[str]) -> list[Any]:
    folders = sorted(path for path in (setting.data / "retrieval").glob("*") if path.is_dir())
    able = [subject for subject in setting.subjects if subject.language]
    if not folders:
        return []
    if len(able) < len(setting.subjects):
        notes.append("image and text: all models need a text tower (open_clip:ARCH/PRETRAINED); left out.")
        return []
    rows = []
    for folder in folders:
        images, captions, image_of = read_captions(folder)
        right = image_of[:, None] == np.arange(len(images))
        to_image, to_text = {}, {}
        for subject in able:
            x, t = setting.features.of(subject, images), text_vectors(subject, captions)
            to_image[subject.name] = cross_recall(t, x, right)
            to_text[subject.name] = cross_recall(x, t, right.T)
        rows += hit_rows(to_image, setting, "text to image recall", folder.name)
        rows += hit_rows(to_text, setting, "image to text recall", folder.name)
    return rows


def read_captions(folder: Path) -> tuple[FileImages, list[str], NDArray[np.int64]]:
    """(images, captions, image of each caption) of captions.csv; empty captions are refused with their row."""
    rows = read_rows(folder / "captions.csv", ("image", "caption"))
    names = list(dict.fromkeys(row["image"] for row in rows))
    if empty := [i for i, row in enumerate(rows) if not row["caption"].strip()]:
        raise ValueError(f"{folder / 'captions.csv'}, row {empty[0]}: no caption; so it is with {len(empty)} rows.")
    images = FileImages(folder / "images", tuple(names))
    require_present(images, str(folder / "images"))
    number = {name: i for i, name in enumerate(names)}
    return images, [row["caption"].strip() for row in rows], np.array([number[row["image"]] for row in rows])
