"""The manifest of a bundle: what the model is, how its pixels are made, what was measured. See docs/bundle.md."""

import hashlib
import json
import math
import re
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, get_args

from contract.pixels import PixelSpec
from contract.triplets import KERNELS, TIE_RULES, Kernel, TieRule

FORMAT = "alignet-bundle"
FORMAT_VERSION = 1

MANIFEST, MODEL, GOLDEN = "manifest.json", "model.onnx", "golden.npz"
PAYLOAD = (MODEL, GOLDEN)
"""The files that stand beside the manifest: these, and no others."""

SPACES = ("aligned", "base")
GRAPH_INPUT = "pixels"
"""Name of the graph's one input, [n, 3, height, width]; each space is an output [n, size] of its own name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX64 = re.compile(r"[0-9a-f]{64}")


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


def parse_manifest(raw: dict[str, Any]) -> Manifest:
    """The manifest that a JSON object states.

    Raises:
        ValueError: a field is unknown, missing, of another type or out of its range; the message names it.
    """
    _check_text(raw)
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


_Place = tuple["_Place | None", str | int]
"""Of a value: that of what holds it, and the key or position there."""


def _check_text(raw: dict[str, Any]) -> None:
    """Raises ValueError for half a surrogate pair: JSON can escape one, but no reply and no page can hold it."""
    waiting: list[tuple[_Place | None, Any]] = [(None, raw)]  # no recursion: what is nested deeply is still good JSON
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str) and not _is_text(value):
            raise ValueError(f"{_named(place)} is {value!r}; expected Unicode text, no half of a surrogate pair.")
        if isinstance(value, dict):
            if wrong := [key for key in value if not _is_text(key)]:
                raise ValueError(f"{_named(place)} has the key {wrong[0]!r}; expected Unicode text.")
            waiting += [((place, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [((place, i), item) for i, item in enumerate(value)]


def _named(place: _Place | None) -> str:
    names = []
    while place is not None:
        place, name = place
        names.append(str(name))
    return ".".join(reversed(names)) or "manifest"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return False
    return True


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
        wanted = "1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        raise ValueError(f"name is {manifest.name!r}; expected {wanted}.")
    if not _is_time(manifest.created):
        wanted = "a time as ISO 8601 has it, such as 2026-01-01T00:00:00Z"
        raise ValueError(f"created is {manifest.created!r}; expected {wanted}.")
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
