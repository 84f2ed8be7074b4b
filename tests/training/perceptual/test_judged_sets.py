"""Stand-ins for judged sets: read by the loaders of the real ones, and without a photo that is reported."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.judged_sets import main
from tests.training.tiny import write_photos, write_rows
from training.images import open_images
from training.perceptual.bapps import read_bapps
from training.perceptual.class_triplets import class_triplets, split_images
from training.perceptual.nights import read_nights
from training.perceptual.things import read_things


def test_stand_ins_are_read_as_the_sets_they_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "data", tmp_path / "sets"
    photos = write_photos(data, 60)
    rows = [[name, "ours", f"class {i % 2}", i] for i, name in enumerate(photos.names)]
    write_rows(data / "images.csv", [["path", "dataset", "label", "things_index"], *rows])
    (data / "things").mkdir()
    vice = np.random.default_rng(0).random((60, 5))
    np.save(data / "things/vice_embedding.npy", vice)
    options = ["--shares", "0.7", "0.1", "0.2", "--seed", "3", "--trials", "18"]
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(data), "--out", str(out), *options])
    main()
    for trials in (read_nights(out / "nights"), read_bapps(out / "bapps"), read_things(out / "things")):
        counts = [len(set(trials.of_split(split).judgment.tolist())) for split in ("train", "val")]
        assert counts == [15, 3]
    for line in (out / "things/things_trainset.txt").read_text().splitlines():
        a, b, odd = vice[[int(name) for name in line.split()]]
        assert a @ b == max(a @ b, a @ odd, b @ odd)
    reported = {photos.names[i] for i in np.flatnonzero(split_images(60, 3, (0.7, 0.1, 0.2)) == "test")}
    classes = open_images(str(out / "classes.csv"))
    assert len(classes) == 48 and not {Path(name).name for name in classes.names} & {Path(n).name for n in reported}
    assert not {f"{photos.names.index(name)}.png" for name in reported} & {
        f.name for f in (out / "things").glob("*.png")
    }
    assert len(class_triplets(classes, "classes", trials=10)) > 0
