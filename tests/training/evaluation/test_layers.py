"""Layers: block means are timm's own, and a change that was built in shows in its block."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.evaluation.worlds import CONSTANTS
from tests.training.tiny import TINY_MODEL, tiny_encoder, tiny_vit, write_rows, write_tiny_data
from training.evaluation.layers import FIGURE, LEVEL, LIFE, evenly, layers, separation
from training.evaluation.result import NotHere, Setting
from training.evaluation.subjects import Features, read_subject
from training.layer_means import layer_means
from training.models import MODELS


def test_block_means_are_timms_intermediates_without_the_class_token() -> None:
    encoder = tiny_vit()
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    read, depth = layer_means(tiny_vit())
    backbone = encoder.module.backbone
    expected = backbone.forward_intermediates(  # type: ignore[operator, union-attr]
        encoder.module.normalized(pixels),
        norm=False,
        output_fmt="NLC",
        intermediates_only=True,  # type: ignore[operator]
    )
    with torch.inference_mode():
        found = read.module(pixels)
    assert depth == 3 and read.size == found.shape[1]
    assert torch.allclose(found, torch.cat([x.mean(1) for x in expected], 1), atol=1e-6)


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="no transformer blocks"):
        layer_means(tiny_encoder())


def test_every_block_of_every_model_has_a_separation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny-vit", replace(TINY_MODEL, source=lambda side: tiny_vit()))
    monkeypatch.setitem(MODELS, "other-vit", replace(TINY_MODEL, source=lambda side: tiny_vit(seed=1)))
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    data = write_tiny_data(tmp_path / "data")
    subjects = tuple(read_subject(f"{n}={m}") for n, m in (("a", "tiny-vit"), ("b", "other-vit"), ("c", "tiny")))
    setting = Setting(data, subjects, Features(tmp_path / "f"), CONSTANTS)
    found = layers(setting)
    value = {(row.model, row.group): row.estimate.value for row in found.rows if row.figure == FIGURE}
    levels = {(r.model, r.group): r.estimate.value for r in found.rows if r.figure == LEVEL}
    for (model, block), one in value.items():
        assert one == pytest.approx(levels[model, f"{block}, different"] - levels[model, f"{block}, same class"])
    assert set(value) == {(m, f"block {k}") for m in ("a", "b", "b - a") for k in (1, 2, 3)}
    assert value["b - a", "block 2"] == pytest.approx(value["b", "block 2"] - value["a", "block 2"])
    assert value["a", "block 1"] > 0  # photos are of two colours, which any features tell apart
    assert any("c is left out: no transformer blocks" in note for note in found.notes)
    with pytest.raises(NotHere, match="no model has transformer blocks"):
        layers(replace(setting, subjects=subjects[2:]))


def test_living_things_part_from_others_as_their_categories_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny-vit", replace(TINY_MODEL, source=lambda side: tiny_vit()))
    data = write_tiny_data(tmp_path / "data")
    kinds = [
        (f"class {k}", f"basic {k}", "vehicle" if k % 2 else "animal", "no" if k % 2 else "yes") for k in range(24)
    ]
    write_rows(data / "hierarchy.csv", [("label", "basic", "superordinate", "living"), *kinds])
    setting = Setting(data, (read_subject("a=tiny-vit"),), Features(tmp_path / "f"), CONSTANTS)
    found = layers(setting)
    value = {(row.figure, row.group): row.estimate.value for row in found.rows}
    for k in (1, 2, 3):  # here one of each is of different categories, and two alike are of one
        far, near = (value[LEVEL, f"block {k}, {level}"] for level in ("different", "same superordinate"))
        assert value[LIFE, f"block {k}"] == pytest.approx(far - near)
    assert [plot.title for plot in found.plots] == ["Separation by layer", "Living from non-living by layer"]
    assert found.plots[1].values["series"][0]["y"][2] == value[LIFE, "block 3"]


def test_photos_are_taken_as_evenly_as_the_classes_allow() -> None:
    classes = np.array([0] * 10 + [1] * 2 + [2] * 5)
    count = np.bincount(classes[evenly(classes, 9, 0)])
    assert count[1] == 2 and sorted(count) == [2, 3, 4]


def test_half_of_the_photos_are_of_classes_with_several() -> None:
    classes = np.array([*range(50), *[50, 51] * 20])
    kept = classes[evenly(classes, 20, 0)]
    assert len(kept) == 20 and (kept >= 50).sum() >= 10 and (kept < 50).sum() >= 8


def test_separation_is_the_difference_of_two_means() -> None:
    z, level = np.array([1.0, 3.0, -2.0, 9.0]), np.array([3, 3, 0, 1])
    apart = separation(z, level == 3, level == 0)
    assert apart(np.array([1.0, 3.0, 2.0, 5.0])) == pytest.approx(2.5 + 2.0)
    assert np.isnan(apart(np.array([0.0, 0.0, 1.0, 1.0])))
