"""The spec of pixels in a manifest."""

import json
import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.pixels import (
    PixelSpec,
    Resample,
)
from tests.contract.pictures import as_stored

# --- the spec ---------------------------------------------------------------------------------

SPECS = st.builds(
    PixelSpec,
    height=st.integers(1, 4096),
    width=st.integers(1, 4096),
    resize=st.just("crop"),
    short_side=st.integers(4096, 10**4),
    resample=st.sampled_from(get_args(Resample)),
    orientation=st.sampled_from(["exif", "ignore"]),
    background=st.tuples(*[st.integers(0, 255)] * 3),
    dtype=st.sampled_from(["uint8", "float32"]),
    mean=st.tuples(*[st.floats(-300, 300)] * 3),
    std=st.tuples(*[st.floats(1e-3, 300)] * 3),
)


@given(SPECS)
def test_a_spec_survives_the_manifest(spec: PixelSpec) -> None:
    assert PixelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.shape == (3, spec.height, spec.width)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("height", 0),
        ("height", -1),
        ("height", 4097),
        ("width", 0),
        ("width", 4097),
        ("height", 24.5),
        ("width", 24.0),
        ("height", True),
        ("height", "24"),
        ("width", None),
        ("resize", "stretch"),
        ("resize", None),
        ("resize", ["squash"]),
        ("short_side", 24),  # with squash
        ("resample", "area"),
        ("orientation", "upright"),
        ("color", "BGR"),
        ("background", [0, 0]),
        ("background", [0, 0, 256]),
        ("background", [0, 0, -1]),
        ("background", [0, 0, 0.5]),
        ("background", [0, 0, True]),
        ("background", None),
        ("background", 7),
        ("background", "abc"),
        ("dtype", "float16"),
        ("value_range", [0.0]),
        ("value_range", [0.0, 1.0, 2.0]),
        ("value_range", [0.0, math.inf]),
        ("value_range", [0.0, 0.0]),
        ("value_range", [1.0, 0.0]),
        ("value_range", 1.0),
        ("mean", [0.0, 0.0]),
        ("mean", [0.0, 0.0, math.nan]),
        ("mean", [0.0, 0.0, 10**400]),
        ("mean", "abc"),
        ("mean", None),
        ("std", [1.0, 1.0]),
        ("std", [1.0, 1.0, 0.0]),
        ("std", [1.0, -1.0, 1.0]),
        ("std", [1.0, 1.0, math.inf]),
        ("std", [1.0, 1.0, "1"]),
    ],
)
def test_a_bad_field_of_a_spec_is_refused_by_name(field: str, value: Any) -> None:
    fields = {**as_stored(24, 24).to_json(), field: value}
    with pytest.raises(ValueError, match=field):
        PixelSpec.from_json(fields)


def test_counts_that_are_wrong_in_two_fields_do_not_make_up_for_each_other() -> None:
    with pytest.raises(ValueError, match=r"value_range|mean"):
        as_stored(16, 16, value_range=(0.0, 0.5, 1.0), mean=(0.0, 0.0))


@pytest.mark.parametrize("short_side", [None, 23, 0, -24, 24.0, "24", True])
def test_a_crop_without_a_fitting_short_side_is_refused_by_name(short_side: Any) -> None:
    fields = {**as_stored(16, 24).to_json(), "resize": "crop", "short_side": short_side}
    with pytest.raises(ValueError, match="short_side"):
        PixelSpec.from_json(fields)


@pytest.mark.parametrize("field", sorted(PixelSpec.__dataclass_fields__))
def test_a_missing_field_of_a_spec_is_refused_by_name(field: str) -> None:
    fields = as_stored(16, 16).to_json()
    del fields[field]
    with pytest.raises(ValueError, match=rf"lacks \['{field}'\]"):
        PixelSpec.from_json(fields)


def test_an_unknown_field_of_a_spec_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown fields \['interpolation'\]"):
        PixelSpec.from_json({**as_stored(16, 16).to_json(), "interpolation": "bicubic"})


def test_a_spec_cannot_be_changed_only_copied() -> None:
    spec = as_stored(16, 16)
    with pytest.raises(AttributeError):
        spec.height = 17  # type: ignore[misc]
    assert replace(spec, height=17).shape == (3, 17, 16)
