"""Representational similarity: Spearman between a model's and people's similarities of all pairs of images.

Model similarities are the Gram matrices of the Pearson kernel (the paper's: every vector centred, scaled, then dot
products) and of cosine; the correlation is Spearman's over the strict upper triangle (Kriegeskorte et al. 2008;
Muttenthaler et al. 2025, "RSA"). A dissimilarity is turned into a similarity by its sign, which leaves the ranks.

Intervals draw images with replacement; pairs of an image with itself are left out, ranks are those of the whole
sample. Where single participants are given, the noise ceiling's bounds are Nili et al.'s (2014): each participant
against the mean of the others (lower) and of all (upper), mean of Spearman's.

Matrices under DATA/rsa/NAME/:

    cichy/       images/*.jpg by name; sim_judgements/judgments_general.mat, `judgments`, dissimilarities
    king/        images/set1, set2; sim_judgements/BEHAVIOR.mat, BEHAVIOR.setN.pairwisedistances, participants x pairs
    peterson/    CATEGORY/images; CATEGORY/sim_judgments/*.mat, a key with "sim", similarities; or *.pickle (fruits)
    NAME/        images/; similarity.csv or dissimilarity.csv (names in the first row and column), or .npy [n, n],
                 [participants, n, n] or [pairs], rows as in names.txt

How King's two sets are combined is left open by the paper; here they are two matrices. rsatoolbox has this measure
too; it is not used, because it brings scikit-image and h5py for readers that nothing here needs.
"""

import csv
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.spatial.distance import squareform
from scipy.stats import rankdata, spearmanr

from contract import triplets
from contract.triplets import Kernel
from training.evaluate import Estimate
from training.evaluation import intervals
from training.evaluation.concepts import concept_data, draw_photos, judged_concepts
from training.evaluation.result import PEOPLE, NotHere, Plot, Result, Row, Setting
from training.evaluation.subjects import Vectors
from training.images import FileImages, read_folder, require_present

Matrix = NDArray[np.float64]
KERNELS: tuple[Kernel, ...] = ("pearson", "cosine")
SYMMETRIC = 1e-6
"""Largest difference between a pair's two entries, of the range of all, that is rounding."""


@dataclass(frozen=True)
class Judgments:
    """People's similarities of images.

    Attributes:
        name: of the data set.
        images: in the order of the matrix.
        similarity: [n, n], larger is more alike.
        participants: [p, n, n] of single people where they are known, or None.
    """

    name: str
    images: FileImages
    similarity: Matrix
    participants: Matrix | None = None


# --- correlations ---------------------------------------------------------------------------------


def upper(matrix: Matrix) -> Matrix:
    """The strict upper triangle [n (n - 1) / 2], row by row."""
    return matrix[np.triu_indices(len(matrix), 1)]


def correlation(first: Matrix, second: Matrix) -> float:
    """Spearman between the strict upper triangles of two [n, n]; NaN where either does not vary."""
    x, y = upper(first), upper(second)
    if x.min() == x.max() or y.min() == y.max():
        return float("nan")
    return float(spearmanr(x, y).statistic)


def _ranks(matrix: Matrix) -> Matrix:
    """Ranks of the pairs, centred, as a symmetric matrix with a zero diagonal."""
    ranks = rankdata(upper(matrix))
    out: Matrix = squareform(ranks - ranks.mean())
    return out


@dataclass(frozen=True)
class _Moments:
    """Two matrices of centred ranks, and their products: what a resampled correlation is summed from."""

    x: Matrix
    y: Matrix
    xx: Matrix
    yy: Matrix
    xy: Matrix

    def correlation(self, w: Matrix) -> float:
        """Pearson's, of pairs weighted w_i w_j; NaN where there is no pair, or no variance."""
        pairs = w.sum() ** 2 - (w * w).sum()
        sx, sy, xx, yy, xy = (w @ m @ w for m in (self.x, self.y, self.xx, self.yy, self.xy))
        if pairs <= 0:
            return float("nan")
        spread = (xx - sx * sx / pairs) * (yy - sy * sy / pairs)
        return float((xy - sx * sy / pairs) / np.sqrt(spread)) if spread > 0 else float("nan")


def _moments(first: Sequence[Matrix], second: Matrix) -> list[_Moments]:
    """Of each of `first` with `second`, whose ranks they share."""
    y = _ranks(second)
    yy = y * y
    return [_Moments(x, y, x * x, yy, x * y) for x in map(_ranks, first)]


def correlations(models: Mapping[str, Sequence[Matrix]], people: Matrix, repetitions: int, seed: int) -> dict[str, Any]:
    """For each model the mean over its matrices of the correlation with people's, and its bootstrap samples.

    Args:
        models: name to matrices [n, n], one a draw of photos; one only where there is one photo a row.
        people: [n, n].
        repetitions: bootstrap samples, the same images in all models.
        seed: of the samples.

    Returns:
        name to (value, samples [repetitions]).

    Raises:
        ValueError: fewer than three images, or similarities that do not vary (the model is named).
    """
    n = len(people)
    if n < 3:
        raise ValueError(f"{n} images have one pair or none; expected at least 3.")
    values = {name: float(np.mean([correlation(m, people) for m in ms])) for name, ms in models.items()}
    if flat := [name for name, value in values.items() if not np.isfinite(value)]:
        raise ValueError(f"similarities by {flat[0]}, or people's, are all equal; they correlate with nothing.")
    moments = {name: _moments(ms, people) for name, ms in models.items()}
    rng = np.random.default_rng(seed)
    samples: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repetitions):
        w = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
        draw = rng.random()
        for name, own in moments.items():
            samples[name].append(own[int(draw * len(own))].correlation(w))
    return {name: (values[name], np.array(samples[name])) for name in models}


def correlation_rows(
    models: Mapping[str, Sequence[Matrix]], people: Matrix, setting: Setting, figure: str, group: str, label: str
) -> list[Row]:
    """Rows of every model and paired difference."""
    c = setting.constants
    found = correlations(models, people, c.repetitions, c.seed)
    rows = []
    for name, (value, samples) in found.items():
        rows.append(Row(figure, name, intervals.of_samples(value, samples, len(people)), group, label, "Spearman"))
    for a, b in setting.pairs:
        difference = intervals.of_samples(found[a][0] - found[b][0], found[a][1] - found[b][1], len(people))
        rows.append(Row(figure, f"{a} - {b}", difference, group, label, "Spearman"))
    return rows


def noise_ceiling(participants: Matrix) -> tuple[float, float]:
    """(lower, upper) bound of what a model can reach (Nili et al. 2014), of [p, n, n], p >= 2."""
    total = participants.sum(0)
    lower = [correlation(own, (total - own) / (len(participants) - 1)) for own in participants]
    return float(np.mean(lower)), float(np.mean([correlation(own, total) for own in participants]))


# --- protocols ------------------------------------------------------------------------------------


def rsa_with_vice(setting: Setting) -> Result:
    """Against VICE's dot products between the judged concepts, mean over draws of one photo a concept."""
    data, c = concept_data(setting.data), setting.constants
    concepts = judged_concepts(setting)
    vice = data.vice[concepts] @ data.vice[concepts].T
    rows = [draw_photos(data, concepts, c.seed + i) for i in range(c.draws)]
    vectors = setting.vectors(data.photos)
    out = Result(notes=[f"{len(concepts)} concepts, mean over {c.draws} draws of one photo each."])
    for kernel in KERNELS:
        grams = {name: [gram(x[drawn], kernel) for drawn in rows] for name, x in vectors.items()}
        out.rows += correlation_rows(grams, vice, setting, "RSA with VICE", "", kernel)
    out.plots.append(Plot("bars", "RSA with VICE", {"figure": "RSA with VICE"}))
    return out


def rsa_with_people(setting: Setting) -> Result:
    """Against every matrix under DATA/rsa/."""
    found = list(read_judgments(setting.data / "rsa"))
    if not found:
        raise NotHere(f"{setting.data} has no rsa/ with judged images")
    out = Result()
    for judged in found:
        vectors = setting.vectors(judged.images)
        for kernel in KERNELS:
            grams = {name: [gram(x, kernel)] for name, x in vectors.items()}
            out.rows += correlation_rows(grams, judged.similarity, setting, "RSA with people", judged.name, kernel)
        if judged.participants is not None and len(judged.participants) > 1:
            low, high = noise_ceiling(judged.participants)
            estimate = Estimate(low, low, high, len(judged.participants))
            out.rows.append(Row("noise ceiling", PEOPLE, estimate, judged.name, "lower to upper bound", "Spearman"))
    out.plots.append(
        Plot("bars", "RSA with people", {"figure": "RSA with people", "setting": "pearson", "people": "noise ceiling"})
    )
    return out


def gram(x: Vectors, kernel: Kernel) -> Matrix:
    """Similarities [n, n] in double precision, correlations and cosines clipped to -1..1."""
    wide = x.astype(np.float64)
    out = triplets.similarity_matrix(wide, wide, kernel)
    return out if kernel == "dot" else np.clip(out, -1, 1)


# --- reading --------------------------------------------------------------------------------------


def read_judgments(folder: Path) -> Iterator[Judgments]:
    """Every data set under a folder, checked.

    Raises:
        ValueError: naming the file: no such matrix, not symmetric, other images than rows, or an unclear order.
    """
    readers = {"cichy": _cichy, "king": _king, "peterson": _peterson}
    for own in sorted(path for path in folder.glob("*") if path.is_dir()):
        yield from readers.get(own.name, _any)(own)


def _cichy(folder: Path) -> Iterator[Judgments]:
    file = folder / "sim_judgements/judgments_general.mat"
    people = _mat(file, "judgments")
    images = _by_name(folder / "images", people.shape[-1], file)
    yield _checked(folder.name, images, people, "dissimilarity", file)


def _king(folder: Path) -> Iterator[Judgments]:
    file = folder / "sim_judgements/BEHAVIOR.mat"
    behaviour = _mat(file, "BEHAVIOR", plain=False)
    for name in ("set1", "set2"):
        own: Any = getattr(behaviour, name, None)
        if not hasattr(own, "pairwisedistances"):
            raise ValueError(f"{file} has no BEHAVIOR.{name}.pairwisedistances.")
        flat = np.atleast_2d(np.asarray(own.pairwisedistances, np.float64))
        people = np.stack([_square(row, file) for row in flat])
        images = _by_name(folder / "images" / name, people.shape[-1], file)
        yield _checked(f"{folder.name} {name}", images, people, "dissimilarity", file)


def _peterson(folder: Path) -> Iterator[Judgments]:
    for category in sorted(path for path in folder.glob("*") if path.is_dir()):
        files = sorted((category / "sim_judgments").glob("*"))
        mats = [file for file in files if file.suffix == ".mat"]
        pickles = [file for file in files if file.suffix in (".pickle", ".pkl")]
        name = f"{folder.name} {category.name}"
        if mats:
            people = _mat(mats[0], re.compile("sim", re.IGNORECASE))
            images = _by_name(category / "images", people.shape[-1], mats[0])
            yield _checked(name, images, people, "similarity", mats[0])
        elif pickles:
            yield _rated(name, category, pickles[0])
        else:
            raise ValueError(f"{category} has no .mat and no .pickle under sim_judgments/.")


def _rated(name: str, category: Path, file: Path) -> Judgments:
    """Fruits: {"a1.png,b2.png": ratings}; the whole number in a file's name, minus 1, is its row."""
    with file.open("rb") as stream:
        try:
            ratings = _PlainOnly(stream).load()
        except Exception as error:  # a damaged pickle raises almost anything
            raise ValueError(f"{file} is not read: {error}.") from error
    images = read_folder(category / "images")
    numbered = {_number(n, file): n for n in images.names}
    n = len(images)
    if sorted(numbered) != list(range(1, n + 1)):
        raise ValueError(f"{category / 'images'}: {n} files; expected one for each number from 1 to {n}.")
    people = np.full((n, n), np.nan)
    np.fill_diagonal(people, 10.0)
    for key, values in ratings.items():
        i, j = (_number(part, file) - 1 for part in key.split(","))
        if not (0 <= i < n and 0 <= j < n):
            raise ValueError(f"{file}: {key!r} is outside the {n} images.")
        people[i, j] = people[j, i] = float(np.mean(values))
    ordered = FileImages(images.root, tuple(numbered[i] for i in range(1, n + 1)))
    return _checked(name, ordered, people, "similarity", file)


def _any(folder: Path) -> Iterator[Judgments]:
    kinds = ("similarity", "dissimilarity")
    files = [folder / f"{kind}{end}" for kind in kinds for end in (".csv", ".npy")]
    found = [file for file in files if file.is_file()]
    if len(found) != 1:
        raise ValueError(f"{folder} has {len(found)} of {[f.name for f in files]}; expected one, which says its kind.")
    file = found[0]
    if file.suffix == ".csv":
        names, people = _read_csv(file)
    else:
        if not (folder / "names.txt").is_file():
            raise ValueError(f"{folder} has no names.txt: which image is which row of {file.name}?")
        names = (folder / "names.txt").read_text().split("\n")
        names = [name for name in names if name]
        people = np.asarray(np.load(file, allow_pickle=False), np.float64)
        people = _square(people, file) if people.ndim == 1 else people
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: a name stands twice.")
    images = FileImages(folder / "images", tuple(names))
    require_present(images, str(folder / "images"))
    yield _checked(folder.name, images, people, file.stem, file)


def _read_csv(file: Path) -> tuple[list[str], Matrix]:
    with file.open(newline="") as stream:
        rows = [row for row in csv.reader(stream) if row]
    columns = rows[0][1:] if rows else []
    if [row[0] for row in rows[1:]] != columns:
        raise ValueError(f"{file}: names of rows and columns differ or stand in another order.")
    try:
        return columns, np.array([[float(cell) for cell in row[1:]] for row in rows[1:]])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _by_name(folder: Path, n: int, file: Path) -> FileImages:
    """Images of a folder sorted by name, or in the order of order.txt beside it.

    Raises:
        ValueError: not n of them, or numbers in the names sort otherwise as numbers than as text.
    """
    images = read_folder(folder)
    written = folder.with_name("order.txt") if folder.name == "images" else folder.parent / f"{folder.name}-order.txt"
    if written.is_file():
        names = [name for name in written.read_text().split("\n") if name]
        if sorted(names) != sorted(images.names):
            raise ValueError(f"{written} does not list the {len(images)} files of {folder}, each once.")
        images = FileImages(folder, tuple(names))
    elif (natural := sorted(images.names, key=_natural)) != list(images.names):
        first = next(a for a, b in zip(natural, images.names, strict=True) if a != b)
        raise ValueError(
            f"{folder}: sorted as text and by number the files stand in different orders, from {first!r} on. Which is "
            f"that of {file.name}? Write the names, one a line, to {written}."
        )
    if len(images) != n:
        raise ValueError(f"{folder} has {len(images)} images, {file} has {n} rows; they must match.")
    return FileImages(folder, images.names)


def _natural(name: str) -> list[Any]:
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdecimal() else part for part in parts]


def _number(name: str, file: Path) -> int:
    numbers = re.findall(r"\d+", Path(name).stem)
    if len(numbers) != 1:
        raise ValueError(f"{file}: {name!r} has {len(numbers)} numbers; expected one, the image's.")
    return int(numbers[0])


def _mat(file: Path, key: str | re.Pattern[str], *, plain: bool = True) -> Any:
    """One variable of a MATLAB file before version 7.3."""
    if not file.is_file():
        raise ValueError(f"no judgments at {file}.")
    try:
        found = loadmat(file, squeeze_me=True, struct_as_record=False)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"{file} is not read: {error}. Save it again as MATLAB 7 (-v7), or as .npy.") from error
    names = [name for name in found if not name.startswith("__")]
    wanted = [name for name in names if (name == key if isinstance(key, str) else key.search(name))]
    if not wanted:
        raise ValueError(f"{file} holds {names}; expected {key if isinstance(key, str) else key.pattern!r}.")
    return np.asarray(found[wanted[0]], np.float64) if plain else found[wanted[0]]


def _square(flat: Matrix, file: Path) -> Matrix:
    try:
        out: Matrix = squareform(flat)
    except ValueError as error:
        raise ValueError(f"{file}: {flat.shape} values are not the pairs of any number of images.") from error
    return out


def _checked(name: str, images: FileImages, people: Matrix, kind: str, file: Path) -> Judgments:
    """Averaged, as similarities. Raises ValueError where the matrix cannot be one of these images."""
    n = len(images)
    if people.ndim not in (2, 3) or people.shape[-2:] != (n, n):
        raise ValueError(
            f"{file} is {people.shape}; expected [{n}, {n}] or [participants, {n}, {n}], as many as images."
        )
    single = people if people.ndim == 3 else None
    mean = people.mean(0) if people.ndim == 3 else people
    i, j = np.triu_indices(n, 1)
    if not (np.isfinite(mean[i, j]) & np.isfinite(mean[j, i])).all():
        bad = int((~np.isfinite(mean[i, j])).sum())
        raise ValueError(f"{file}: {bad} of {len(i)} pairs of images have no number.")
    apart = np.abs(mean[i, j] - mean[j, i])
    if apart.max() > SYMMETRIC * max(float(np.ptp(mean[i, j])), 1e-12):
        k = int(apart.argmax())
        raise ValueError(f"{file} is not symmetric: entries {i[k]}, {j[k]} are {mean[i[k], j[k]]}, {mean[j[k], i[k]]}.")
    sign = 1.0 if kind == "similarity" else -1.0
    return Judgments(name, images, sign * mean, None if single is None else sign * single)


class _PlainOnly(pickle.Unpickler):
    """Strings, numbers, lists and dicts; anything that would need a name looked up is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and only plain values are read")
