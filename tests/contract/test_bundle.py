import hashlib
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from contract.bundle import (
    MAX_GOLDEN_BYTES,
    MAX_MANIFEST_BYTES,
    Bundle,
    BundleError,
    FileCorrupt,
    FingerprintMismatch,
    Golden,
    GoldenMalformed,
    GoldenMismatch,
    GraphMismatch,
    ManifestMalformed,
    ManifestTooLarge,
    NotABundle,
    PathEscapes,
    UnsupportedVersion,
    WrongFileSet,
    check_golden,
    check_golden_pixels,
    read_bundle,
    write_bundle,
)
from contract.files import sha256_of, staged_folder
from contract.manifest import (
    FORMAT,
    FORMAT_VERSION,
    GOLDEN,
    MANIFEST,
    MODEL,
    BaseModel,
    Figure,
    FileEntry,
    GoldenTolerance,
    Manifest,
    Space,
    fingerprint,
    space_fingerprint,
)
from contract.pixels import PixelSpec, load_pixels

SPEC = PixelSpec(height=6, width=8, resize="squash", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
SIZES = {"aligned": 4, "base": 5}
SHA = hashlib.sha256(b"a graph").hexdigest()

Way = Callable[[Path], object]


def a_manifest(**changes: Any) -> Manifest:
    space = Space(
        size=4,
        normalized=False,
        similarity="dot",
        temperature=1.5,
        calibrated=True,
        calibrated_on="things",
        fingerprint="",
    )
    figure = Figure(
        name="odd-one-out",
        space="aligned",
        value=0.6,
        low=0.5,
        high=0.7,
        n=100,
        unit="share",
        note="",
        command="python -m x",
    )
    values: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": "toy-1.0_b",
        "description": "Für Tests",
        "created": "2025-01-01T00:00:00Z",
        "alignment": "none",
        "license": "Apache-2.0",
        "base_model": BaseModel(name="toy", source="here", license="CC0"),
        "training": {"seed": 1},
        "pixels": SPEC,
        "spaces": {"aligned": space, "base": replace(space, size=5, calibrated=False, calibrated_on="")},
        "precision": "float32",
        "tie_rule": "strict",
        "figures": [figure, replace(figure, value=None, low=None, high=None, note="no data")],
        "parity": {"one_minus_cosine": 1e-7},
        "golden": GoldenTolerance(one_minus_cosine=1e-5, relative_norm=1e-4, pixel=1),
    }
    return Manifest(**{"files": {}, **values, **changes})


def a_golden(spec: PixelSpec = SPEC, n: int = 2) -> Golden:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(n):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(stream, "PNG")
        images.append(stream.getvalue())
    vectors = {name: rng.standard_normal((n, size)).astype(np.float32) for name, size in SIZES.items()}
    return Golden(images=tuple(images), pixels=np.stack([load_pixels(i, spec) for i in images]), vectors=vectors)


def a_bundle(folder: Path, manifest: Manifest | None = None, golden: Golden | None = None) -> Bundle:
    folder.mkdir(exist_ok=True)
    graph = folder / "graph"
    graph.write_bytes(b"a graph")
    manifest = manifest or a_manifest()
    return write_bundle(folder / "toy", manifest, graph, golden or a_golden(manifest.pixels))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A good bundle that no test changes."""
    return a_bundle(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Bundle, tmp_path: Path) -> Path:
    """A good bundle's folder to break."""
    return Path(shutil.copytree(whole.path, tmp_path / "toy"))


# --- writing, then reading --------------------------------------------------------------------


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    manifest, golden = a_manifest(), a_golden()
    bundle = a_bundle(tmp_path, manifest, golden)
    assert bundle.manifest == read_bundle(str(tmp_path / "toy")).manifest
    filled_in = {name: replace(s, fingerprint="") for name, s in bundle.manifest.spaces.items()}
    assert replace(bundle.manifest, spaces=filled_in, files={}) == manifest
    assert bundle.golden.images == golden.images
    np.testing.assert_array_equal(bundle.golden.pixels, golden.pixels)
    for name, vectors in golden.vectors.items():
        np.testing.assert_array_equal(bundle.golden.vectors[name], vectors)


def test_dimensions_may_have_names_and_a_manifest_without_them_has_no_such_field(tmp_path: Path) -> None:
    names = ("animal-related", "food-related", "Grün", "made of wood")
    spaces = a_manifest().spaces
    named = a_manifest(spaces=spaces | {"aligned": replace(spaces["aligned"], dimensions=names)})
    bundle = a_bundle(tmp_path, named)
    assert bundle.manifest.spaces["aligned"].dimensions == names
    stored = json.loads((bundle.path / MANIFEST).read_text())["spaces"]
    assert (stored["aligned"]["dimensions"], "dimensions" in stored["base"]) == (list(names), False)
    plain = a_bundle(tmp_path / "plain")
    assert plain.manifest.spaces["aligned"].fingerprint == bundle.manifest.spaces["aligned"].fingerprint


def test_a_bundle_holds_three_files_and_the_hashes_of_two(whole: Bundle) -> None:
    assert {p.name for p in whole.path.iterdir()} == {MANIFEST, MODEL, GOLDEN}
    assert whole.model_path.read_bytes() == b"a graph"
    assert set(whole.manifest.files) == {MODEL, GOLDEN}
    for name, entry in whole.manifest.files.items():
        data = (whole.path / name).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_writing_twice_gives_the_same_bytes(whole: Bundle, tmp_path: Path) -> None:
    again = a_bundle(tmp_path)
    for name in (MANIFEST, MODEL, GOLDEN):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_uint8_pixels_and_a_single_space_make_a_bundle(tmp_path: Path) -> None:
    spec = replace(SPEC, dtype="uint8")
    golden, manifest = a_golden(spec, n=1), a_manifest(pixels=spec)
    only = {"aligned": manifest.spaces["aligned"]}
    bundle = a_bundle(
        tmp_path, replace(manifest, spaces=only), replace(golden, vectors={"aligned": golden.vectors["aligned"]})
    )
    assert bundle.golden.pixels.dtype == np.uint8 and set(bundle.golden.vectors) == {"aligned"}
    check_golden_pixels(bundle)


def test_sha256_is_that_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- fingerprints -----------------------------------------------------------------------------


def test_a_fingerprint_is_fixed_for_all_releases_of_this_format() -> None:
    # Worked out apart from the code: an index in the field stores this string.
    text = (
        '{"model":"'
        + SHA
        + '","normalized":false,"pixels":{"background":[255,255,255],"color":"RGB","dtype":"float32",'
        '"height":6,"mean":[0.5,0.4,0.3],"orientation":"exif","resample":"bicubic","resize":"squash","short_side":null,'
        '"std":[0.2,0.2,0.2],"value_range":[0.0,1.0],"width":8},"space":"aligned"}'
    )
    assert fingerprint(SHA, SPEC, "aligned", normalized=False) == hashlib.sha256(text.encode()).hexdigest()[:32]


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 7},
        {"width": 9},
        {"resize": "crop", "short_side": 8},
        {"resize": "crop", "short_side": 9},
        {"resample": "bilinear"},
        {"orientation": "ignore"},
        {"background": (255, 255, 254)},
        {"dtype": "uint8"},
        {"value_range": (0.0, 255.0)},
        {"mean": (0.5, 0.4, 0.30001)},
        {"std": (0.2, 0.2, 0.20001)},
    ],
)
def test_every_field_of_the_pixel_spec_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    changed = replace(SPEC, **changes)
    assert fingerprint(SHA, changed, "aligned", normalized=False) != fingerprint(SHA, SPEC, "aligned", normalized=False)


def test_the_graph_the_space_and_normalisation_change_the_fingerprint() -> None:
    prints = {
        fingerprint(sha, SPEC, space, normalized=normalized)
        for sha in (SHA, hashlib.sha256(b"another").hexdigest())
        for space in ("aligned", "base")
        for normalized in (False, True)
    }
    assert len(prints) == 8 and all(len(p) == 32 and int(p, 16) >= 0 for p in prints)


def test_equal_pixel_specs_have_equal_fingerprints() -> None:
    whole_numbers = replace(SPEC, value_range=(0, 1), mean=(0, 0, 0), std=(1, 1, 1))
    floats = replace(SPEC, value_range=(0.0, 1.0), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert whole_numbers == floats
    prints = {fingerprint(SHA, spec, "aligned", normalized=False) for spec in (whole_numbers, floats)}
    assert len(prints) == 1


def test_name_temperature_and_figures_leave_the_fingerprint_alone(whole: Bundle, tmp_path: Path) -> None:
    space = a_manifest().spaces["aligned"]
    spaces = {**a_manifest().spaces, "aligned": replace(space, temperature=9.0, similarity="cosine")}
    other = a_bundle(tmp_path, a_manifest(name="other", figures=[], spaces=spaces, license="MIT"))
    for name in ("aligned", "base"):
        assert other.manifest.spaces[name].fingerprint == whole.manifest.spaces[name].fingerprint


def test_other_model_bytes_give_another_fingerprint(whole: Bundle, tmp_path: Path) -> None:
    (tmp_path / "graph").write_bytes(b"b graph")
    other = write_bundle(tmp_path / "toy", a_manifest(), tmp_path / "graph", a_golden())
    for name in ("aligned", "base"):
        assert other.manifest.spaces[name].fingerprint != whole.manifest.spaces[name].fingerprint


def test_scaling_to_length_1_makes_another_space_unless_the_graph_does_it() -> None:
    manifest = a_manifest(files={MODEL: FileEntry(bytes=7, sha256=SHA)})
    raw, unit = (space_fingerprint(manifest, "aligned", normalize=n) for n in (False, True))
    assert (raw, unit) == tuple(fingerprint(SHA, SPEC, "aligned", normalized=n) for n in (False, True))
    spaces = {"aligned": replace(manifest.spaces["aligned"], normalized=True)}
    assert space_fingerprint(replace(manifest, spaces=spaces), "aligned", normalize=False) == unit


# --- every way a bundle can be bad ------------------------------------------------------------


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
    ("an empty name", setting("name", ""), ManifestMalformed, "name is ''"),
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


# --- writing whole or not at all --------------------------------------------------------------


@pytest.mark.parametrize("there", [Path.mkdir, Path.touch, lambda p: p.symlink_to("nowhere")])
def test_the_writer_refuses_a_target_that_exists(tmp_path: Path, there: Callable[[Path], object]) -> None:
    there(tmp_path / "toy")
    with pytest.raises(FileExistsError, match="toy exists; remove it"):
        a_bundle(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"toy", "graph"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize(
    "step",
    ["shutil.copyfile", "numpy.savez_compressed", "contract.bundle.sha256_of", "os.fsync", "pathlib.Path.rename"],
)
def test_a_failure_at_any_step_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(step, fails)
    with pytest.raises(type(error)):
        a_bundle(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["graph"]


def test_a_disk_that_fills_up_half_way_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(OSError, match="No space"):
        a_bundle(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["graph"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "no name"}, ManifestMalformed),
        ({"format_version": 2}, UnsupportedVersion),
        ({"pixels": replace(SPEC, width=9)}, GoldenMalformed),
        ({"training": {"loss": math.nan}}, ValueError),
    ],
)
def test_the_writer_refuses_what_the_reader_would_and_leaves_nothing_behind(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        a_bundle(tmp_path, a_manifest(**changes), a_golden())
    assert [p.name for p in tmp_path.iterdir()] == ["graph"]


def test_a_missing_graph_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_bundle(tmp_path / "toy", a_manifest(), tmp_path / "no graph", a_golden())
    assert list(tmp_path.iterdir()) == []


def test_the_target_appears_only_when_it_is_whole_and_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whenever the process is killed, there is no target, or a whole one.
    seen: list[str] = []
    for name, module in {"copyfile": shutil, "savez_compressed": np, "fsync": os}.items():
        original = getattr(module, name)

        def watched(*args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            seen.append(name)
            assert not (tmp_path / "toy").exists()
            return original(*args, **options)

        monkeypatch.setattr(module, name, watched)
    original_rename = Path.rename

    def rename(self: Path, target: Path) -> Path:
        assert seen == ["copyfile", "savez_compressed", "fsync", "fsync", "fsync"]
        assert read_bundle(self).manifest.name == "toy-1.0_b"
        seen.append("rename")
        return original_rename(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    a_bundle(tmp_path)
    assert seen[-1] == "rename"


def test_a_staging_folder_left_by_a_killed_writer_does_not_stop_the_next(tmp_path: Path) -> None:
    (tmp_path / ".toy.abc123").mkdir()
    assert a_bundle(tmp_path).manifest.name == "toy-1.0_b"
    assert {p.name for p in tmp_path.iterdir()} == {".toy.abc123", "graph", "toy"}


def test_a_staged_folder_is_readable_by_others_and_its_parents_are_made(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with staged_folder(target) as staging:
        assert staging.parent == target.parent and not target.exists()
        (staging / "file").write_text("x")
    assert (target / "file").read_text() == "x" and not staging.exists()
    assert target.stat().st_mode & 0o777 == 0o755


# --- golden checks ----------------------------------------------------------------------------


def outputs(bundle: Bundle) -> dict[str, NDArray[Any]]:
    return {name: vectors.copy() for name, vectors in bundle.golden.vectors.items()}


def test_the_golden_vectors_themselves_pass(whole: Bundle) -> None:
    worst = check_golden(whole, outputs(whole))
    assert set(worst) == {"aligned", "base"} and all(0 <= off < 1e-12 for off in worst.values())


@settings(deadline=None)
@given(angle=st.floats(0, 0.02), stretch=st.floats(-5e-4, 5e-4))
def test_a_run_passes_exactly_within_the_tolerance_of_direction_and_length(angle: float, stretch: float) -> None:
    # Length 2 times (1 + stretch), turned by the angle: 1 - cosine is 1 - cos(angle), allowed 1e-5.
    golden = np.array([[2.0, 0.0]], np.float32)
    given_ = 2 * (1 + stretch) * np.array([[math.cos(angle), math.sin(angle)]])
    off = 1 - math.cos(angle)
    assume(abs(off - 1e-5) > 1e-9 and abs(abs(stretch) - 1e-4) > 1e-9)
    expected = Golden(images=(), pixels=np.zeros(0), vectors={"aligned": golden})
    bundle = Bundle(path=Path("toy"), manifest=a_manifest(), golden=expected)
    if off <= 1e-5 and abs(stretch) <= 1e-4:
        assert check_golden(bundle, {"aligned": given_})["aligned"] == pytest.approx(off, abs=1e-12)
    else:
        with pytest.raises(GoldenMismatch, match="'aligned'"):
            check_golden(bundle, {"aligned": given_})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v * 1.001,
        lambda v: v * 0.999,
        lambda v: -v,
        lambda v: v * 0,
        lambda v: v[::-1],
        lambda v: v + np.array([[0.0], [0.1]]),
        lambda v: np.where([[False], [True]], np.nan, v),
        lambda v: np.where(np.eye(*v.shape, dtype=bool), np.inf, v),
        lambda v: v[:1],
        lambda v: v[:, :-1],
        lambda v: v[None],
        lambda v: None,
    ],
)
@pytest.mark.parametrize("space", ["aligned", "base"])
def test_a_run_that_gives_other_vectors_is_refused_by_space(whole: Bundle, space: str, spoil: Any) -> None:
    given_ = outputs(whole)
    given_[space] = spoil(given_[space])
    with pytest.raises(GoldenMismatch, match=f"{whole.path}.*'{space}'"):
        check_golden(whole, given_)


def test_a_run_without_an_output_is_refused_by_space(whole: Bundle) -> None:
    given_ = outputs(whole)
    del given_["base"]
    with pytest.raises(GoldenMismatch, match="output 'base' is None"):
        check_golden(whole, given_)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_golden_pixels_may_be_off_by_the_tolerance_and_no_more(tmp_path: Path, dtype: Any, steps: int) -> None:
    spec = replace(SPEC, dtype=dtype, std=(0.1, 1.0, 1.0))
    golden = a_golden(spec)
    pixels = golden.pixels.copy()
    # Channel 1, whose std is ten times that of channel 0: a step of 0..255 is a step in every channel.
    pixels[1, 1, 2, 3] += steps if dtype == "uint8" else np.float32(steps / 255)
    bundle = a_bundle(tmp_path, a_manifest(pixels=spec), replace(golden, pixels=pixels))
    if steps <= bundle.manifest.golden.pixel:
        check_golden_pixels(bundle)
    else:
        with pytest.raises(GoldenMismatch, match=r"golden image 1 decodes 2.*allowed: 1"):
            check_golden_pixels(bundle)


def test_golden_pixels_of_another_image_are_refused(tmp_path: Path) -> None:
    golden = a_golden()
    bundle = a_bundle(tmp_path, golden=replace(golden, pixels=golden.pixels[::-1].copy()))
    with pytest.raises(GoldenMismatch, match="golden image 0"):
        check_golden_pixels(bundle)


def test_golden_pixels_that_are_not_numbers_never_pass(tmp_path: Path) -> None:
    golden = a_golden()
    with pytest.raises(BundleError):
        check_golden_pixels(a_bundle(tmp_path, golden=replace(golden, pixels=golden.pixels * np.float32(np.nan))))


def test_a_golden_image_that_does_not_decode_is_a_fault_of_the_bundle(tmp_path: Path) -> None:
    golden = a_golden()
    with pytest.raises(BundleError):
        check_golden_pixels(a_bundle(tmp_path, golden=replace(golden, images=(b"no image", golden.images[1]))))
