"""Small worlds for the evaluation: the tiny data, and models that see it as people do, with noise, or not at all."""

from pathlib import Path

import numpy as np

from tests.training.tiny import write_tiny_data
from training.evaluation.result import Constants, Setting
from training.evaluation.subjects import Features, read_subject
from training.run import read_data

CONSTANTS = Constants(seed=0, repetitions=20, triplets=2_000, draws=2)


def write_models(folder: Path, data: Path, **noise: float) -> list[str]:
    """Feature files, a model each: the square root of VICE's scale, and noise of that deviation added."""
    read = read_data(data)
    clean = np.where(read.photos.concept[:, None] >= 0, read.vice[read.photos.concept], 0)
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, size) in enumerate(noise.items()):
        grain = np.random.default_rng(i).normal(size=clean.shape) * size
        np.save(folder / f"{name}.npy", (clean + grain).astype(np.float32))
    return [f"{name}={folder / name}.npy" for name in noise]


def tiny_setting(tmp_path: Path, **noise: float) -> Setting:
    """The tiny data, with a model for each noise."""
    data = tmp_path / "data"
    if not data.exists():
        write_tiny_data(data)
    subjects = tuple(read_subject(word) for word in write_models(tmp_path / "models", data, **noise))
    return Setting(data, subjects, Features(tmp_path / "features"), CONSTANTS)
