"""Golden vectors and pixels: what a run must give."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from contract.bundle import (
    Bundle,
    BundleError,
    Golden,
    GoldenMismatch,
    check_golden,
    check_golden_pixels,
)
from tests.contract.bundles import SPEC, a_bundle, a_golden, a_manifest


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
