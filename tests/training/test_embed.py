"""Features: the encoder's own, in the images' order, never computed twice, and no image lost in silence."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from contract.pixels import load_pixels
from tests.training.tiny import tiny_encoder, write_photo, write_photos
from training.embed import EmbedConfig, embed, extract
from training.encoders import Encoder, features_of
from training.images import FileImages, read_folder
from training.models import build
from training.photos import Photos
from training.stage import write_array

SMALL = EmbedConfig(shard=4, batch=3)
ONE_BY_ONE = EmbedConfig(shard=4, batch=1)


class Counted:
    """An encoder that counts its photos and dies when it has seen `dies_after`."""

    def __init__(self, dies_after: int = 1000) -> None:
        self.seen, self.dies_after = 0, dies_after
        self.encoder: Encoder = tiny_encoder()
        self.encoder.module.register_forward_hook(self._count)

    def _count(self, module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self.seen += len(output)
        if self.seen > self.dies_after:
            raise KeyboardInterrupt


def test_features_are_those_of_each_photo_encoded_alone(tmp_path: Path) -> None:
    photos, encoder = write_photos(tmp_path / "photos", 10), tiny_encoder()
    got = extract(encoder, "tiny", photos, tmp_path / "features", SMALL)
    for path, row in zip(photos.paths, got, strict=True):
        pixels = load_pixels((photos.root / path).read_bytes(), encoder.pixels)
        np.testing.assert_allclose(row, features_of(encoder, torch.from_numpy(pixels[None]))[0], atol=1e-6)
    assert got.dtype == np.float32
    assert got.std(0).max() > 0.01  # the photos differ


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (5, 3)])
def test_threads_and_prefetch_change_no_bit(tmp_path: Path, workers: int, prefetch: int) -> None:
    photos = write_photos(tmp_path / "photos", 9)
    two = extract(tiny_encoder(), "tiny", photos, tmp_path / "two", SMALL)
    config = replace(SMALL, workers=workers, prefetch=prefetch)
    assert np.array_equal(two, extract(tiny_encoder(), "tiny", photos, tmp_path / "other", config))


def test_the_files_say_what_the_rows_are(tmp_path: Path) -> None:
    for i in range(6):
        write_photo(tmp_path / f"data/{'ab'[i % 2]}/{i}.png", (0.1 * i, 0.5, 0.5), seed=i)
    out = tmp_path / "out"
    index = embed(tiny_encoder(), "tiny", read_folder(tmp_path / "data"), out, SMALL)
    features = np.load(out / "features.npy", mmap_mode="r")
    assert features.shape == (index["rows"], index["width"]) == (6, 64)
    names = (out / "names.txt").read_text().splitlines()
    assert names == ["a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png"]
    assert np.load(out / "groups.npy").tolist() == [0, 0, 0, 1, 1, 1]
    assert (out / "labels.txt").read_text().split() == ["a"] * 3 + ["b"] * 3
    assert index["sha256"] == hashlib.sha256(np.asarray(features).tobytes()).hexdigest()
    for shard in index["shards"]:
        rows = np.asarray(features[shard["first_row"] : shard["first_row"] + shard["rows"]])
        assert shard["sha256"] == hashlib.sha256(rows.tobytes()).hexdigest()
    assert sorted(file.name for file in out.iterdir()) == [
        *("features.npy", "groups.npy", "identity.json", "index.json", "labels.txt", "names.txt")
    ]


@pytest.mark.parametrize("layout", ["npy", "safetensors"])
def test_shards_hold_the_rows_of_the_matrix(tmp_path: Path, layout: Any) -> None:
    photos = write_photos(tmp_path / "photos", 10)
    matrix = extract(tiny_encoder(), "tiny", photos, tmp_path / "matrix", SMALL)
    out = tmp_path / "shards"
    index = embed(tiny_encoder(), "tiny", photos, out, replace(SMALL, layout=layout))
    load = np.load if layout == "npy" else lambda file: safetensors.numpy.load_file(file)["features"]
    blocks = [load(out / shard["file"]) for shard in index["shards"]]
    assert [len(block) for block in blocks] == [4, 4, 2]
    assert np.array_equal(np.concatenate(blocks), matrix)
    assert not (out / "features.npy").exists()
    (out / index["shards"][1]["file"]).unlink()
    (out / "shards/00000004.json").unlink()
    again = Counted()
    assert embed(again.encoder, "tiny", photos, out, replace(SMALL, layout=layout)) == index
    assert again.seen == 4


def test_half_precision_is_stored_rounded_and_as_asked(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 5)
    full = extract(tiny_encoder(), "tiny", photos, tmp_path / "full", SMALL)
    half = extract(tiny_encoder(), "tiny", photos, tmp_path / "half", replace(SMALL, dtype="float16"))
    assert half.dtype == np.float16
    assert np.array_equal(half, full.astype(np.float16))
    cast = extract(tiny_encoder(), "tiny", photos, tmp_path / "cast", replace(SMALL, precision="bfloat16"))
    assert not np.array_equal(cast, full)
    np.testing.assert_allclose(cast, full, rtol=0.05, atol=0.05 * full.max())


def test_complete_features_are_not_computed_again(tmp_path: Path) -> None:
    photos, folder = write_photos(tmp_path / "photos", 9), tmp_path / "features"
    first = extract(tiny_encoder(), "tiny", photos, folder, SMALL)
    again = Counted()
    assert np.array_equal(extract(again.encoder, "tiny", photos, folder, SMALL), first)
    assert again.seen == 0


def test_a_killed_extraction_goes_on_at_the_shard_that_it_died_in(tmp_path: Path) -> None:
    photos, folder = write_photos(tmp_path / "photos", 10), tmp_path / "features"
    with pytest.raises(KeyboardInterrupt):
        extract(Counted(dies_after=7).encoder, "tiny", photos, folder, SMALL)  # 4 are whole, 3 of the next 4 are lost
    assert sorted(file.name for file in folder.glob("shards/*.npy")) == ["00000000.npy"]
    second = Counted()
    resumed = extract(second.encoder, "tiny", photos, folder, SMALL)
    assert second.seen == 6
    assert np.array_equal(resumed, extract(tiny_encoder(), "tiny", photos, tmp_path / "unharmed", SMALL))


def test_a_half_written_file_of_a_killed_run_is_no_shard(tmp_path: Path) -> None:
    photos, folder = write_photos(tmp_path / "photos", 5), tmp_path / "features"
    (folder / "shards").mkdir(parents=True)
    for name in (".00000000.npy.1", f".00000004.npy.{os.getpid()}", "00000000.npy"):
        (folder / "shards" / name).write_bytes(b"\x93NUMPY half")
    counted = Counted()
    extract(counted.encoder, "tiny", photos, folder, SMALL)
    assert counted.seen == 5


@pytest.mark.parametrize("harm", ["cut", "changed", "shape"])
def test_a_shard_that_was_harmed_later_is_named(tmp_path: Path, harm: str) -> None:
    photos, out = write_photos(tmp_path / "photos", 10), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        embed(Counted(dies_after=8).encoder, "tiny", photos, out, SMALL)
    shard = out / "shards/00000004.npy"
    rows = np.load(shard)
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-9])
    else:
        write_array(shard, rows[:2] if harm == "shape" else rows + 1)
    said = {"cut": "cannot be read", "changed": "has changed", "shape": r"is float32 \(2, 64\); expected"}[harm]
    with pytest.raises(ValueError, match=rf"00000004\.npy {said}"):
        embed(tiny_encoder(), "tiny", photos, out, SMALL)
    assert not (out / "index.json").exists() and not (out / "features.npy").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda encoder, photos: ("another", encoder, photos),
        lambda encoder, photos: ("tiny", replace(encoder, pixels=replace(encoder.pixels, resample="nearest")), photos),
        lambda encoder, photos: ("tiny", encoder, replace(photos, paths=photos.paths[::-1])),
        lambda encoder, photos: ("tiny", encoder, replace(photos, paths=photos.paths[:4])),
        lambda encoder, photos: ("tiny", _nudged(encoder), photos),
        lambda encoder, photos: ("tiny", replace(encoder, output="cls"), photos),
    ],
    ids=["encoder", "pixels", "order", "fewer", "weights", "output"],
)
def test_a_folder_of_another_encoder_or_other_photos_is_refused(
    tmp_path: Path, change: Callable[[Encoder, Photos], tuple[str, Encoder, Photos]]
) -> None:
    photos, encoder, folder = write_photos(tmp_path / "photos", 5), tiny_encoder(), tmp_path / "features"
    extract(encoder, "tiny", photos, folder)
    name, other, others = change(encoder, photos)
    with pytest.raises(ValueError, match=r"identity\.json was made with another"):
        extract(other, name, others, folder)


def _nudged(encoder: Encoder) -> Encoder:
    next(encoder.module.parameters()).data.view(-1)[7] += 1e-4
    return encoder


def test_a_folder_made_from_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    photos, folder = write_photos(tmp_path / "photos", 5), tmp_path / "features"
    extract(tiny_encoder(), "tiny", photos, folder)
    write_photo(photos.root / "2.png", (1, 1, 1), seed=99)
    with pytest.raises(ValueError, match="another images"):
        extract(tiny_encoder(), "tiny", photos, folder)


def test_a_corrupt_image_is_named_and_only_left_out_when_asked(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 10), tmp_path / "out"
    whole = extract(tiny_encoder(), "tiny", photos, tmp_path / "whole", ONE_BY_ONE)
    (photos.root / "5.png").write_bytes(b"this is no photo")
    (photos.root / "8.png").write_bytes((photos.root / "8.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"photos/5\.png: bytes are none of"):
        embed(tiny_encoder(), "tiny", photos, out, ONE_BY_ONE)
    assert [file.name for file in out.glob("shards/*.npy")] == ["00000000.npy"]
    index = embed(tiny_encoder(), "tiny", photos, out, replace(ONE_BY_ONE, skip_unreadable=True))
    assert [(image["row"], image["name"]) for image in index["skipped"]] == [(5, "5.png"), (8, "8.png")]
    assert all(image["name"] in image["reason"] for image in index["skipped"])
    rows = [0, 1, 2, 3, 4, 6, 7, 9]
    assert np.array_equal(np.load(out / "features.npy"), whole[rows])
    assert (out / "names.txt").read_text().split() == [f"{row}.png" for row in rows]
    assert [shard["rows"] for shard in index["shards"]] == [4, 3, 1]


def test_missing_images_are_counted_before_anything_is_computed(tmp_path: Path) -> None:
    photos, counted = write_photos(tmp_path / "photos", 6), Counted()
    for row in (2, 4):
        (photos.root / f"{row}.png").unlink()
    with pytest.raises(ValueError, match=r"2 of 6 files do not exist, the first is '2\.png'"):
        embed(counted.encoder, "tiny", photos, tmp_path / "out", SMALL)
    assert counted.seen == 0
    index = embed(counted.encoder, "tiny", photos, tmp_path / "out", replace(SMALL, skip_unreadable=True))
    assert [image["reason"].rpartition("/")[2] for image in index["skipped"]] == [
        "2.png: no such file.",
        "4.png: no such file.",
    ]


def test_images_of_which_none_can_be_read_and_no_images_are_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    for path in photos.paths:
        (photos.root / path).write_bytes(b"no")
    with pytest.raises(ValueError, match=r"none of 2 images can be read; the first: .*0\.png"):
        embed(tiny_encoder(), "tiny", photos, tmp_path / "out", replace(SMALL, skip_unreadable=True))
    with pytest.raises(ValueError, match="no image to embed"):
        embed(tiny_encoder(), "tiny", FileImages(tmp_path, ()), tmp_path / "none", SMALL)
    with pytest.raises(ValueError, match="line break"):
        embed(tiny_encoder(), "tiny", FileImages(tmp_path, ("a\nb.png",)), tmp_path / "none", SMALL)


class Spoilt(nn.Module):
    """Features that are not what they should be, for photos brighter than `above`."""

    def __init__(self, above: float, value: float, width: int) -> None:
        super().__init__()
        self.above, self.value, self.width = above, value, width

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        bright = pixels.float().mean((1, 2, 3), keepdim=True).flatten(1) > self.above
        return torch.where(bright, self.value, 1.0).expand(-1, self.width)


@dataclass(frozen=True)
class Fault:
    module: Spoilt
    config: EmbedConfig
    said: str


@pytest.mark.parametrize(
    "fault",
    [
        Fault(
            Spoilt(240, float("nan"), 64),
            SMALL,
            r"5\.png: a feature is not finite; so it is of 1 images of its shard\.$",
        ),
        Fault(Spoilt(240, 1e5, 64), replace(SMALL, dtype="float16"), r"5\.png: .* Try precision and dtype float32"),
        Fault(Spoilt(240, 1.0, 48), SMALL, r"the encoder says 64 values an image, and gave \(48,\)"),
    ],
    ids=["nan", "overflow", "width"],
)
def test_features_that_are_no_features_are_errors_that_name_the_image(tmp_path: Path, fault: Fault) -> None:
    photos, out = write_photos(tmp_path / "photos", 5), tmp_path / "out"
    write_photo(photos.root / "5.png", (1, 1, 1), seed=0)
    photos = replace(photos, paths=(*photos.paths, "5.png"))
    with pytest.raises(ValueError, match=fault.said):
        embed(replace(tiny_encoder(), module=fault.module), "tiny", photos, out, fault.config)
    assert not (out / "index.json").exists()


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_half(stream: Any, array: Any, **options: Any) -> None:
        stream.write(b"\x93NUMPY half")
        raise OSError("no space left on device")

    write_array(tmp_path / "old.npy", np.arange(3))
    monkeypatch.setattr(np, "save", save_half)
    for name in ("old.npy", "new.npy"):
        with pytest.raises(OSError, match="no space left"):
            write_array(tmp_path / name, np.zeros(9))
    assert np.load(tmp_path / "old.npy").tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.glob("*.npy")] == ["old.npy"]


def test_features_need_no_gradients() -> None:
    encoder = tiny_encoder()
    encoder.module.requires_grad_(True)
    assert not features_of(encoder, torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).requires_grad


def test_the_index_is_plain_json_of_what_the_features_are_made_of(tmp_path: Path) -> None:
    embed(tiny_encoder(), "tiny", write_photos(tmp_path / "photos", 3), tmp_path / "out", SMALL)
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["encoder"] == "tiny" and index["precision"] == "float32" and index["skipped"] == []
    assert index["pixels"] == tiny_encoder().pixels.to_json()


def test_a_gpu_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device here; use cpu"):
        embed(tiny_encoder(), "tiny", write_photos(tmp_path, 2), tmp_path / "out", replace(SMALL, device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_features_of_the_processor(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 10)
    cpu = extract(tiny_encoder(), "tiny", photos, tmp_path / "cpu", SMALL)
    gpu = extract(tiny_encoder(), "tiny", photos, tmp_path / "gpu", replace(SMALL, device="cuda"))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-2, atol=1e-2 * np.abs(cpu).max())


@pytest.mark.parametrize("name", ["batch", "shard", "workers", "prefetch"])
def test_settings_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; expected 1 or more"):
        EmbedConfig(**{name: 0})


def test_the_real_encoder_gives_what_its_record_says_and_depends_on_the_photo() -> None:
    encoder = build("efficientnet-lite2")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, *encoder.pixels.shape), dtype=torch.uint8, generator=generator)
    pixels[1] //= 4
    got = features_of(encoder, pixels)
    assert got.shape == (2, encoder.size)
    assert torch.isfinite(got).all()
    assert (got >= 0).all()  # power normalisation stands on this
    assert (got[0] - got[1]).abs().max() > 0.1
