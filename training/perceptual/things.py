"""THINGS choices between photos, as DreamSim's evaluation lays them out.

    FOLDER/things_trainset.txt, things_valset.txt, things_testset.txt    three names a line, the similar pair first
    FOLDER/NAME.png

A line says that the pair is nearer than either is to the third, so it is two trials, one with each of the pair as
the reference, and it is right if both are. Equal distances earn nothing: with the half of other data sets, or with
"not farther than" as in DreamSim's own script, an embedding that says nothing would be right.
"""

from pathlib import Path

import numpy as np

from training.images import FileImages
from training.perceptual.trials import SPLITS, Trials, present


def read_things(folder: Path, *, seed: int = 0) -> Trials:
    """Every line of every split's file; the third image is the left or the right one at random.

    Args:
        folder: see the module docstring.
        seed: of the sides.

    Raises:
        ValueError: no such file, a line without three different names (named), or images that do not exist.
    """
    lines, splits = [], []
    for split in SPLITS:
        file = folder / f"things_{split}set.txt"
        for number, line in enumerate(file.read_text().splitlines() if file.is_file() else ()):
            found = line.replace(",", " ").split()
            if not found:
                continue
            if len(found) != 3 or len(set(found)) != 3:
                raise ValueError(f"{file}, line {number + 1} is {line!r}; expected three different names.")
            lines.append(found)
            splits.append(split)
    if not lines:
        raise ValueError(f"{folder} has no choice in things_trainset.txt, things_valset.txt or things_testset.txt.")
    names, index = np.unique(np.array(lines), return_inverse=True)
    first, second, odd = index.reshape(-1, 3).T
    right = np.random.default_rng(seed).random(2 * len(lines)) < 0.5  # is the similar one on the right?
    reference = np.stack([first, second], 1).ravel()
    near, far = np.stack([second, first], 1).ravel(), np.repeat(odd, 2)
    judgment = np.repeat(np.arange(len(lines)), 2)
    return present(
        Trials(
            source=str(folder),
            images=FileImages(folder, tuple(f"{name}.png" for name in names)),
            index=np.stack([reference, np.where(right, far, near), np.where(right, near, far)], 1).astype(np.int64),
            votes=right.astype(np.float64),
            split=np.repeat(np.array(splits), 2),
            kind=np.full(2 * len(lines), "things"),
            judgment=judgment,
            unit=judgment,
            tie=0.0,
        )
    )
