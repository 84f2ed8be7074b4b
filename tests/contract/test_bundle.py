"""Bundles: what is written is what is read, whole or not at all."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.bundle import (
    Bundle,
    GoldenMalformed,
    ManifestMalformed,
    UnsupportedVersion,
    check_golden_pixels,
    read_bundle,
    write_bundle,
)
from contract.files import sha256_of, staged_folder
from contract.manifest import (
    GOLDEN,
    MANIFEST,
    MODEL,
)
from tests.contract.bundles import SPEC, a_bundle, a_golden, a_manifest


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
