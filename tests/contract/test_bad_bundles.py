"""Every way a bundle can be bad, each refused by the error that names it."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from contract.bundle import (
    MAX_GOLDEN_BYTES,
    MAX_MANIFEST_BYTES,
    Bundle,
    BundleError,
    FileCorrupt,
    FingerprintMismatch,
    GoldenMalformed,
    GoldenMismatch,
    GraphMismatch,
    ManifestMalformed,
    ManifestTooLarge,
    NotABundle,
    PathEscapes,
    UnsupportedVersion,
    WrongFileSet,
    read_bundle,
)
from contract.files import sha256_of
from contract.manifest import (
    FORMAT,
    GOLDEN,
    MANIFEST,
    MODEL,
    FileEntry,
)
from tests.contract.bundles import SHA, Way, a_manifest


def edited(change: Callable[[dict[str, Any]], object]) -> Way:
    def way(folder: Path) -> None:
        raw = json.loads((folder / MANIFEST).read_text())
        change(raw)
        (folder / MANIFEST).write_text(json.dumps(raw))

    return way


def setting(*path: Any) -> Way:
    """The manifest with the value at path[:-1] replaced by path[-1]."""

    def change(raw: Any) -> None:
        *parents, key, value = path
        for parent in parents:
            raw = raw[parent]
        raw[key] = value

    return edited(change)


def lacking(*path: Any) -> Way:
    def change(raw: Any) -> None:
        for parent in path[:-1]:
            raw = raw[parent]
        del raw[path[-1]]

    return edited(change)


def manifest_text(text: str | bytes) -> Way:
    return lambda folder: (folder / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())


def replaced(old: str, new: str) -> Way:
    def way(folder: Path) -> None:
        text = (folder / MANIFEST).read_text()
        assert old in text
        (folder / MANIFEST).write_text(text.replace(old, new, 1))

    return way


def resealed(folder: Path) -> None:
    """State the sizes and hashes that the files now have: an attacker, or a broken exporter, would."""

    def change(raw: dict[str, Any]) -> None:
        for name, entry in raw["files"].items():
            entry.update(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))

    edited(change)(folder)


def golden_bytes(data: bytes) -> Way:
    def way(folder: Path) -> None:
        (folder / GOLDEN).write_bytes(data)
        resealed(folder)

    return way


def golden_with(drop: str = "", **changes: Any) -> Way:
    def way(folder: Path) -> None:
        with np.load(folder / GOLDEN) as archive:
            arrays = {name: archive[name] for name in archive.files if name != drop}
        new = {name: change(arrays[name]) if callable(change) else change for name, change in changes.items()}
        np.savez_compressed(folder / GOLDEN, **{**arrays, **new})
        resealed(folder)

    return way


def golden_member(name: str, data: bytes) -> Way:
    """golden.npz with one more, or another, raw zip member."""

    def way(folder: Path) -> None:
        with zipfile.ZipFile(folder / GOLDEN) as archive:
            members = {
                n: archive.read(n) for n in archive.namelist() if n.removesuffix(".npy") != name.removesuffix(".npy")
            }
        with zipfile.ZipFile(folder / GOLDEN, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in {**members, name: data}.items():
                archive.writestr(member, content)
        resealed(folder)

    return way


def linked(name: str, to: str) -> Way:
    """The file moved to `to` (relative to the bundle) and a symbolic link in its place."""

    def way(folder: Path) -> None:
        (folder / name).rename(folder / to)
        (folder / name).symlink_to(to)

    return way


def instead(name: str, make: Callable[[Path], object]) -> Way:
    def way(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return way


def in_bytes(name: str, change: Callable[[bytes], bytes]) -> Way:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def npy_promising(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + b"few bytes"


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


BAD: list[tuple[str, Way, type[BundleError], str]] = [
    # the folder
    ("no folder", shutil.rmtree, NotABundle, "no bundle"),
    ("a file", lambda f: (shutil.rmtree(f), f.write_bytes(b"")), NotABundle, "no bundle"),
    ("no manifest", lambda f: (f / MANIFEST).unlink(), NotABundle, MANIFEST),
    ("a folder for a manifest", instead(MANIFEST, Path.mkdir), NotABundle, MANIFEST),
    ("a manifest linked to itself", instead(MANIFEST, lambda p: p.symlink_to(p.name)), NotABundle, MANIFEST),
    # the manifest as JSON
    ("a huge manifest", manifest_text(b" " * (MAX_MANIFEST_BYTES + 1)), ManifestTooLarge, str(MAX_MANIFEST_BYTES)),
    ("an empty manifest", manifest_text(""), ManifestMalformed, "not JSON"),
    ("no JSON", manifest_text("name: toy"), ManifestMalformed, "not JSON"),
    ("no text", manifest_text(b'{"name": "\xff"}'), ManifestMalformed, "not JSON"),
    ("cut JSON", in_bytes(MANIFEST, lambda b: b[:-3]), ManifestMalformed, "not JSON"),
    ("deep lists", manifest_text("[" * 500_000), ManifestMalformed, "not JSON"),
    ("deep objects", manifest_text('{"a":' * 150_000), ManifestMalformed, "not JSON"),
    ("a list", manifest_text("[]"), ManifestMalformed, "list"),
    ("a number", manifest_text("7"), ManifestMalformed, "int"),
    ("null", manifest_text("null"), ManifestMalformed, "NoneType"),
    ("NaN", replaced('"temperature": 1.5', '"temperature": NaN'), ManifestMalformed, "NaN"),
    ("Infinity", replaced('"value": 0.6', '"value": -Infinity'), ManifestMalformed, "-Infinity"),
    ("an infinite figure", replaced('"value": 0.6', '"value": 1e999'), ManifestMalformed, "inf"),
    ("infinity in a free field", replaced('"seed": 1', '"seed": 1e999'), ManifestMalformed, "inf"),
    # format and version
    ("another format", setting("format", "onnx-bundle"), UnsupportedVersion, "'onnx-bundle'"),
    ("no format", lacking("format"), UnsupportedVersion, "None"),
    ("a newer version", setting("format_version", 2), UnsupportedVersion, "version 2"),
    ("no version", lacking("format_version"), UnsupportedVersion, "None"),
    ("a version as text", setting("format_version", "1"), UnsupportedVersion, "'1'"),
    ("a newer version with new fields", edited(lambda m: m.update(format_version=2, new=1)), UnsupportedVersion, "2"),
    ("a version that is true", setting("format_version", True), ManifestMalformed, "format_version"),
    # fields
    ("an unknown field", setting("note", ""), ManifestMalformed, "manifest has unknown fields ['note']"),
    (
        "an unknown field of a space",
        setting("spaces", "base", "note", ""),
        ManifestMalformed,
        "spaces.base has unknown",
    ),
    ("an unknown field of a figure", setting("figures", 1, "note2", ""), ManifestMalformed, "figures[1] has unknown"),
    (
        "an unknown field of pixels",
        setting("pixels", "gamma", 1),
        ManifestMalformed,
        "pixels has unknown fields ['gamma']",
    ),
    ("an unknown field of a file", setting("files", MODEL, "mode", 1), ManifestMalformed, f"files.{MODEL} has unknown"),
    (
        "an unknown field of golden",
        setting("golden", "size", 1),
        ManifestMalformed,
        "golden has unknown fields ['size']",
    ),
    ("no files", lacking("files"), ManifestMalformed, "lacks ['files']"),
    ("no name", lacking("name"), ManifestMalformed, "lacks ['name']"),
    ("no size", lacking("spaces", "base", "size"), ManifestMalformed, "spaces.base lacks ['size']"),
    ("no sha256", lacking("files", GOLDEN, "sha256"), ManifestMalformed, f"files.{GOLDEN} lacks ['sha256']"),
    ("no note", lacking("figures", 0, "note"), ManifestMalformed, "figures[0] lacks ['note']"),
    ("no height", lacking("pixels", "height"), ManifestMalformed, "pixels lacks ['height']"),
    ("a base model that is text", setting("base_model", "toy"), ManifestMalformed, "base_model is a str"),
    ("spaces that are a list", setting("spaces", []), ManifestMalformed, "spaces is a list"),
    ("a space that is null", setting("spaces", "base", None), ManifestMalformed, "spaces.base is a NoneType"),
    ("files that are a list", setting("files", [MODEL]), ManifestMalformed, "files is a list"),
    ("a figure that is a number", setting("figures", 0, 3), ManifestMalformed, "figures[0] is a int"),
    ("pixels that are null", setting("pixels", None), ManifestMalformed, "pixels is a NoneType"),
    ("a bad pixel field", setting("pixels", "resample", "area"), ManifestMalformed, "pixels.resample is 'area'"),
    # values
    ("a time that is none", setting("created", "yesterday"), ManifestMalformed, "created is 'yesterday'"),
    ("a time of the year 0", setting("created", "0000-01-01T00:00:00Z"), ManifestMalformed, "created is '0000-"),
    ("half a character", setting("description", "a \ud800"), ManifestMalformed, "description is 'a \\ud800'"),
    ("half a character in a list", setting("training", {"a": [1, "\udfff"]}), ManifestMalformed, "training.a.1"),
    ("half a character as a key", setting("parity", {"\ud800": 1}), ManifestMalformed, "parity has the key '\\ud800'"),
    ("an empty name", setting("name", ""), ManifestMalformed, "name is ''"),
    ("a name that begins with a sign", setting("name", "_a"), ManifestMalformed, "beginning with a letter or digit"),
    ("a name with a slash", setting("name", "a/b"), ManifestMalformed, "'a/b'"),
    ("a name that begins with a dot", setting("name", "..a"), ManifestMalformed, "'..a'"),
    ("a name that ends a line", setting("name", "toy\n"), ManifestMalformed, "'toy\\n'"),
    ("a long name", setting("name", "a" * 65), ManifestMalformed, "aaa"),
    ("an unknown tie rule", setting("tie_rule", "kind"), ManifestMalformed, "tie_rule is 'kind'"),
    (
        "an unknown similarity",
        setting("spaces", "base", "similarity", "l2"),
        ManifestMalformed,
        "base.similarity is 'l2'",
    ),
    ("temperature 0", setting("spaces", "aligned", "temperature", 0), ManifestMalformed, "aligned.temperature is 0"),
    ("temperature -1", setting("spaces", "base", "temperature", -1.0), ManifestMalformed, "base.temperature is -1"),
    ("temperature inf", replaced('"temperature": 1.5', '"temperature": 1e999'), ManifestMalformed, "inf"),
    ("temperature huge", setting("spaces", "base", "temperature", 10**400), ManifestMalformed, "1000000"),
    ("a mean too large", setting("pixels", "mean", [0, 0, 10**400]), ManifestMalformed, "1000000"),
    ("a tolerance too large", setting("golden", "relative_norm", 10**400), ManifestMalformed, "1000000"),
    ("a tolerance below 0", setting("golden", "one_minus_cosine", -1e-9), ManifestMalformed, "golden.one_minus_cosine"),
    ("a pixel tolerance of 256", setting("golden", "pixel", 256), ManifestMalformed, "golden.pixel is 256"),
    ("size 0", setting("spaces", "aligned", "size", 0), ManifestMalformed, "spaces.aligned.size is 0"),
    ("size 65537", setting("spaces", "aligned", "size", 65_537), ManifestMalformed, "65537"),
    ("calibrated on nothing", setting("spaces", "aligned", "calibrated_on", ""), ManifestMalformed, "contradict"),
    ("uncalibrated on something", setting("spaces", "base", "calibrated_on", "x"), ManifestMalformed, "contradict"),
    ("too few dimensions", setting("spaces", "aligned", "dimensions", ["a", "b", "c"]), ManifestMalformed, "3 names"),
    ("one dimension twice", setting("spaces", "aligned", "dimensions", ["a"] * 4), ManifestMalformed, "4 different"),
    ("an empty dimension", setting("spaces", "aligned", "dimensions", ["a", "b", "c", " "]), ManifestMalformed, "4"),
    ("dimensions of lists", setting("spaces", "aligned", "dimensions", [[], [], [], []]), ManifestMalformed, "4"),
    (
        "dimensions as text",
        setting("spaces", "aligned", "dimensions", "abcd"),
        ManifestMalformed,
        "dimensions is 'abcd'",
    ),
    ("an unknown space", edited(lambda m: m["spaces"].update(x=m["spaces"]["base"])), ManifestMalformed, "'x'"),
    ("no aligned space", lacking("spaces", "aligned"), ManifestMalformed, "expected 'aligned'"),
    ("no spaces", setting("spaces", {}), ManifestMalformed, "expected 'aligned'"),
    ("a short hash", setting("files", MODEL, "sha256", SHA[:-1]), ManifestMalformed, f"files.{MODEL}"),
    ("a shouted hash", setting("files", MODEL, "sha256", SHA.upper()), ManifestMalformed, f"files.{MODEL}"),
    ("a hash and a line end", setting("files", MODEL, "sha256", SHA + "\n"), ManifestMalformed, f"files.{MODEL}"),
    ("a negative size", setting("files", GOLDEN, "bytes", -1), ManifestMalformed, f"files.{GOLDEN}"),
    # files
    *(
        (f"{path} among the files", setting("files", path, {"bytes": 1, "sha256": SHA}), PathEscapes, repr(path))
        for path in ("../x", "..", ".", "/etc/passwd", "sub/x", "./model.onnx", f"{MODEL}/")
    ),
    ("another file listed", setting("files", "x", {"bytes": 1, "sha256": SHA}), WrongFileSet, "'x'"),
    ("an empty file name listed", setting("files", "", {"bytes": 1, "sha256": SHA}), WrongFileSet, "''"),
    ("the manifest listed", setting("files", MANIFEST, {"bytes": 1, "sha256": SHA}), WrongFileSet, MANIFEST),
    ("a file not listed", lacking("files", GOLDEN), WrongFileSet, GOLDEN),
    ("an extra file", lambda f: (f / "README").write_text(""), WrongFileSet, "unexpected ['README']"),
    ("a hidden file", lambda f: (f / ".DS_Store").write_text(""), WrongFileSet, "unexpected ['.DS_Store']"),
    ("an extra folder", lambda f: (f / "sub").mkdir(), WrongFileSet, "unexpected ['sub']"),
    ("no graph", lambda f: (f / MODEL).unlink(), WrongFileSet, f"missing ['{MODEL}']"),
    ("no golden", lambda f: (f / GOLDEN).unlink(), WrongFileSet, f"missing ['{GOLDEN}']"),
    ("a graph linked outside", linked(MODEL, "../elsewhere"), PathEscapes, MODEL),
    ("golden linked outside", linked(GOLDEN, "../elsewhere"), PathEscapes, GOLDEN),
    ("a manifest linked outside", linked(MANIFEST, "../elsewhere"), PathEscapes, MANIFEST),
    ("a link to nowhere", instead(MODEL, lambda p: p.symlink_to("nowhere")), PathEscapes, MODEL),
    ("a link to itself", instead(MODEL, lambda p: p.symlink_to(p.name)), PathEscapes, MODEL),
    ("a folder for a graph", instead(MODEL, Path.mkdir), PathEscapes, MODEL),
    ("a pipe for a graph", instead(MODEL, os.mkfifo), PathEscapes, MODEL),
    ("a cut graph", in_bytes(MODEL, lambda b: b[:-1]), FileCorrupt, f"{MODEL} has 6 bytes"),
    ("an empty graph", in_bytes(MODEL, lambda b: b""), FileCorrupt, f"{MODEL} has 0 bytes"),
    ("a grown golden", in_bytes(GOLDEN, lambda b: b + b"\0"), FileCorrupt, "bytes, the manifest states"),
    ("a flipped bit in the graph", in_bytes(MODEL, flipped), FileCorrupt, f"{MODEL} has sha256"),
    ("a flipped bit in golden", in_bytes(GOLDEN, flipped), FileCorrupt, f"{GOLDEN} has sha256"),
    # fingerprints
    ("an edited pixel spec", setting("pixels", "mean", [0.5, 0.4, 0.2]), FingerprintMismatch, "'aligned'"),
    ("an edited filter", setting("pixels", "resample", "lanczos"), FingerprintMismatch, "'aligned'"),
    ("edited normalisation", setting("spaces", "base", "normalized", True), FingerprintMismatch, "'base'"),
    ("an edited fingerprint", setting("spaces", "base", "fingerprint", "0" * 32), FingerprintMismatch, "'base'"),
    ("an empty fingerprint", setting("spaces", "aligned", "fingerprint", ""), FingerprintMismatch, "'aligned'"),
    (
        "another graph, resealed",
        lambda f: (in_bytes(MODEL, flipped)(f), resealed(f)),
        FingerprintMismatch,
        "'aligned'",
    ),
    # golden.npz
    ("golden that is text", golden_bytes(b"vectors"), GoldenMalformed, GOLDEN),
    ("golden that is empty", golden_bytes(b""), GoldenMalformed, GOLDEN),
    ("golden that is a bare pickle", golden_bytes(b"\x80\x04N."), GoldenMalformed, GOLDEN),
    ("golden without images", golden_with(drop="images"), GoldenMalformed, "expected ['aligned', 'base', 'images'"),
    ("golden without lengths", golden_with(drop="lengths"), GoldenMalformed, "'lengths'"),
    ("golden without pixels", golden_with(drop="pixels"), GoldenMalformed, "'pixels'"),
    ("golden without a space", golden_with(drop="base"), GoldenMalformed, "'base'"),
    ("golden with an extra array", golden_with(extra=np.zeros(1)), GoldenMalformed, "'extra'"),
    ("golden of nothing", golden_with(lengths=lambda a: a[:0], images=lambda a: a[:0]), GoldenMalformed, "images"),
    ("lengths that do not add up", golden_with(lengths=lambda a: a + 1), GoldenMalformed, "images"),
    ("a length of 0", golden_with(lengths=lambda a: np.array([0, a.sum()])), GoldenMalformed, "images"),
    ("a negative length", golden_with(lengths=lambda a: np.array([-1, a.sum() + 1])), GoldenMalformed, "images"),
    (
        "lengths that wrap around",
        golden_with(
            lengths=lambda a: np.array([2**62, 2**62, 2**62, 2**62 + a.sum()]),
            **dict.fromkeys(("pixels", "aligned", "base"), lambda a: np.concatenate([a, a])),
        ),
        GoldenMalformed,
        "lengths",
    ),
    ("lengths that are floats", golden_with(lengths=lambda a: a.astype(float)), GoldenMalformed, "images"),
    ("lengths that are a number", golden_with(lengths=lambda a: a.sum()), GoldenMalformed, "images"),
    ("images that are signed", golden_with(images=lambda a: a.view(np.int8)), GoldenMalformed, "images"),
    ("images that are a table", golden_with(images=lambda a: a[None]), GoldenMalformed, "images"),
    ("pixels of another size", golden_with(pixels=lambda a: a[..., 1:]), GoldenMalformed, "pixels are"),
    ("too few pixels", golden_with(pixels=lambda a: a[1:]), GoldenMalformed, "pixels are"),
    ("pixels of another type", golden_with(pixels=lambda a: a.astype(np.float64)), GoldenMalformed, "float64"),
    ("pixels that are not numbers", golden_with(pixels=lambda a: a * np.nan), GoldenMalformed, "pixels"),
    ("vectors of another size", golden_with(base=lambda a: a[:, 1:]), GoldenMalformed, "base is (2, 4)"),
    ("too few vectors", golden_with(aligned=lambda a: a[1:]), GoldenMalformed, "aligned is (1, 4)"),
    ("vectors of another type", golden_with(base=lambda a: a.astype(np.float16)), GoldenMalformed, "float16"),
    ("big-endian vectors", golden_with(base=lambda a: a.astype(">f4")), GoldenMalformed, "base"),
    ("vectors that are not numbers", golden_with(base=lambda a: a * np.nan), GoldenMalformed, "base"),
    ("infinite vectors", golden_with(base=lambda a: a + np.float32(np.inf)), GoldenMalformed, "base"),
    ("a bomb", golden_member("images.npy", bytes(MAX_GOLDEN_BYTES + 1)), GoldenMalformed, str(MAX_GOLDEN_BYTES)),
    ("an array that promises more", golden_member("images.npy", npy_promising((2**50,))), GoldenMalformed, GOLDEN),
    ("an array that is cut", golden_member("images.npy", b"\x93NUMPY\x01\x00"), GoldenMalformed, GOLDEN),
    ("a member that is no array", golden_member("lengths", b"\x01"), GoldenMalformed, GOLDEN),
    ("a member that is text", golden_member("base.npy", b"text"), GoldenMalformed, GOLDEN),
]


@pytest.mark.parametrize(("way", "error", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_bundle_is_refused_by_the_error_that_names_what_is_wrong(
    folder: Path, way: Way, error: type[BundleError], words: str
) -> None:
    way(folder)
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    assert type(caught.value) is error
    # The folder's own name may hold the words by chance.
    assert words in str(caught.value).replace(str(folder.parent), "")
    assert str(folder) in str(caught.value)


def test_every_reading_error_has_its_way() -> None:
    built = {row[2] for row in BAD}
    here = {error for error in BundleError.__subclasses__() if error.__module__ == BundleError.__module__}
    assert built == here - {GraphMismatch, GoldenMismatch}
    assert len({row[0] for row in BAD}) == len(BAD)


def test_a_pickled_object_in_golden_is_refused_and_never_run(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.write_text, (folder.parent / "sprung", "")

    golden_with(base=np.array([Trap(), Trap()], object))(folder)
    with pytest.raises(GoldenMalformed, match=GOLDEN):
        read_bundle(folder)
    assert not (folder.parent / "sprung").exists()
    with np.load(folder / GOLDEN, allow_pickle=True) as archive:
        archive["base"]
    assert (folder.parent / "sprung").exists()  # the trap itself works


def test_what_the_fingerprint_does_not_cover_may_be_edited(folder: Path) -> None:
    setting("spaces", "aligned", "temperature", 3)(folder)
    setting("figures", [])(folder)
    setting("description", "")(folder)
    manifest = read_bundle(folder).manifest
    assert (manifest.spaces["aligned"].temperature, manifest.figures) == (3, [])


def test_a_bundle_may_be_moved_and_reached_through_a_linked_folder(folder: Path) -> None:
    moved = folder.rename(folder.parent / "moved")
    (folder.parent / "link").symlink_to(moved, target_is_directory=True)
    assert read_bundle(folder.parent / "link").manifest.name == "toy-1.0_b"


def typed_fields(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values that the schema types, short of what stands in the free-form objects."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if path in {("training",), ("parity",)}:
        items = ()
    return [*([path] if path else []), *(p for key, item in items for p in typed_fields(item, (*path, key)))]


def json_type(value: Any) -> str:
    names = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict", type(None): "null"}
    return names[type(value)]


FIELDS = [
    path
    for path in typed_fields(a_manifest(files={MODEL: FileEntry(bytes=1, sha256=SHA)}).to_json())
    if path[0] not in ("pixels", "format", "format_version")  # test_pixels.py and the table above
]
JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(-5, 5),
    st.text(max_size=3),
    st.just([]),
    st.just([1]),
    st.just({}),
    st.just({"a": 1}),
)


@settings(deadline=None, max_examples=400)
@given(path=st.sampled_from(FIELDS), value=JSON_VALUES)
def test_a_value_of_the_wrong_type_is_refused_by_the_name_of_its_field(
    whole: Bundle, tmp_path_factory: pytest.TempPathFactory, path: tuple[Any, ...], value: Any
) -> None:
    there: Any = asdict(whole.manifest)
    for key in path:
        there = there[key]
    allowed = {json_type(there)} | ({"int"} if json_type(there) == "float" else set())
    if path[-1] in ("value", "low", "high"):
        allowed = {"int", "float", "null"}
    assume(json_type(value) not in allowed)
    folder = tmp_path_factory.mktemp("typed")
    (folder / MANIFEST).write_bytes((whole.path / MANIFEST).read_bytes())
    setting(*path, value)(folder)
    with pytest.raises(ManifestMalformed) as caught:
        read_bundle(folder)
    message = str(caught.value).replace(str(folder), "")
    assert str(path[-1] if isinstance(path[-1], str) else path[0]) in message


@pytest.mark.parametrize(
    "path",
    [
        ("spaces", "aligned", "size"),
        ("files", MODEL, "bytes"),
        ("golden", "pixel"),
        ("figures", 0, "n"),
        ("pixels", "width"),
    ],
)
def test_true_is_no_integer(folder: Path, path: tuple[Any, ...]) -> None:
    setting(*path, True)(folder)
    with pytest.raises(ManifestMalformed, match=f"{path[-1]} is True"):
        read_bundle(folder)


@settings(deadline=None, max_examples=150)
@given(data=st.binary(max_size=60), at=st.floats(0, 1), until=st.floats(0, 1))
def test_a_manifest_of_any_bytes_raises_nothing_but_bundle_errors(
    whole: Bundle, tmp_path_factory: pytest.TempPathFactory, data: bytes, at: float, until: float
) -> None:
    good = (whole.path / MANIFEST).read_bytes()
    folder = Path(shutil.copytree(whole.path, tmp_path_factory.mktemp("bytes") / "toy"))
    (folder / MANIFEST).write_bytes(good[: int(at * len(good))] + data + good[int(until * len(good)) :])
    try:
        assert read_bundle(folder).manifest.format == FORMAT
    except BundleError as error:
        assert str(folder) in str(error)


@settings(deadline=None, max_examples=150)
@given(data=st.binary(max_size=40), at=st.floats(0, 1), until=st.floats(0, 1))
def test_a_golden_of_any_bytes_raises_nothing_but_bundle_errors(
    whole: Bundle, tmp_path_factory: pytest.TempPathFactory, data: bytes, at: float, until: float
) -> None:
    folder = Path(shutil.copytree(whole.path, tmp_path_factory.mktemp("bytes") / "toy"))
    good = (folder / GOLDEN).read_bytes()
    golden_bytes(good[: int(at * len(good))] + data + good[int(until * len(good)) :])(folder)
    try:
        assert read_bundle(folder).golden.pixels.shape == (2, 3, 6, 8)
    except BundleError as error:
        assert str(folder) in str(error)
