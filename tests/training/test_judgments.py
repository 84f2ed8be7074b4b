"""What a study collects is what training reads: the files of `alignet-serve judgments`, through the stages."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.judging.choosing import Chosen
from app.judging.export import main as judgments
from app.judging.photos import read_photos
from app.judging.store import Store, Trial
from app.judging.study import Study
from contract import triplets
from contract.pixels import PixelLimits
from export.calibration import read_judgments
from tests.study import write_study
from training.__main__ import main as training
from training.images import open_images
from training.vice_data import agreement, read_triplets

PHOTOS = 14


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray[Any, Any]]:
    """The folder of a study with a choice for every triplet of a known embedding, and that embedding."""
    monkeypatch.setattr("app.judging.store.CLOCK_MS", 1e9)
    file = write_study(tmp_path, PHOTOS)
    study = Study.read(file)
    study.data.mkdir()
    rng = np.random.default_rng(3)
    known = rng.normal(size=(PHOTOS, 5))
    known -= known.mean()  # what `probe` standardises by
    store = Store(study.database)
    found, _ = read_photos(study.photos, study.data, PixelLimits(), lambda *_: None)
    store.register([(photo.path, photo.sha256) for photo in found])
    session = store.begin("token", "consent", None, 1)
    for number, key in enumerate(combinations(range(PHOTOS), 3)):
        items = rng.permutation(key)
        odd = int(triplets.odd_one_out(triplets.pair_similarities(known[items])))
        a, b, c = items.tolist()
        chosen = Chosen((a, b, c), (0, 0, 0), "explore", (0.3, 0.3, 0.4), 1.0)
        store.add(Trial(f"t{number}", session.session, number, "main", chosen, "print"))
        store.choose(session, f"t{number}", odd, 900.0, "key")
    store.close()
    assert judgments([str(file), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out", known


def test_the_triplets_are_read_and_agree_with_who_chose_them(exported: tuple[Path, Any]) -> None:
    out, known = exported
    parts = [read_triplets(out / name, PHOTOS, odd="last") for name in ("train_90.txt", "test_10.txt", "triplets.txt")]
    assert len(parts[0]) + len(parts[1]) == len(parts[2]) == 364
    assert all(agreement(rows, known, odd="last") == 1.0 > agreement(rows, known, odd="first") for rows in parts)


def test_the_photos_are_embedded_in_the_order_of_the_numbers(exported: tuple[Path, Any]) -> None:
    out, _ = exported
    images = open_images(str(out / "photos.csv"))
    study = Study.read(out.parent / "study.toml")
    assert len(images) == PHOTOS
    for i in range(PHOTOS):
        assert images.read(i) == (study.photos / f"secret-names/person-{i:02d}.png").read_bytes()


def test_probe_and_vice_take_all_of_the_choices(exported: tuple[Path, Any]) -> None:
    out, known = exported
    np.save(out / "features.npy", known.astype(np.float32))
    files = ["--features", str(out / "features.npy"), "--triplets", str(out / "triplets.txt"), "--odd", "last"]
    fit = ["--objective", "global", "--penalties", "0.1", "--learning-rates", "0.01", "--folds", "2", "--steps", "20"]
    training(["probe", *files, *fit, "--out", str(out / "probe")])
    for line in map(json.loads, (out / "probe/results.jsonl").read_text().splitlines()):
        assert line["triplets_train"] + line["triplets_validation"] + line["triplets_discarded"] == 364
        assert line["untransformed_accuracy"] == 1.0, "the features are those of who chose"
    both = [str(out / "train_90.txt"), str(out / "test_10.txt")]
    training(
        ["vice", *both, "--odd", "last", "--objects", str(PHOTOS), "--out", str(out / "vice"), "--set", "epochs=2"]
    )
    assert (out / "vice/summary.json").exists()


def test_the_choices_held_out_calibrate_an_export(exported: tuple[Path, Any]) -> None:
    out, _ = exported
    judged = read_judgments(out / "choices.csv", None)
    rows = read_triplets(out / "test_10.txt", PHOTOS, odd="last")
    assert len(judged.chosen) == len(rows)
