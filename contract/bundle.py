"""The bundle: one aligned model as a folder that any room can trust. Specified in docs/bundle.md.

    manifest.json   what the model is, how its pixels are made, what was measured, hashes
    model.onnx      backbone and alignment head as one graph
    golden.npz      a few encoded images and the vectors they must give

`write_bundle` makes one whole or not at all; `read_bundle` checks everything that can be checked
without running the graph, once, and nobody downstream checks again. Whoever runs the graph (the
app's engine, export's parity gate) then holds its outputs against `Golden` with `check_golden`.
Each way a bundle can be bad has its own error below.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from contract.pixels import ImageError, PixelSpec, load_pixels
from contract.triplets import KERNELS, TIE_RULES, Kernel, TieRule

FORMAT = "alignet-bundle"
FORMAT_VERSION = 1

MANIFEST, MODEL, GOLDEN = "manifest.json", "model.onnx", "golden.npz"
PAYLOAD = (MODEL, GOLDEN)
"""The files that stand beside the manifest: these, and no others."""

MAX_MANIFEST_BYTES = 2**20
MAX_GOLDEN_BYTES = 64 * 2**20
SPACES = ("aligned", "base")
GRAPH_INPUT = "pixels"
"""Name of the graph's one input, [n, 3, height, width]; each space is an output [n, size] of its own name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX64 = re.compile(r"[0-9a-f]{64}")


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


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size in bytes and sha256 (lowercase hex) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Space:
    """One embedding space the graph gives: `aligned`, or `base` where it is a by-product.

    Attributes:
        size: length of a vector.
        normalized: whether the graph itself gives unit vectors.
        similarity: the kernel that judgments in this space use.
        temperature: T dividing that similarity in the choice probabilities.
        calibrated: whether T was fitted; entropy means something only then.
        calibrated_on: what T was fitted on; empty if it was not.
        fingerprint: `fingerprint()` of this space, vectors as the graph gives them.
        dimensions: what each value of a vector stands for, in words; empty where they have no meaning of their own.
    """

    size: int
    normalized: bool
    similarity: Kernel
    temperature: float
    calibrated: bool
    calibrated_on: str
    fingerprint: str
    dimensions: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Where the backbone comes from and under which licence its weights are."""

    name: str
    source: str
    license: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number with its 95 % interval and the command that gives it.

    `value`, `low`, `high` are None where the data allow none; `note` then says why.
    """

    name: str
    space: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    note: str
    command: str


@dataclass(frozen=True, kw_only=True)
class GoldenTolerance:
    """How far a run may be from the golden vectors and pixels before the bundle is refused.

    `one_minus_cosine` bounds the direction, `relative_norm` the length, `pixel` the largest
    difference of a pixel in steps of 0..255 (decoders of lossless formats agree exactly;
    resizing may round differently between releases of Pillow).
    """

    one_minus_cosine: float
    relative_norm: float
    pixel: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json. Every field but `calibration` is required; docs/bundle.md says what each one means."""

    format: str
    format_version: int
    name: str
    description: str
    created: str
    alignment: str
    license: str
    base_model: BaseModel
    training: dict[str, Any]
    pixels: PixelSpec
    spaces: dict[str, Space]
    precision: str
    tie_rule: TieRule
    figures: list[Figure]
    parity: dict[str, Any]
    golden: GoldenTolerance
    files: dict[str, FileEntry]
    calibration: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        out = asdict(self)
        out["pixels"] = self.pixels.to_json()
        for space in out["spaces"].values():
            if names := space.pop("dimensions"):  # releases before this field read the bundles that have none
                space["dimensions"] = list(names)
        return out


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


def fingerprint(model_sha256: str, pixels: PixelSpec, space: str, *, normalized: bool) -> str:
    """Space fingerprint: 32 hex digits of sha256 over all that decides an embedding.

    That is: the graph with its weights and alignment head (its sha256), the pixel spec, which output
    of the graph, and whether vectors are scaled to length 1. Two vectors may be compared only if
    their fingerprints are equal; an index that stores it never mixes spaces.
    """
    decided_by = {"model": model_sha256, "pixels": pixels.to_json(), "space": space, "normalized": normalized}
    return hashlib.sha256(_canonical(decided_by)).hexdigest()[:32]


def space_fingerprint(manifest: Manifest, space: str, *, normalize: bool) -> str:
    """Fingerprint of vectors of `space`, as the graph gives them or, if `normalize`, scaled to length 1."""
    sha256 = manifest.files[MODEL].sha256
    normalized = normalize or manifest.spaces[space].normalized
    return fingerprint(sha256, manifest.pixels, space, normalized=normalized)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


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
        return _parse_manifest(raw)
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


def _parse_manifest(raw: dict[str, Any]) -> Manifest:
    values = _fields(Manifest, raw, "manifest")
    values["base_model"] = BaseModel(**_fields(BaseModel, values["base_model"], "base_model"))
    values["golden"] = GoldenTolerance(**_fields(GoldenTolerance, values["golden"], "golden"))
    values["pixels"] = PixelSpec.from_json(_object(values["pixels"], "pixels"))
    values["figures"] = [Figure(**_fields(Figure, f, f"figures[{i}]")) for i, f in enumerate(values["figures"])]
    for key, kind in (("spaces", Space), ("files", FileEntry)):
        items = _object(values[key], key)
        values[key] = {k: kind(**_fields(kind, v, f"{key}.{k}")) for k, v in items.items()}
    values["spaces"] = {k: replace(v, dimensions=tuple(v.dimensions)) for k, v in values["spaces"].items()}
    manifest = Manifest(**values)
    _check_values(manifest)
    return manifest


# Field annotations that are plain enough to check by isinstance; the rest are parsed above.
_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    bool: (bool,),
    float: (int, float),
    float | None: (int, float, type(None)),
    dict[str, Any]: (dict,),
    list[Figure]: (list,),
    tuple[str, ...]: (list,),
    Kernel: (str,),
    TieRule: (str,),
}


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a {type(value).__name__}; expected an object.")
    return value


def _fields(kind: Any, value: Any, where: str) -> dict[str, Any]:
    """The fields of dataclass `kind` and no others, plain ones of the right type. Raises ValueError."""
    given = _object(value, where)
    known = {f.name: f.type for f in fields(kind)}
    optional = {f.name for f in fields(kind) if f.default_factory is not MISSING}
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{where} has unknown fields {unknown}; known are {sorted(known)}.")
    if missing := sorted(set(known) - set(given) - optional):
        raise ValueError(f"{where} lacks {missing}.")
    for name, item in given.items():
        annotation = known[name]
        allowed = _PLAIN.get(annotation)
        # bool is an int to Python, never to us.
        if allowed and (not isinstance(item, allowed) or (isinstance(item, bool) and bool not in allowed)):
            raise ValueError(f"{where}.{name} is {item!r}; expected {annotation}.")
    return dict(given)


def _check_values(manifest: Manifest) -> None:
    """Ranges and choices that types alone do not say. Raises ValueError."""
    if not _NAME.fullmatch(manifest.name):
        raise ValueError(f"name is {manifest.name!r}; expected 1 to 64 letters, digits, '.', '_' or '-'.")
    if manifest.tie_rule not in TIE_RULES:
        raise ValueError(f"tie_rule is {manifest.tie_rule!r}; expected one of {TIE_RULES}.")
    if "aligned" not in manifest.spaces or not set(manifest.spaces) <= set(SPACES):
        raise ValueError(f"spaces are {sorted(manifest.spaces)}; expected 'aligned' and at most 'base' beside it.")
    for name, space in manifest.spaces.items():
        if space.similarity not in get_args(Kernel):
            raise ValueError(f"spaces.{name}.similarity is {space.similarity!r}; expected one of {KERNELS}.")
        if not 1 <= space.size <= 65_536:
            raise ValueError(f"spaces.{name}.size is {space.size}; expected 1 to 65536.")
        if not (math.isfinite(space.temperature) and space.temperature > 0):
            raise ValueError(f"spaces.{name}.temperature is {space.temperature}; expected a finite number above 0.")
        if space.calibrated != bool(space.calibrated_on):
            raise ValueError(f"spaces.{name}: calibrated={space.calibrated} and {space.calibrated_on!r} contradict.")
        names = space.dimensions
        words = all(isinstance(text, str) and 0 < len(text.strip()) <= 200 for text in names)
        if names and not (words and len(names) == len(set(names)) == space.size):
            wanted = f"{space.size} different ones of at most 200 characters"
            raise ValueError(f"spaces.{name}.dimensions has {len(names)} names; expected {wanted}.")
    for name in ("one_minus_cosine", "relative_norm", "pixel"):
        value = getattr(manifest.golden, name)
        if not (math.isfinite(value) and 0 <= value < 256):
            raise ValueError(f"golden.{name} is {value}; expected a finite number from 0.")
    for name, entry in manifest.files.items():
        if not _HEX64.fullmatch(entry.sha256) or entry.bytes < 0:
            raise ValueError(f"files.{name} holds no sha256 of 64 hex digits, or a negative size.")


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


def sha256_of(file: Path) -> str:
    """Lowercase hex sha256 of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target` that becomes it, whole, when the block ends without an error.

    Raises:
        FileExistsError: `target` is there already; nothing is overwritten.
    """
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists; remove it or choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging
        for file in filter(Path.is_file, staging.rglob("*")):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        staging.chmod(0o755)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


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
