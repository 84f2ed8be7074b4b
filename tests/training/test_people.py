"""Choices instead of an embedding: VICE is fitted first, once, and everything else follows from it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import CONCEPTS, TINY, TINY_MODEL, write_rows, write_tiny_data
from training.models import MODELS
from training.people import POSTERIOR, SAMPLES, fit_people
from training.recipes.vice_own import RECIPE as OWN
from training.run import Data, input_hashes, read_data, run
from training.vice_data import simulate_choices

QUICK = replace(OWN, config=replace(OWN.config, epochs=60, window=61, dimensions=8, batch=256))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of choices alone: no embedding, no responses, no categories, no Caltech-101."""
    return fit(write_choices(tmp_path_factory.mktemp("data")))


def write_choices(folder: Path) -> Path:
    write_tiny_data(folder)
    vice = np.load(folder / "things/vice_embedding.npy")
    np.savetxt(folder / "things/train_90.txt", simulate_choices(vice, 4000, seed=0), fmt="%d")
    np.save(folder / "things/test_10.npy", simulate_choices(vice, 400, seed=1))
    (folder / "things/vice_embedding.npy").unlink()
    (folder / "things/human_test_responses.csv").unlink()
    write_rows(folder / "things/concepts.csv", [["things_index", "categories"], *([c, ""] for c in range(CONCEPTS))])
    manifest = folder / "images.csv"
    manifest.write_text(manifest.read_text().replace("caltech101", "own"))
    return folder


def fit(folder: Path) -> Path:
    fit_people(folder, CONCEPTS, QUICK)
    return folder


def similarities(data: Data) -> np.ndarray:
    return (data.vice @ data.vice.T)[np.triu_indices(CONCEPTS, 1)]


def test_what_was_fitted_is_what_people_chose(fitted: Path, tmp_path: Path) -> None:
    data, truth = read_data(fitted), read_data(write_tiny_data(tmp_path))
    assert np.corrcoef(similarities(data), similarities(truth))[0, 1] > 0.9
    assert data.posterior is not None and data.posterior.shape == (SAMPLES, *data.vice.shape)
    assert data.people is data.posterior and truth.people is truth.vice
    assert len(data.responses.odd) == 0 and POSTERIOR in input_hashes(fitted)


def test_a_run_from_choices_alone(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    found = {(f["space"], f["name"]): f["value"] for f in run(TINY, fitted, tmp_path / "run", QUICK)["figures"]}
    agreement = "agreement with VICE's most likely choice"
    assert found["aligned", agreement] > max(0.6, found["base", agreement])
    assert not any("Caltech" in name or "vehicle" in name or "human" in name for _, name in found)


def test_a_published_embedding_is_never_fitted_over(tmp_path: Path) -> None:
    folder = write_tiny_data(tmp_path)
    np.savetxt(folder / "things/train_90.txt", [[0, 1, 2]], fmt="%d")
    assert not (fit(folder) / POSTERIOR).exists()


def test_the_same_choices_are_fitted_once_and_others_are_refused(fitted: Path) -> None:
    before = (fitted / POSTERIOR).stat().st_mtime_ns
    assert (fit(fitted) / POSTERIOR).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="made with another config"):
        fit_people(fitted, CONCEPTS, OWN)


def test_neither_choices_nor_embedding(tmp_path: Path) -> None:
    folder = write_tiny_data(tmp_path)
    (folder / "things/vice_embedding.npy").unlink()
    with pytest.raises(FileNotFoundError, match="train_90"):
        fit(folder)
    with pytest.raises(FileNotFoundError, match="python -m training run"):
        read_data(folder)
