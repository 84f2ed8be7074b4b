"""Files of choices whose odd one stands elsewhere, or whose numbers begin at 1: who notices, and by what."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.training.tiny import TINY, TINY_MODEL, write_tiny_data
from training import vice_fit
from training.__main__ import main
from training.models import MODELS
from training.people import doubt_choices
from training.recipes.vice_own import RECIPE as OWN
from training.run import run
from training.vice import Posterior
from training.vice_data import agreement, fitting_odd, misread, read_triplets, simulate_choices
from training.vice_probabilities import vice_probabilities

OBJECTS = 30
HIGH, LOW = r"0\.[5-9]\d\d", r"0\.[0-3]\d\d"


def embedding() -> NDArray[np.float64]:
    """Three kinds of object, in no order."""
    rng = np.random.default_rng(0)
    return 3 * np.eye(3)[rng.permutation(np.arange(OBJECTS) % 3)] + rng.random((OBJECTS, 3)) / 2


def odd_first(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[:, [2, 0, 1]]


def test_an_embedding_tells_which_column_is_the_odd_one_and_noise_does_not() -> None:
    rows, noise = simulate_choices(embedding(), 1_000, seed=0), np.random.default_rng(1).random((OBJECTS, 4))
    assert fitting_odd(rows, embedding())[0] == "last"
    convention, both = fitting_odd(odd_first(rows), embedding())
    assert convention == "first"
    assert both["first"] == agreement(rows, embedding(), odd="last") > both["last"] + 0.2
    assert fitting_odd(rows, noise)[0] is None
    assert fitting_odd(rows[:10], embedding())[0] is None  # too few to tell
    assert misread(rows, noise, odd="last") is None


def test_many_rows_without_object_0_look_1_based_unless_it_is_said_to_be_absent(tmp_path: Path) -> None:
    rows = np.array([*combinations(range(1, 5), 3)] * 9)  # 21.6 times each of 5 objects
    np.save(tmp_path / "t.npy", rows)
    with pytest.raises(ValueError, match=r"t\.npy looks 1-based: object 0 of 5 is in none of 36 rows.*--zero-absent"):
        read_triplets(tmp_path / "t.npy", 5, odd="last")
    assert len(read_triplets(tmp_path / "t.npy", 5, odd="last", zero_absent=True)) == 36
    np.save(tmp_path / "t.npy", rows[:30])  # of a few rows it may be absent by chance
    assert len(read_triplets(tmp_path / "t.npy", 5, odd="last")) == 30


def check(folder: Path, known: str, *more: str, odd: str = "last") -> None:
    files = [f"{folder}/train.npy", f"{folder}/val.npy", "--out", f"{folder}/out", "--objects", str(OBJECTS)]
    main(["vice", *files, "--odd", odd, "--check", f"{folder}/{known}", *more])


@pytest.fixture(autouse=True)
def no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that is begun ends with the name of its folder."""

    def begun(*given: Any, **_: Any) -> None:
        raise ValueError(f"a fit begins in {given[3]}")

    monkeypatch.setattr(vice_fit, "fit_vice", begun)


@pytest.mark.parametrize("known", ["known.npy", "parameters.npz"])
def test_a_fit_does_not_begin_with_a_file_that_a_known_embedding_contradicts(tmp_path: Path, known: str) -> None:
    right, loc = simulate_choices(embedding(), 1_000, seed=0), embedding().astype(np.float32)
    np.save(tmp_path / "known.npy", loc)
    Posterior(loc - 1, np.full_like(loc, 0.1)).save(tmp_path / "parameters.npz")
    np.save(tmp_path / "train.npy", right)
    np.save(tmp_path / "val.npy", odd_first(right))
    with pytest.raises(
        SystemExit, match=rf"val\.npy: agreement with .* {HIGH} if the odd one stands first, {LOW} if it"
    ):
        check(tmp_path, known)
    with pytest.raises(SystemExit, match=rf"train\.npy: .* {LOW} if .*first, {HIGH} .*, and was said to stand first"):
        check(tmp_path, known, odd="first")
    np.save(tmp_path / "val.npy", right)
    with pytest.raises(SystemExit, match="a fit begins in"):
        check(tmp_path, known)


def test_a_known_embedding_that_fits_neither_way_is_refused_and_1_based_files_are_called_so(tmp_path: Path) -> None:
    rows = simulate_choices(embedding()[:-1], 1_000, seed=0)
    np.save(tmp_path / "known.npy", embedding())
    np.save(tmp_path / "train.npy", rows + 1)
    np.save(tmp_path / "val.npy", rows)
    with pytest.raises(SystemExit, match=r"train\.npy: .* with 1 subtracted from all numbers; the file is 1-based"):
        check(tmp_path, "known.npy", "--zero-absent")
    np.save(tmp_path / "known.npy", np.random.default_rng(1).random((OBJECTS, 4)))
    with pytest.raises(SystemExit, match=r"train\.npy: .*; neither fits"):
        check(tmp_path, "known.npy", "--zero-absent")
    np.save(tmp_path / "known.npy", embedding()[1:])
    with pytest.raises(
        SystemExit, match=r"known\.npy is float64 \(29, 3\); expected finite numbers \[30, dimensions\]"
    ):
        check(tmp_path, "known.npy", "--zero-absent")


def test_features_that_contradict_the_convention_give_a_warning_before_probing(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", embedding().astype(np.float32))
    np.save(tmp_path / "triplets.npy", odd_first(simulate_choices(embedding(), 1_000, seed=0)))
    files = ["--features", f"{tmp_path}/features.npy", "--triplets", f"{tmp_path}/triplets.npy"]
    fit = ["--objective", "global", "--penalties", "0.1", "--learning-rates", "0.01", "--steps", "2"]
    with pytest.warns(UserWarning, match=r"triplets\.npy: .*; the odd one stands first, and was said to stand last"):
        main(["probe", *files, *fit, "--odd", "last", "--out", f"{tmp_path}/wrong"])
    main(["probe", *files, *fit, "--odd", "first", "--out", f"{tmp_path}/right"])  # a warning would be an error here


def test_a_posterior_that_contradicts_the_convention_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "vice.npy", embedding())
    np.save(tmp_path / "rows.npy", odd_first(simulate_choices(embedding(), 1_000, seed=0)))
    given = {"triplets_file": tmp_path / "rows.npy", "vice_file": tmp_path / "vice.npy"}
    with pytest.warns(UserWarning, match=r"rows\.npy: .*; the odd one stands first, and was said to stand last"):
        vice_probabilities(**given, out=tmp_path / "wrong", odd="last")
    vice_probabilities(**given, out=tmp_path / "right", odd="first")
    vice_probabilities(**given, out=tmp_path / "none")  # no choices, so nothing to be right about


def test_photos_that_contradict_a_folders_choices_give_a_warning_and_others_none(tmp_path: Path) -> None:
    concept, last = np.repeat(np.arange(OBJECTS), 2), simulate_choices(embedding(), 1_000, seed=0)
    (tmp_path / "things").mkdir()
    np.save(tmp_path / "things/train_90.npy", odd_first(last))
    np.savetxt(tmp_path / "things/test_10.txt", last, fmt="%d")
    with pytest.warns(UserWarning, match=r"train_90\.npy: .*; the odd one stands first.* remove .*things/vice") as said:
        doubt_choices(tmp_path, OBJECTS, concept, embedding()[concept])
    assert len(said) == 1  # nothing about test_10
    concept[concept < 10] = -1  # of objects without photos nothing is known
    with pytest.warns(UserWarning, match="train_90"):
        doubt_choices(tmp_path, OBJECTS, concept, embedding()[concept])


def test_a_run_asks_the_photos_about_its_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    data = write_tiny_data(tmp_path / "data")
    vice = np.load(data / "things/vice_embedding.npy")
    (data / "things/vice_embedding.npy").unlink()
    np.save(data / "things/train_90.npy", odd_first(simulate_choices(vice, 2_000, seed=0)))
    np.save(data / "things/test_10.npy", simulate_choices(vice, 400, seed=1))
    (data / "things/vice").mkdir()
    Posterior(vice, np.full_like(vice, 0.1)).save(data / "things/vice/pruned_params.npz", "pruned_")
    monkeypatch.setattr("training.people.fit_vice", lambda *_, **__: None)
    with pytest.warns(UserWarning, match=r"train_90\.npy: .*; the odd one stands first"):
        run(TINY, data, tmp_path / "run", OWN)
