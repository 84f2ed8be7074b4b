"""Fingerprints of spaces: what changes them, and what does not."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.bundle import (
    Bundle,
    write_bundle,
)
from contract.manifest import (
    MODEL,
    FileEntry,
    fingerprint,
    space_fingerprint,
)
from tests.contract.bundles import SHA, SPEC, a_bundle, a_golden, a_manifest


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
