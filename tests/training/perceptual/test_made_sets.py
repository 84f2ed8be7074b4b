"""Data made of photos one has: only reported photos, and what the evaluation can read."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.perceptual import main
from tests.training.tiny import write_photos, write_rows
from training.evaluation.perceptual import read_counts, read_judgments, reported
from training.images import open_images, read_folder
from training.perceptual.distortions import COUNTS, PASTED
from training.perceptual.generated import GeneratorConfig, generate
from training.tables import read_rows


def test_made_sets_hold_only_photos_that_a_run_reports_and_are_read_as_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "data", 40)
    rows = [[name, "ours", f"class {i % 2}"] for i, name in enumerate(photos.names)]
    write_rows(tmp_path / "data/images.csv", [["path", "dataset", "label"], *rows])
    options = ["--shares", "0.4", "0.1", "0.5", "--longest", "24", "--queries", "5", "--counted", "18"]
    out = tmp_path / "made"
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path / "data"), "--out", str(out), *options])
    main()
    config = GeneratorConfig(shares=(0.4, 0.1, 0.5), longest=24)
    trials = generate(open_images(str(tmp_path / "data/images.csv")), "photos", config).of_split("test")
    kept = {Path(row["path"]).name for row in read_rows(out / "images.csv", ("path", "label"))}
    assert kept == {Path(photos.names[row]).name for row in np.unique(trials.unit)} and len(kept) == 20
    queries, gallery = (read_folder(out / "instances/views" / part) for part in ("queries", "gallery"))
    assert len(queries) == 5 and len(gallery) == 20 and set(queries.labels or ()) <= set(gallery.labels or ())
    _, count, test = read_counts(out / "counting/pasted")
    assert set(count.tolist()) == set(range(PASTED, PASTED + COUNTS + 1)) and test.sum() == 9
    made = reported(read_judgments(out / "two-alternative/reported", 0))
    assert len(np.unique(made.unit)) == 18 and made.images.names != trials.images.names
