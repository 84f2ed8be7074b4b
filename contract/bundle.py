"""The bundle: one aligned model as a folder that any room can trust. Specified in docs/bundle.md.

    manifest.json   what the model is, how its pixels are made, what was measured, hashes
    model.onnx      backbone and alignment head as one graph
    golden.npz      a few encoded images and the vectors they must give

`write_bundle` makes one whole or not at all; `read_bundle` checks everything that can be checked
without running the graph, once, and nobody downstream checks again. Whoever runs the graph (the
app's engine, export's parity gate) then holds its outputs against `Golden` with `check_golden`.
Each way a bundle can be bad has its own error below.
"""

import json
import math
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.files import sha256_of, staged_folder
from contract.manifest import (
    FORMAT,
    FORMAT_VERSION,
    GOLDEN,
    MANIFEST,
    MODEL,
    PAYLOAD,
    Manifest,
    fingerprint,
    parse_manifest,
    space_fingerprint,
)
from contract.pixels import ImageError, load_pixels

MAX_MANIFEST_BYTES = 2**20
MAX_GOLDEN_BYTES = 64 * 2**20


class BundleError(ValueError):
    """A bundle that must not be used. The message says what was found, what was expected, what to do."""


class NotABundle(BundleError):
    """The path is no folder, or has no manifest.json."""


class ManifestTooLarge(BundleError):
    """manifest.json is larger than any honest manifest."""


class ManifestMalformed(BundleError):
    """manifest.json is not JSON, or a field is unknown, missing or of the wrong type or range."""


class UnsupportedVersion(BundleError):
    """Another format, or a format version that this release does not read."""


class PathEscapes(BundleError):
    """A file of the bundle lies outside its folder, or is no regular file."""


class WrongFileSet(BundleError):
    """A file is missing, or one is there that the format does not know."""


class FileCorrupt(BundleError):
    """A file has another size or sha256 than the manifest states."""


class FingerprintMismatch(BundleError):
    """The stated space fingerprint is not the hash of what decides the embedding."""


class GoldenMalformed(BundleError):
    """golden.npz does not hold the arrays the format asks for."""


class GraphMismatch(BundleError):
    """The graph's inputs or outputs are not what the manifest states."""


class GoldenMismatch(BundleError):
    """The graph, or the pixels, do not give the golden vectors."""


@dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no one truth value
class Golden:
    """Images and what they must become.

    Attributes:
        images: encoded files in a lossless format.
        pixels: [n, 3, height, width] of the spec's dtype.
        vectors: space name to float32 [n, size], as the graph gave them where it was exported.
    """

    images: tuple[bytes, ...]
    pixels: NDArray[Any]
    vectors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A bundle that passed every check of `read_bundle`."""

    path: Path
    manifest: Manifest
    golden: Golden

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL


# --- reading ---------------------------------------------------------------------------------


def read_bundle(path: Path | str) -> Bundle:
    """Open a bundle with every check that needs no graph run.

    In this order: folder, manifest size, JSON, format version, schema, file set and paths, hashes,
    fingerprints, golden arrays.

    Raises:
        BundleError: the subclass names the way in which the bundle is bad.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    _check_files(folder, manifest)
    for name, space in manifest.spaces.items():
        expected = space_fingerprint(manifest, name, normalize=False)
        if space.fingerprint != expected:
            raise FingerprintMismatch(
                f"{folder}: space {name!r} states fingerprint {space.fingerprint!r}, but graph and pixel spec "
                f"give {expected!r}. The manifest was edited after export; export the bundle again."
            )
    return Bundle(path=folder, manifest=manifest, golden=_read_golden(folder / GOLDEN, manifest))


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    if not folder.is_dir() or not file.is_file():
        raise NotABundle(f"{folder} is no bundle: expected a folder with {MANIFEST}, {MODEL} and {GOLDEN}.")
    if (size := file.stat().st_size) > MAX_MANIFEST_BYTES:
        raise ManifestTooLarge(f"{file} has {size} bytes; at most {MAX_MANIFEST_BYTES}.")
    try:
        raw = json.loads(file.read_bytes(), parse_constant=_refuse_constant, parse_float=_finite, parse_int=_small)
    except (ValueError, RecursionError) as error:
        raise ManifestMalformed(f"{file} is not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise ManifestMalformed(f"{file} holds a {type(raw).__name__}; expected an object.")
    given = (raw.get("format"), raw.get("format_version"))
    if given != (FORMAT, FORMAT_VERSION):
        raise UnsupportedVersion(
            f"{file} is of format {given[0]!r} version {given[1]!r}; this release reads {FORMAT!r} "
            f"version {FORMAT_VERSION}. Export the bundle again, or install a release that reads it."
        )
    try:
        return parse_manifest(raw)
    except ValueError as error:
        raise ManifestMalformed(f"{file}: {error}") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is infinite")
    return value


def _small(text: str) -> int:
    if abs(value := int(text)) >= 2**63:
        raise ValueError(f"{text[:20]}... is no 64-bit integer")
    return value


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Exact file set, nothing outside the folder, sizes, then hashes."""
    for name in manifest.files:
        if name not in PAYLOAD:
            kind = PathEscapes if Path(name).name != name or name in ("..", ".") else WrongFileSet
            raise kind(f"{folder}: the manifest lists {name!r}; a bundle holds {PAYLOAD} and nothing else.")
    present = {p.name for p in folder.iterdir()}
    expected = {MANIFEST, *PAYLOAD}
    if present != expected or set(manifest.files) != set(PAYLOAD):
        missing = sorted((expected - present) | (set(PAYLOAD) - set(manifest.files)))
        raise WrongFileSet(f"{folder}: missing {missing}, unexpected {sorted(present - expected)}.")
    root = folder.resolve()
    for name in expected:
        file = folder / name
        if not file.is_file() or file.resolve().parent != root:
            raise PathEscapes(f"{file} is no file, or a link out of {root}; every file must lie in the bundle itself.")
    for name, entry in manifest.files.items():
        size = (folder / name).stat().st_size
        if size != entry.bytes:
            raise FileCorrupt(f"{folder / name} has {size} bytes, the manifest states {entry.bytes}. Copy it again.")
    for name, entry in manifest.files.items():
        if (digest := sha256_of(folder / name)) != entry.sha256:
            raise FileCorrupt(
                f"{folder / name} has sha256 {digest}, the manifest states {entry.sha256}. Copy it again."
            )


def _read_golden(file: Path, manifest: Manifest) -> Golden:
    try:
        with zipfile.ZipFile(file) as archive:
            if (total := sum(info.file_size for info in archive.infolist())) > MAX_GOLDEN_BYTES:
                raise GoldenMalformed(f"{file} unpacks to {total} bytes; at most {MAX_GOLDEN_BYTES}.")
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if bare := sorted(name for name, array in arrays.items() if not isinstance(array, np.ndarray)):
            raise GoldenMalformed(f"{file}: {bare} are no arrays.")
    except GoldenMalformed:
        raise
    except Exception as error:
        raise GoldenMalformed(f"{file} is no npz of plain arrays: {error}.") from error
    return _parse_golden(file, arrays, manifest)


def _parse_golden(file: Path, arrays: dict[str, NDArray[Any]], manifest: Manifest) -> Golden:
    expected = {"images", "lengths", "pixels", *manifest.spaces}
    if set(arrays) != expected:
        raise GoldenMalformed(f"{file} holds {sorted(arrays)}; expected {sorted(expected)}.")
    lengths, stream, pixels = arrays["lengths"], arrays["images"], arrays["pixels"]
    n = len(lengths) if lengths.ndim == 1 else 0
    if (
        n == 0
        or lengths.dtype != np.int64
        or (lengths <= 0).any()
        or (lengths > stream.size).any()
        or stream.dtype != np.uint8
        or stream.shape != (lengths.sum(),)
    ):
        raise GoldenMalformed(f"{file}: images {stream.shape} do not split into lengths {lengths.shape}.")
    if pixels.shape != (n, *manifest.pixels.shape) or pixels.dtype != manifest.pixels.dtype:
        wanted = f"{(n, *manifest.pixels.shape)} {manifest.pixels.dtype}"
        raise GoldenMalformed(f"{file}: pixels are {pixels.shape} {pixels.dtype}; expected {wanted}.")
    if not np.isfinite(pixels).all():
        raise GoldenMalformed(f"{file}: pixels are not finite.")
    for name, space in manifest.spaces.items():
        vectors = arrays[name]
        if vectors.shape != (n, space.size) or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
            raise GoldenMalformed(
                f"{file}: {name} is {vectors.shape} {vectors.dtype}; expected finite float32 {(n, space.size)}."
            )
    ends = np.cumsum(lengths)
    images = tuple(stream[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True))
    return Golden(images=images, pixels=pixels, vectors={name: arrays[name] for name in manifest.spaces})


# --- checks of a running graph ----------------------------------------------------------------


def check_golden_pixels(bundle: Bundle) -> None:
    """Decode the golden images here and now and compare with the golden pixels.

    Raises:
        GoldenMismatch: this installation of Pillow makes other pixels than the exporter's did.
    """
    spec, tolerance = bundle.manifest.pixels, bundle.manifest.golden
    # The tolerance is in steps of 0..255; float tensors are in units of value range and std.
    low, high = spec.value_range
    step: Any = 1.0 if spec.dtype == "uint8" else (high - low) / 255 / np.array(spec.std)[:, None, None]
    for i, (image, expected) in enumerate(zip(bundle.golden.images, bundle.golden.pixels, strict=True)):
        try:
            pixels = load_pixels(image, spec)
        except ImageError as error:
            raise GoldenMismatch(f"{bundle.path}: golden image {i}: {error}") from error
        largest = float((np.abs(pixels.astype(np.float64) - expected.astype(np.float64)) / step).max())
        if largest > tolerance.pixel + 1e-3:
            raise GoldenMismatch(
                f"{bundle.path}: golden image {i} decodes {largest:.2f} steps of 0..255 away from its golden pixels "
                f"(allowed: {tolerance.pixel}). Install the Pillow release that the exporter used."
            )


def check_golden(bundle: Bundle, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Compare what a graph run gave for `golden.pixels` with the golden vectors.

    Args:
        vectors: space name to [n, size].

    Returns:
        space name to the largest 1 - cosine seen.

    Raises:
        GoldenMismatch: an output is missing, not finite, or outside the manifest's tolerance.
    """
    tolerance, worst = bundle.manifest.golden, {}
    for name, expected in bundle.golden.vectors.items():
        given = vectors.get(name)
        if given is None or given.shape != expected.shape or not np.isfinite(given).all():
            shape = None if given is None else given.shape
            raise GoldenMismatch(f"{bundle.path}: output {name!r} is {shape} or not finite; expected {expected.shape}.")
        a, b = given.astype(np.float64), expected.astype(np.float64)
        length_a, length_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        off = float(np.max(1 - (a * b).sum(1) / np.maximum(length_a * length_b, 1e-300)))
        stretch = float(np.max(np.abs(length_a / np.maximum(length_b, 1e-300) - 1)))
        if off > tolerance.one_minus_cosine or stretch > tolerance.relative_norm:
            raise GoldenMismatch(
                f"{bundle.path}: output {name!r} is {off:.2e} in 1 - cosine and {stretch:.2e} in length away from the "
                f"golden vectors (allowed: {tolerance.one_minus_cosine:.0e}, {tolerance.relative_norm:.0e}). "
                "The graph, its runtime or the hardware computes something else; it must not serve."
            )
        worst[name] = max(off, 0.0)
    return worst


# --- writing ----------------------------------------------------------------------------------


def write_bundle(target: Path, manifest: Manifest, model: Path, golden: Golden) -> Bundle:
    """Write a bundle folder: temporary sibling, manifest last, read back, rename.

    `manifest.files` and the fingerprints are filled in here, from the bytes written.

    Args:
        target: folder to make; must not exist.
        model: ONNX file to copy in.

    Raises:
        FileExistsError: `target` exists.
        BundleError: what was written would not open; nothing is left behind.
    """
    with staged_folder(target) as staging:
        shutil.copyfile(model, staging / MODEL)
        stream = np.frombuffer(b"".join(golden.images), np.uint8)
        lengths = np.array([len(image) for image in golden.images], np.int64)
        arrays: dict[str, Any] = {"images": stream, "lengths": lengths, "pixels": golden.pixels, **golden.vectors}
        np.savez_compressed(staging / GOLDEN, **arrays)
        raw = manifest.to_json()
        raw["files"] = {
            name: {"bytes": (staging / name).stat().st_size, "sha256": sha256_of(staging / name)} for name in PAYLOAD
        }
        for name, space in raw["spaces"].items():
            space["fingerprint"] = fingerprint(
                raw["files"][MODEL]["sha256"], manifest.pixels, name, normalized=space["normalized"]
            )
        text = json.dumps(raw, indent=2, ensure_ascii=False, allow_nan=False)
        (staging / MANIFEST).write_text(text + "\n", encoding="utf-8")
        read_bundle(staging)
    return read_bundle(target)
