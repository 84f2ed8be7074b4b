"""The readout: what it reads, where it starts, and that training, writing and loading keep it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.tiny import VIT_WIDTH as WIDTH
from tests.training.tiny import tiny_encoder, tiny_vit
from training.distill import distill
from training.encoders import features_of
from training.feeds import in_batch
from training.readout import Readout, block_features, fit_readout, read_out, start_readout, with_readout
from training.student_model import Adaptation, load_weights
from training.trainer import DistillConfig


def photos(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_block_features_end_with_the_class_token_that_the_model_gives_and_its_mean_patch() -> None:
    encoder, pixels = tiny_vit(), photos(5)
    features = features_of(block_features(encoder, 2), pixels)
    tokens = encoder.module.backbone.forward_features(encoder.module.normalized(pixels))  # type: ignore[operator, union-attr]
    assert features.shape == (5, 2 * 2 * WIDTH)
    torch.testing.assert_close(features[:, 2 * WIDTH : 3 * WIDTH], features_of(encoder, pixels))
    torch.testing.assert_close(features[:, 3 * WIDTH :], tokens[:, 1:].mean(1))


def test_the_readout_starts_at_the_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    read, pixels = block_features(tiny_vit(), 1), photos(30)
    x, y = features_of(read, pixels).numpy(), rng.normal(size=(30, 4)).astype(np.float32)
    encoder = with_readout(read, 4)
    fit_readout(encoder, x, y, penalty=0.5)
    standard = (x - x.mean(0)) / (x.std(0) + 1e-6)
    # Ridge as least squares with a row of sqrt(n * penalty) for each weight.
    rows = np.vstack([standard, np.sqrt(30 * 0.5) * np.eye(x.shape[1])])
    weights = np.linalg.lstsq(rows, np.vstack([y - y.mean(0), np.zeros((x.shape[1], 4))]), rcond=None)[0]
    np.testing.assert_allclose(features_of(encoder, pixels), standard @ weights + y.mean(0), atol=1e-4)


def test_a_trained_readout_is_written_beside_its_backbone_and_read_again(tmp_path: Path) -> None:
    read, pixels = block_features(tiny_vit(), 2), photos(24)
    teacher = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    encoder, other = with_readout(read, 4), with_readout(block_features(tiny_vit(seed=7), 2), 4)
    fit_readout(encoder, features_of(read, pixels).numpy(), teacher, penalty=1.0)
    before = features_of(encoder, pixels)
    feed = in_batch(np.arange(24), np.arange(24) % 4, batch=9, per_group=3, triplets=60, sampling="random", seed=0)
    config = DistillConfig(
        temperature=1.0, steps=4, learning_rate=1e-3, warmup=1, regression=1.0, regress="embedding",
        head_rate=1e-2, adaptation=Adaptation(frozen_blocks=1), precision="fp32", checkpoint_every=2,
    )  # fmt: skip
    distill(encoder, lambda rows: pixels[torch.from_numpy(rows)], teacher, feed, config, tmp_path, inputs={})
    after = features_of(encoder, pixels)
    assert (after - before).abs().max() > 1e-3
    load_weights(other, tmp_path / "weights.safetensors")
    torch.testing.assert_close(features_of(other, pixels), after)


def test_heads_have_a_rate_of_their_own_and_are_not_pulled_back(tmp_path: Path) -> None:
    read, pixels = block_features(tiny_vit(), 1), photos(24)
    teacher = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    feed = in_batch(np.arange(24), np.arange(24) % 4, batch=9, per_group=3, triplets=60, sampling="random", seed=0)
    encoder = with_readout(read, 4)
    fit_readout(encoder, features_of(read, pixels).numpy(), teacher, penalty=1.0)
    assert isinstance(encoder.module, Readout)
    blocks, head = encoder.module.backbone.state_dict(), encoder.module.readout.weight.clone()
    config = DistillConfig(
        temperature=1.0, steps=5, learning_rate=1e-9, warmup=1, decay=1e5, head_rate=1e-2, precision="fp32"
    )
    blocks = {name: tensor.clone() for name, tensor in blocks.items()}
    distill(encoder, lambda rows: pixels[torch.from_numpy(rows)], teacher, feed, config, tmp_path, inputs={})
    moved = encoder.module.backbone.state_dict()
    assert all(torch.allclose(tensor, moved[name], atol=1e-6) for name, tensor in blocks.items())
    assert (encoder.module.readout.weight - head).abs().max() > 5e-3


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tiny is no ViT"):
        block_features(tiny_encoder(), 1)
    with pytest.raises(ValueError, match="3 blocks; 4"):
        block_features(tiny_vit(), 4)
    encoder = with_readout(block_features(tiny_vit(), 1), 2)
    with pytest.raises(ValueError, match=r"expected \(\(3, 24\), \(3, 2\)\)"):
        fit_readout(encoder, np.zeros((3, 24), np.float32), np.zeros((3, 4), np.float32), 1.0)
    vectors = np.zeros((6, 4), np.float32)
    feed = in_batch(np.arange(6), np.arange(6) % 2, batch=4, per_group=2, triplets=9, sampling="random", seed=0)
    config = DistillConfig(regression=1.0, regress="embedding")
    with pytest.raises(ValueError, match="the embedding has 2 values, the vectors to regress 4"):
        distill(encoder, lambda rows: photos(len(rows)), vectors, feed, config, tmp_path, inputs={})


def test_lora_trains_the_readout_whole_and_merges_into_the_blocks(tmp_path: Path) -> None:
    read, pixels = block_features(tiny_vit(), 1), photos(24)
    teacher = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    feed = in_batch(np.arange(24), np.arange(24) % 4, batch=9, per_group=3, triplets=60, sampling="random", seed=0)
    encoder = with_readout(read, 4)
    fit_readout(encoder, features_of(read, pixels).numpy(), teacher, penalty=1.0)
    assert isinstance(encoder.module, Readout)
    names, head = set(encoder.module.state_dict()), encoder.module.readout.weight.clone()
    lora = Adaptation(lora_rank=2, lora_targets=("qkv",))
    config = DistillConfig(temperature=1.0, steps=4, learning_rate=1e-2, warmup=1, adaptation=lora, precision="fp32")
    distill(encoder, lambda rows: pixels[torch.from_numpy(rows)], teacher, feed, config, tmp_path, inputs={})
    assert set(encoder.module.state_dict()) == names
    assert (encoder.module.readout.weight - head).abs().max() > 1e-4


def test_what_a_readout_gives_can_be_computed_from_block_features(tmp_path: Path) -> None:
    read, pixels, rng = block_features(tiny_vit(), 2), photos(30), np.random.default_rng(0)
    x = features_of(read, pixels).numpy()
    encoder = with_readout(read, 5, dropout=0.5)
    start_readout(encoder, x, rng.normal(size=(30, 5)).astype(np.float32), 1.0, tmp_path / "start")
    np.testing.assert_allclose(read_out(x, tmp_path / "start"), features_of(encoder, pixels), atol=1e-4)
