"""Features of many photos through a frozen encoder, in shards that survive a killed run."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from contract.pixels import ImageError, PixelSpec, load_pixels
from training.encoders import Encoder, features_of
from training.photos import Photos
from training.stage import claim, write_array

SHARD = 512
"""Photos in one file; a killed run loses at most this many."""

BATCH = 32


def extract(encoder: Encoder, name: str, photos: Photos, folder: Path, *, workers: int = 2) -> NDArray[np.float32]:
    """Features [n, size] of all photos, in their order; shards already in `folder` are not computed again.

    Args:
        encoder: the frozen backbone.
        name: its name, part of what a shard is checked against.
        folder: where shards go; made if absent.
        workers: decoding threads.

    Raises:
        ValueError: a photo cannot be read (named), or `folder` holds the shards of other photos or encoders.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"encoder": name, "pixels": encoder.pixels.to_json(), "photos": _digest(photos)}
    claim(folder / "identity.json", identity, ("pillow", "torch"))
    starts = range(0, len(photos), SHARD)
    with tqdm(total=len(photos), desc=f"features of {name}", unit="photo") as bar:
        for start in starts:
            shard = folder / f"{start:08d}.npy"
            rows = photos.paths[start : start + SHARD]
            if not shard.exists():
                write_array(shard, _encode(encoder, photos.root, rows, workers, bar))
            else:
                bar.update(len(rows))
    return np.concatenate([np.load(folder / f"{start:08d}.npy", allow_pickle=False) for start in starts])


def _digest(photos: Photos) -> str:
    """sha256 over the paths and sizes of all photos."""
    digest = hashlib.sha256()
    for path in photos.paths:
        digest.update(f"{path}\0{(photos.root / path).stat().st_size}\n".encode())
    return digest.hexdigest()


def _encode(encoder: Encoder, root: Path, paths: Sequence[str], workers: int, bar: Any) -> NDArray[np.float32]:
    out = []
    for pixels in _batches(encoder.pixels, root, paths, workers):
        out.append(features_of(encoder, torch.from_numpy(pixels)).numpy())
        bar.update(len(pixels))
    return np.concatenate(out).astype(np.float32)


def _batches(spec: PixelSpec, root: Path, paths: Sequence[str], workers: int) -> Iterator[NDArray[Any]]:
    """Pixel batches [b, 3, height, width]; the next one decodes while this one is used."""

    def load(path: str) -> NDArray[Any]:
        try:
            return load_pixels((root / path).read_bytes(), spec)
        except ImageError as error:
            raise ValueError(f"{root / path}: {error}") from error

    with ThreadPoolExecutor(workers) as pool:
        loaded = pool.map(load, paths)
        while batch := list(itertools.islice(loaded, BATCH)):
            yield np.stack(batch)
