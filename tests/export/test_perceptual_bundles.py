"""Perceptual alignments to bundles: merged adapters, heads and ensembles, each one graph that gives its own vectors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.bundle import read_bundle
from export import package
from export.card import card
from export.graph import EmbeddingModel
from export.perceptual import read_perceptual
from tests.export.test_package import main_with
from tests.training.tiny import tiny_clip, write_photos
from training.encoders import features_of
from training.perceptual.embedding import Shape
from training.perceptual.generated import GeneratorConfig
from training.perceptual.objective import PerceptualConfig
from training.perceptual.run import PerceptualRecipe, read_embedding, read_trials, run_perceptual
from training.student_model import Adaptation

LORA = Adaptation(lora_rank=2, lora_alpha=16.0, lora_targets=("qkv",))
VIT = Shape(branches=("timm:test_vit",), side=32)
SHAPES = {
    "lora": (VIT, LORA),
    "patches": (replace(VIT, output="cls_patch"), LORA),
    "head": (replace(VIT, hidden=8), Adaptation()),
    "levels": (replace(VIT, output="levels", hidden=8), Adaptation()),
    "ensemble": (replace(VIT, branches=("timm:test_vit", "timm:test_vit2"), normalise="unit"), LORA),
    "open_clip": (
        replace(VIT, branches=("timm:test_vit", "open_clip:tiny-clip")),
        replace(LORA, lora_targets=("qkv", "c_fc", "c_proj")),
    ),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos in a folder."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 40)
    return folder


@pytest.fixture(autouse=True)
def from_scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub: weights of a run replace random ones, and open_clip knows a tiny architecture."""
    tiny_clip(tmp_path)
    monkeypatch.setattr("export.perceptual.read_embedding", lambda run: read_embedding(run, pretrained=False))


def finished(photos: Path, out: Path, kind: str) -> Path:
    shape, adaptation = SHAPES[kind]
    training = PerceptualConfig(
        steps=4, batch=4, checkpoint_every=4, adaptation=adaptation, head_rate=1e-2, learning_rate=1e-2, strengths=(4,)
    )
    generator = GeneratorConfig(per_image=1, longest=16)
    recipe = PerceptualRecipe(
        name=f"tiny-{kind}", description="nothing real", shape=shape, pretrained=False, generator=generator,
        training=training, bootstrap=20,
    )  # fmt: skip
    run_perceptual(recipe, read_trials(f"generated:{photos}", generator, 0), out)
    return out


@pytest.mark.parametrize("kind", SHAPES)
def test_a_run_becomes_one_graph_that_passes_parity_and_gives_the_distances_of_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run = finished(photos, tmp_path / "run", kind)
    monkeypatch.setattr(package, "LEAST_PHOTOS", 8)
    given = ("--images", photos, "--out", tmp_path / "b", "--parity-photos", 32, "--precision", "fp32")
    main_with(monkeypatch, "bundle", run, *given)
    bundle = read_bundle(tmp_path / "b")
    space = bundle.manifest.spaces["aligned"]
    assert (space.similarity, space.calibrated) == ("cosine", False)
    expected = features_of(read_embedding(run, pretrained=False), torch.from_numpy(bundle.golden.pixels)).numpy()
    np.testing.assert_allclose(bundle.golden.vectors["aligned"], expected, rtol=1e-3, atol=1e-5)
    assert all(row["passed"] and row["batch_difference"] == 0 for row in bundle.manifest.parity["rows"])
    page = card(bundle.manifest)
    assert "Alignment: perceptual: two-alternative judgments" in page and "two-alternative accuracy, all" in page


def test_a_head_by_image_is_the_head(photos: Path, tmp_path: Path) -> None:
    run = finished(photos, tmp_path / "run", "head")
    encoder = read_embedding(run, pretrained=False)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(EmbeddingModel(encoder)(pixels)[0], encoder.module(pixels))
        assert (encoder.module(pixels) - encoder.module.inner(pixels)).abs().max() > 1e-3  # type: ignore[operator]


def test_weights_of_one_strength_are_read_and_a_run_that_is_not_finished_is_refused(
    photos: Path, tmp_path: Path
) -> None:
    run = finished(photos, tmp_path / "run", "lora")
    assert read_perceptual(run / "strength-000004").kernel == {"aligned": "cosine"}
    config: Any = json.loads((run / "config.json").read_text())
    config["config"]["weight"] = 0.25
    (run / "config.json").write_text(json.dumps(config))
    (run / "figures.json").unlink()
    with pytest.raises(ValueError, match=r"lacks recipe\.json or figures\.json; finish it with .* joint"):
        read_perceptual(run)
    (run / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks weights\.safetensors; finish it with"):
        read_perceptual(run)


def test_what_does_not_go_with_a_perceptual_run_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(photos, tmp_path / "run", "lora")
    with pytest.raises(SystemExit, match="it needs --images, and --calibrate instead of --data"):
        main_with(monkeypatch, "bundle", run, "--out", tmp_path / "b")
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint/pareto.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"give one, as .*joint/split-0/weight-0\.5"):
        main_with(monkeypatch, "bundle", tmp_path / "joint", "--images", photos, "--out", tmp_path / "b")
    given = ("--images", photos, "--out", tmp_path / "b", "--checkpoint", run / "weights.safetensors")
    with pytest.raises(SystemExit, match="is a perceptual alignment, which says itself what it is made of"):
        main_with(monkeypatch, "bundle", "timm:test_vit", *given)
