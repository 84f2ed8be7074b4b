"""BAPPS (Zhang et al. 2018): 64 x 64 patches and two distortions of each, judged by a few people.

    FOLDER/train/KIND/{ref,p0,p1}/NAME.png, FOLDER/train/KIND/judge/NAME.npy     and the same under val/

Kinds are `cnn`, `traditional`, `color`, `deblur`, `superres`, `frameinterp`, in training also `mix`. A judge file
holds one number, the share of people who chose p1. A model earns the share that chose as it does, a half for a tie.
"""

from pathlib import Path

import numpy as np

from training.images import FileImages
from training.perceptual.trials import Trials, present

KINDS = ("cnn", "color", "deblur", "frameinterp", "mix", "superres", "traditional")
PARTS = ("ref", "p0", "p1")


def read_bapps(folder: Path) -> Trials:
    """Every trial under `folder`, in order of split, kind and name; `kind` is the name of its folder.

    Raises:
        ValueError: no trial, images without a judgment, a judgment that is no share, or images that do not exist.
    """
    names: list[str] = []
    votes, splits, kinds = [], [], []
    for split in ("train", "val"):
        for kind in KINDS:
            place = folder / split / kind
            judged = {file.stem: file for file in sorted((place / "judge").glob("*.npy"))}
            shown = {file.stem for file in (place / "ref").glob("*.png")}
            if unjudged := sorted(shown - set(judged)):
                raise ValueError(
                    f"{place}: {len(unjudged)} trials have no votes, the first is judge/{unjudged[0]}.npy."
                )
            for stem, file in judged.items():
                votes.append(_share(file))
                splits.append(split)
                kinds.append(kind)
                names += [f"{split}/{kind}/{part}/{stem}.png" for part in PARTS]
    if not votes:
        raise ValueError(f"{folder} has no trial of BAPPS; expected folders as {folder}/train/cnn/judge.")
    index = np.arange(len(names)).reshape(-1, 3)
    return present(
        Trials(
            source=str(folder),
            images=FileImages(folder, tuple(names)),
            index=index,
            votes=np.array(votes),
            split=np.array(splits),
            kind=np.array(kinds),
            judgment=np.arange(len(index)),
            unit=np.arange(len(index)),
            graded=True,
        )
    )


def _share(file: Path) -> float:
    try:
        value = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is no array: {error}") from error
    if value.size != 1 or not 0 <= float(value.reshape(())) <= 1:
        raise ValueError(f"{file} holds {value.tolist()}; expected one share from 0 to 1.")
    return float(value.reshape(()))
