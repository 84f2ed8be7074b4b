"""The `transform` stage: apply a transform to features of any number, and read the transforms that others published.

gLocal's repository holds transforms in two layouts:

- transform.npz with weights, mean, std and mostly bias: `Transform.load` reads it as it is.
- a pickle {source: {model: {module: W or [W | b]}}}, W for row vectors, told from [W | b] by being square. It has no
  mean and std: those of all THINGS features of that model belong to it. A pickle can run any code when it is loaded,
  so this one is read by an unpickler that builds numpy arrays of numbers and refuses everything else.
"""

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contract.files import sha256_of, whole
from training.align import Transform
from training.named_rows import names_beside, write_names
from training.stage import blocks, claim, read_features, write_json

DINO_IN_PLACE_OF_DINOV2 = "2bcb2d77346fbaec29326edc54bc03060145ecbb1fb5d80c3c7733241a71dd69"
"""Sha256 of gLocal's transforms/dino-vit-base-p16/norm/transform.npz. Its dinov2-vit-base-p14/norm/transform.npz has
been the same file, byte by byte, since the commit of 26 March 2024 that made the transforms loadable; the first upload
(d1860d3, sha256 9cf041b7...) was another."""

FAR = 2.0
"""Factor between the spread of features and that of the features a transform was fitted on that is worth a word."""

ARRAYS = {
    (package + module, name)
    for package in ("numpy.core.", "numpy._core.")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype")}
"""All that a pickle of numpy arrays needs."""


@dataclass(frozen=True)
class Legacy:
    """What to take from a legacy pickle, and what it lacks.

    Attributes:
        entry: (source, model, module).
        mean, std: of all THINGS features of that model and module.
    """

    entry: tuple[str, str, str]
    mean: float
    std: float


def read_transform(file: Path, legacy: Legacy | None = None) -> Transform:
    """A transform of any known layout.

    Raises:
        ValueError: no transform, a pickle without `legacy` or with more in it than arrays, or gLocal's file for
            DINOv2-B, which is DINO's.
    """
    with file.open("rb") as stream:
        is_pickle = stream.read(1) == pickle.PROTO or file.suffix in (".pkl", ".pickle")
    if is_pickle != (legacy is not None):
        what = "is a pickle; say which --entry SOURCE MODEL MODULE to take, and --mean and --std of its THINGS features"
        raise ValueError(
            f"{file} {what if is_pickle else 'is no pickle; it has no --entry, and its own mean and std'}."
        )
    if legacy is not None:
        return _read_legacy(file, legacy)
    if sha256_of(file) == DINO_IN_PLACE_OF_DINOV2:
        said = f"{file} is gLocal's transform of dino-vit-base-p16, published under the name of dinov2-vit-base-p14 too"
        if any(part.startswith("dinov2") for part in file.absolute().parts):
            raise ValueError(f"{said}; for DINOv2 it is wrong. Learn one with `probe`; for DINO, rename the folder.")
        warnings.warn(f"{said}; it is right for DINO only.", stacklevel=2)
    return Transform.load(file)


def transform(transform_file: Path, features_file: Path, out: Path, legacy: Legacy | None = None) -> dict[str, Any]:
    """Apply a transform to features block by block, and write a folder; what is complete is not done again.

    identity.json   sha256 of both inputs, versions
    aligned.npy     float32 [n, d], to be mapped into memory
    names.txt       the image of each row, where the features have such a list beside them
    summary.json    written last: counts, and how the standardised features are spread

    Returns:
        what summary.json holds.

    Raises:
        ValueError: bad files (the row is named), other widths, or `out` belongs to other files.
    """
    loaded = read_transform(transform_file, legacy)
    features, digest = read_features(features_file)
    expected = loaded.weights.shape[0]
    if features.shape[1] != expected:
        raise ValueError(f"{features_file} is {features.shape}; {transform_file} maps {expected} features a row.")
    inputs = {"features": digest, "transform": sha256_of(transform_file)}
    taken = {} if legacy is None else {"entry": list(legacy.entry), "mean": legacy.mean, "std": legacy.std}
    out.mkdir(parents=True, exist_ok=True)
    claim(out / "identity.json", {"inputs": inputs} | taken, ("numpy",))
    write_names(out, names_beside(features_file, len(features)))
    if not (out / "summary.json").exists() or not (out / "aligned.npy").exists():
        _write_aligned(out / "aligned.npy", loaded, features, features_file)
    summary: dict[str, Any] = {"inputs": inputs, "rows": len(features), "width": list(loaded.weights.shape)}
    if not loaded.mean.ndim:  # one mean and one std of all features: then these should be near 0 and 1
        summary["standardised"] = _spread(loaded, features)
        mean, std = (summary["standardised"][name] for name in ("mean", "std"))
        if not (1 / FAR < std < FAR and abs(mean) < FAR - 1):
            warnings.warn(
                f"after the standardisation of {transform_file}, {features_file} has mean {mean:.2f} and deviation "
                f"{std:.2f}, not 0 and 1. Are they of the same model, layer and scale (not normalised)?",
                stacklevel=2,
            )
    write_json(out / "summary.json", summary)
    return summary


def _write_aligned(file: Path, loaded: Transform, features: NDArray[np.float32], features_file: Path) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(features), loaded.weights.shape[1])}
    with whole(file) as stream, tqdm(total=len(features), desc="transform", unit="row", unit_scale=True) as bar:
        np.lib.format.write_array_header_1_0(stream, header)
        for start, block in blocks(features):
            try:
                aligned = loaded.apply(block)
            except ValueError as error:
                raise ValueError(f"{features_file}, rows {start} to {start + len(block) - 1}: {error}") from error
            finite = np.isfinite(aligned).all(1)
            if not finite.all():
                raise ValueError(f"{features_file}, row {start + int((~finite).argmax())}: it is not finite aligned.")
            stream.write(aligned.astype("<f4").tobytes())
            bar.update(len(block))


def _spread(loaded: Transform, features: NDArray[np.float32]) -> dict[str, float]:
    """Mean and standard deviation of all standardised features, in double precision, block by block."""
    total = squares = 0.0
    for _, block in blocks(features):
        x = (block.astype(np.float64) - float(loaded.mean)) / float(loaded.std)
        total, squares = total + x.sum(), squares + (x**2).sum()
    mean = total / features.size
    return {"mean": float(mean), "std": float(np.sqrt(max(0.0, squares / features.size - mean**2)))}


class _ArraysOnly(pickle.Unpickler):
    """Builds dicts, strings, numbers and numpy arrays; any other name in the file ends it before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
            return _encode_latin1
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, and only numpy arrays are read")
        return super().find_class(module, name)


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text to encode as {encoding}")
    return text.encode("latin1")


def _read_legacy(file: Path, legacy: Legacy) -> Transform:
    try:
        with file.open("rb") as stream:
            found = _ArraysOnly(stream).load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(f"{file} is not read: {error}. Save the weights, bias, mean and std as .npz.") from error
    for key in legacy.entry:
        if not isinstance(found, dict) or key not in found:
            there = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"{file} has no {' / '.join(legacy.entry)}: expected {key!r} among {there}.")
        found = found[key]
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f":
        raise ValueError(f"{file}: {' / '.join(legacy.entry)} is no floating-point matrix.")
    rows, columns = found.shape
    if columns not in (rows, rows + 1) or not np.isfinite(found).all():
        raise ValueError(f"{file}: {' / '.join(legacy.entry)} is {found.shape}; expected finite [p, p] or [p, p + 1].")
    if not (np.isfinite(legacy.mean) and 0 < legacy.std < np.inf):
        raise ValueError(f"mean is {legacy.mean}, std {legacy.std}; expected finite, and std above 0.")
    wide = found.astype(np.float32)
    bias = wide[:, rows] if columns > rows else np.zeros(rows, np.float32)
    numbers = (np.array(value, np.float32) for value in (legacy.mean, legacy.std, np.nan))
    return Transform(np.ascontiguousarray(wide[:, :rows]), bias.copy(), *numbers)
