"""NIGHTS (Fu et al. 2023): a reference and two variations of it, judged by people until they agreed.

    FOLDER/data.csv       a row a trial; column 0 the id, 2 the target (1: right is nearer), 4, 5, 6 the paths of
                          reference, left and right; `votes`, `split` and `is_imagenet` by name
    FOLDER/ref/000/001.png, FOLDER/distort/000/001_0.png, FOLDER/distort/000/001_1.png

Trials with fewer than six votes are left out, as its authors do. Equal distances earn a half.
"""

import csv
from pathlib import Path

import numpy as np

from training.images import FileImages
from training.perceptual.trials import SPLITS, Trials, present

MIN_VOTES = 6
NAMED = ("votes", "split", "is_imagenet")
PATHS = slice(4, 7)


def read_nights(folder: Path, *, min_votes: int = MIN_VOTES) -> Trials:
    """The trials with at least `min_votes` votes; `kind` is `imagenet` or `no imagenet`.

    Raises:
        ValueError: no data.csv, a column or cell that is missing or wrong (the row is named), a filter that leaves
            nothing, or images that do not exist.
    """
    file = folder / "data.csv"
    if not file.is_file():
        raise ValueError(f"{folder} has no data.csv; expected NIGHTS as it is published.")
    with file.open(newline="") as stream:
        header, *rows = list(csv.reader(stream)) or [[]]
    if missing := [name for name in NAMED if name not in header]:
        raise ValueError(f"{file} lacks the columns {missing}; it has {header}.")
    at = {name: header.index(name) for name in NAMED}
    paths, votes, splits, kinds = [], [], [], []
    for number, row in enumerate(rows):
        if len(row) < max(7, len(header)):
            raise ValueError(f"{file}, row {number} has {len(row)} cells; expected {max(7, len(header))}.")
        if _whole(row[at["votes"]], file, number, "votes") < min_votes:
            continue
        target = _whole(row[2], file, number, header[2])
        if target not in (0, 1) or row[at["split"]] not in SPLITS:
            raise ValueError(
                f"{file}, row {number}: target {target}, split {row[at['split']]!r}; expected 0 or 1, and one of "
                f"{', '.join(SPLITS)}."
            )
        paths.append(row[PATHS])
        votes.append(float(target))
        splits.append(row[at["split"]])
        kinds.append("imagenet" if row[at["is_imagenet"]].strip().lower() in ("true", "1") else "no imagenet")
    if not paths:
        raise ValueError(f"{file}: none of {len(rows)} trials has {min_votes} votes or more.")
    names, index = np.unique(np.array(paths), return_inverse=True)
    index = index.reshape(-1, 3).astype(np.int64)
    return present(
        Trials(
            source=str(file),
            images=FileImages(folder, tuple(names.tolist())),
            index=index,
            votes=np.array(votes),
            split=np.array(splits),
            kind=np.array(kinds),
            judgment=np.arange(len(index)),
            unit=index[:, 0],
        )
    )


def _whole(text: str, file: Path, number: int, column: str) -> int:
    """A whole number, also where it is written as 1.0."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not value.is_integer():
        raise ValueError(f"{file}, row {number}: {column} is {text!r}; expected a whole number.")
    return int(value)
