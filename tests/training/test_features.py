"""Features: the encoder's own, in the photos' order, and never computed twice."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.pixels import load_pixels
from tests.training.tiny import tiny_encoder, write_photo, write_photos
from training import features
from training.encoders import ENCODERS, Encoder, features_of
from training.features import extract
from training.photos import Photos
from training.stage import write_array


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD", 4)
    monkeypatch.setattr(features, "BATCH", 3)


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
    got = extract(encoder, "tiny", photos, tmp_path / "features")
    for path, row in zip(photos.paths, got, strict=True):
        pixels = load_pixels((photos.root / path).read_bytes(), encoder.pixels)
        np.testing.assert_allclose(row, features_of(encoder, torch.from_numpy(pixels[None]))[0], atol=1e-6)
    assert got.dtype == np.float32
    assert got.std(0).max() > 0.01  # the photos differ


@pytest.mark.parametrize("workers", [1, 5])
def test_the_number_of_decoding_threads_changes_no_bit(tmp_path: Path, workers: int) -> None:
    photos = write_photos(tmp_path / "photos", 9)
    two = extract(tiny_encoder(), "tiny", photos, tmp_path / "two", workers=2)
    assert np.array_equal(two, extract(tiny_encoder(), "tiny", photos, tmp_path / "other", workers=workers))


def test_complete_features_are_not_computed_again(tmp_path: Path) -> None:
    photos, folder = write_photos(tmp_path / "photos", 9), tmp_path / "features"
    first = extract(tiny_encoder(), "tiny", photos, folder)
    again = Counted()
    assert np.array_equal(extract(again.encoder, "tiny", photos, folder), first)
    assert again.seen == 0


def test_a_killed_extraction_goes_on_at_the_shard_that_it_died_in(tmp_path: Path) -> None:
    photos, folder = write_photos(tmp_path / "photos", 10), tmp_path / "features"
    with pytest.raises(KeyboardInterrupt):
        extract(Counted(dies_after=7).encoder, "tiny", photos, folder)  # 4 are whole, 3 of the next 4 are lost
    assert sorted(file.name for file in folder.glob("*.npy")) == ["00000000.npy"]
    second = Counted()
    resumed = extract(second.encoder, "tiny", photos, folder)
    assert second.seen == 6
    assert np.array_equal(resumed, extract(tiny_encoder(), "tiny", photos, tmp_path / "unharmed"))


def test_only_a_deleted_shard_is_computed_again(tmp_path: Path) -> None:
    photos, folder = write_photos(tmp_path / "photos", 10), tmp_path / "features"
    first = extract(tiny_encoder(), "tiny", photos, folder)
    (folder / "00000008.npy").unlink()
    second = Counted()
    assert np.array_equal(extract(second.encoder, "tiny", photos, folder), first)
    assert second.seen == 2


def test_a_half_written_file_of_a_killed_run_is_no_shard(tmp_path: Path) -> None:
    photos, folder = write_photos(tmp_path / "photos", 5), tmp_path / "features"
    folder.mkdir()
    for name in (".00000000.npy.1", f".00000004.npy.{os.getpid()}", "identity.tmp"):
        (folder / name).write_bytes(b"\x93NUMPY half")
    counted = Counted()
    extract(counted.encoder, "tiny", photos, folder)
    assert counted.seen == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda encoder, photos: ("another", encoder, photos),
        lambda encoder, photos: ("tiny", replace(encoder, pixels=replace(encoder.pixels, resample="nearest")), photos),
        lambda encoder, photos: ("tiny", encoder, replace(photos, paths=photos.paths[::-1])),
        lambda encoder, photos: ("tiny", encoder, replace(photos, paths=photos.paths[:4])),
    ],
    ids=["encoder", "pixels", "order", "fewer"],
)
def test_a_folder_of_another_encoder_or_other_photos_is_refused(
    tmp_path: Path, change: Callable[[Encoder, Photos], tuple[str, Encoder, Photos]]
) -> None:
    photos, encoder, folder = write_photos(tmp_path / "photos", 5), tiny_encoder(), tmp_path / "features"
    extract(encoder, "tiny", photos, folder)
    name, other, others = change(encoder, photos)
    with pytest.raises(ValueError, match=r"identity\.json was made with another"):
        extract(other, name, others, folder)


def test_a_folder_made_from_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    photos, folder = write_photos(tmp_path / "photos", 5), tmp_path / "features"
    extract(tiny_encoder(), "tiny", photos, folder)
    write_photo(photos.root / "2.png", (1, 1, 1), seed=99)
    with pytest.raises(ValueError, match="other photos"):
        extract(tiny_encoder(), "tiny", photos, folder)


def test_a_corrupt_photo_is_named(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 6)
    (photos.root / "5.png").write_bytes(b"this is no photo")
    with pytest.raises(ValueError, match=r"photos/5\.png: "):
        extract(tiny_encoder(), "tiny", photos, tmp_path / "features")
    assert [file.name for file in (tmp_path / "features").glob("*.npy")] == ["00000000.npy"]


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


def test_features_need_no_gradients(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    encoder.module.requires_grad_(True)
    assert not features_of(encoder, torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).requires_grad


def test_the_real_encoder_gives_what_its_record_says_and_depends_on_the_photo() -> None:
    encoder = ENCODERS["efficientnet-lite2"]()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, *encoder.pixels.shape), dtype=torch.uint8, generator=generator)
    pixels[1] //= 4
    got = features_of(encoder, pixels)
    assert got.shape == (2, encoder.size)
    assert torch.isfinite(got).all()
    assert (got >= 0).all()  # power normalisation stands on this
    assert (got[0] - got[1]).abs().max() > 0.1
