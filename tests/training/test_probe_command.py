"""`python -m training probe`: what it writes for each objective, resuming, and faults with their file and row."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import triplets
from training.__main__ import main
from training.align import Transform
from training.vice_data import simulate_choices

ROOT = Path(__file__).parents[2]
OBJECTS, WIDTH = 40, 5
GRID = [
    "--penalties",
    "0.01",
    "0.1",
    "--learning-rates",
    "0.02",
    "--folds",
    "2",
    "--steps",
    "40",
    "--validate-every",
    "20",
    "--sigma",
    "0.1",
]


def write_world(folder: Path) -> dict[str, Any]:
    """Files of a world whose people see two of five features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(OBJECTS, WIDTH)) * [2, 2, 8, 8, 8]
    rows = simulate_choices(features[:, :2], 3000, seed=0)
    arrays = {
        "features": features.astype(np.float32),
        "triplets": rows,
        "targets": triplets.pair_probabilities(triplets.pair_similarities(features[rows][:, :, :2])),
        "local": rng.normal(size=(50, WIDTH)).astype(np.float32) * 4,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return arrays


def command(folder: Path, objective: str, *more: str, odd: str = "last") -> list[str]:
    extra = {
        "soft": ["--targets", f"{folder}/targets.npy"],
        "glocal": ["--local", f"{folder}/local.npy", "--alpha", "0.02"],
    }
    files = ["--features", f"{folder}/features.npy", "--triplets", f"{folder}/triplets.npy", "--odd", odd]
    out = ["--out", f"{folder}/{objective}", "--objective", objective, *GRID]
    return ["probe", *files, *out, *extra.get(objective, []), *more]


def probe(folder: Path, objective: str, *more: str, odd: str = "last") -> None:
    main(command(folder, objective, *more, odd=odd))


@pytest.mark.parametrize("objective", ["hard", "global", "glocal", "soft"])
def test_every_objective_runs_from_files_and_prints_its_summary(
    tmp_path: Path, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_world(tmp_path)
    probe(tmp_path, objective)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / objective / "summary.json").read_text())
    assert (printed["objective"], printed["fits"], printed["fits_failed"]) == (objective, 4, 0)
    assert printed["accuracy_mean_of_folds"] > printed["untransformed_accuracy_mean_of_folds"] + 0.05
    assert Transform.load(tmp_path / objective / "transform.npz").weights.shape == (WIDTH, WIDTH)


def test_the_options_reach_the_grid_and_the_fit(tmp_path: Path) -> None:
    write_world(tmp_path)
    probe(tmp_path, "global", "--no-bias", "--seed", "5", "--clip", "1.0")
    identity = json.loads((tmp_path / "global/identity.json").read_text())
    assert identity["grid"] == {"penalties": [0.01, 0.1], "learning_rates": [0.02], "folds": 2}
    assert (identity["seed"], identity["config"]["bias"], identity["config"]["clip"]) == (5, False, 1.0)


def test_a_second_call_fits_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_world(tmp_path)
    probe(tmp_path, "global")
    before = (tmp_path / "global/transform.npz").read_bytes()
    monkeypatch.setattr("training.probe_grid.fit_probe", None)
    probe(tmp_path, "global")
    assert len(before) == len((tmp_path / "global/transform.npz").read_bytes())


KILLED = """
import os, signal, sys
import numpy as np
from training.__main__ import main
save, saved = np.savez, []
def deadly(file, **arrays):
    saved.append(1)
    if len(saved) == 3:  # in the middle of the third fit's transform
        file.write_bytes(b"PK half"); os.kill(os.getpid(), signal.SIGKILL)
    save(file, **arrays)
np.savez = deadly
main(sys.argv[1:])
"""


def test_a_command_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path, one_thread: None) -> None:
    write_world(tmp_path)
    argv = command(tmp_path, "global")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, *argv], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len((tmp_path / "global/results.jsonl").read_text().splitlines()) == 2
    for out in ("global", "whole"):
        main([*argv, "--out", str(tmp_path / out)])
    for name in ("results.jsonl", "summary.json", "transform.npz"):
        assert (tmp_path / "global" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_odd_first_file_gives_the_same_transform_as_the_odd_last_one(tmp_path: Path) -> None:
    learned = []
    for odd, order in (("last", [0, 1, 2]), ("first", [2, 0, 1])):
        folder = tmp_path / odd
        folder.mkdir()
        world = write_world(folder)
        turned = world["triplets"][:, order]
        np.save(folder / "triplets.npy", turned)
        sims = triplets.pair_similarities(world["features"][turned][:, :, :2].astype(np.float64))
        np.save(folder / "targets.npy", triplets.pair_probabilities(sims))
        probe(folder, "soft", odd=odd)
        learned.append(Transform.load(folder / "soft/transform.npz").weights)
    np.testing.assert_allclose(*learned, atol=1e-4)


def spoil(array: Any, change: str) -> Any:
    array = array.copy()
    if change == "nan":
        array[3, 1] = np.nan
    elif change == "one-based":
        array += 1
    elif change == "out of range":
        array[7, 0] = OBJECTS
    elif change == "one row less":
        array = array[1:]
    elif change == "narrower":
        array = np.ascontiguousarray(array[:, 1:])
    elif change == "no sum of 1":
        array[4] = [0.2, 0.2, 0.2]
    else:
        array = array[:, ::-1].copy()  # those of the images
    return array


@pytest.mark.parametrize(
    ("name", "change", "objective", "message"),
    [
        ("features", "nan", "hard", r"features\.npy, row 3: a feature is not finite"),
        ("local", "nan", "glocal", r"local\.npy, row 3: a feature is not finite"),
        ("local", "narrower", "glocal", r"local features are \(50, 4\); expected .* as wide as the features \(40, 5\)"),
        ("triplets", "one-based", "hard", r"triplets\.npy is 1-based: its numbers run from 1 to 40"),
        ("triplets", "out of range", "hard", r"triplets\.npy, row 7: \[40, .*expected objects 0 to 39"),
        ("targets", "one row less", "soft", r"targets\.npy: probabilities are \(2999, 3\); expected \(3000, 3\)"),
        ("targets", "no sum of 1", "soft", r"targets\.npy: probabilities of triplet 4 .* expected a sum of 1"),
        ("targets", "reversed", "soft", r"targets\.npy: probabilities favour pair 12"),
    ],
)
def test_a_faulty_file_is_named_with_its_row(
    tmp_path: Path, name: str, change: str, objective: str, message: str
) -> None:
    np.save(tmp_path / f"{name}.npy", spoil(write_world(tmp_path)[name], change))
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        probe(tmp_path, objective)


@pytest.mark.parametrize(("objective", "other"), [("soft", "targets"), ("glocal", "local")])
def test_an_objective_without_what_it_needs_and_with_what_it_does_not_is_refused(
    tmp_path: Path, objective: str, other: str
) -> None:
    write_world(tmp_path)
    with pytest.raises(SystemExit, match="the objective hard has no use for"):
        probe(tmp_path, "hard", f"--{other}", f"{tmp_path}/{other}.npy")
    files = ["--features", f"{tmp_path}/features.npy", "--triplets", f"{tmp_path}/triplets.npy", "--odd", "last"]
    with pytest.raises(SystemExit, match=f"the objective {objective} needs"):
        main(["probe", *files, "--out", f"{tmp_path}/out", "--objective", objective, *GRID])
