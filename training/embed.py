"""Features of many images through a frozen encoder, in shards that survive a killed run, on one process or many.

    identity.json        what the features are made of: encoder, weights, pixels, images, precision
    shards/00001024.npy  rows 1024 and on, with 00001024.json: sha256 of the rows, images that were skipped
    features.npy         all rows as one matrix, to be mapped into memory (layout `matrix`, which drops the shards)
    names.txt            the name of each row's image, one a line
    labels.txt, groups.npy   class of each row and its number, where the source has classes
    index.json           written last: rows, width, shards, skipped images, digest of all rows

`features.npy`, `names.txt` and `groups.npy` are what `cluster`, `triplets` and `distill` read. Under torchrun, rank r
computes shards r, r + world, ...; batches never cross shards, so the features do not depend on the number of ranks.
"""

import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from contract.ahead import ahead
from contract.files import whole
from contract.pixels import PixelSpec
from training.encoders import Encoder, features_of, weights_digest
from training.images import Images, UnreadableImage, digest_of, load_image, require_present
from training.named_rows import write_names
from training.processes import Place, place, require_device
from training.stage import claim, write_array, write_json


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How features are computed and kept.

    Attributes:
        batch: images in one forward pass.
        shard: images in one shard; a killed run loses at most this many a rank.
        workers: decoding threads of each rank.
        prefetch: batches decoded ahead, at most.
        device: torch's name.
        precision: of the arithmetic; below float32 by autocast.
        compile: the encoder by torch's inductor, weights frozen; needs a C++ compiler. Worth it from some thousand
            images on; numbers differ by rounding.
        dtype: of the stored features; `cluster` and `triplets` read float32.
        layout: one matrix, or shards as .npy or .safetensors.
        skip_unreadable: leave images out that are missing or do not decode, and list them; otherwise they are errors.
    """

    batch: int = 32
    shard: int = 1024
    workers: int = 2
    prefetch: int = 4
    device: str = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    layout: Literal["matrix", "npy", "safetensors"] = "matrix"
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "shard", "workers", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more.")


def extract(
    encoder: Encoder, name: str, images: Images, folder: Path, config: EmbedConfig | None = None
) -> NDArray[np.float32]:
    """Features [n, size] of all images, in their order, in memory. Arguments and errors are those of `embed`."""
    embed(encoder, name, images, folder, config)
    return np.asarray(np.load(folder / "features.npy", allow_pickle=False))


def embed(encoder: Encoder, name: str, images: Images, out: Path, config: EmbedConfig | None = None) -> dict[str, Any]:
    """Features of every image to the files above; what is there is not computed again. Returns the index.

    Args:
        encoder: the frozen backbone; moved to the device.
        name: its name, part of what a shard is checked against.
        out: folder to make or to continue.

    Raises:
        ValueError: an image is missing or does not decode (named), a feature is not finite (its image is named), the
            encoder's width is not what it says, or `out` belongs to other images, weights or settings.
    """
    config = config or EmbedConfig()
    require_device(config.device)
    _check_images(images, config)
    identity = {
        "encoder": name,
        "output": encoder.output,
        "weights": weights_digest(encoder.module),
        "pixels": encoder.pixels.to_json(),
        "images": digest_of(images),
        **{key: getattr(config, key) for key in ("shard", "precision", "compile", "dtype", "layout")},
    }
    ranks = place()
    if ranks.rank == 0:
        (out / "shards").mkdir(parents=True, exist_ok=True)
        claim(out / "identity.json", identity, ("numpy", "pillow", "torch", "timm"))
    ranks.wait()
    claim(out / "identity.json", identity, ())
    index = _read_index(out, config)
    if index is None:
        _compute(encoder, images, out, config, ranks)
        ranks.wait()
        if ranks.rank == 0:
            _assemble(encoder.size, images, out, config, identity)
        ranks.wait()
        index = _read_index(out, config)
        assert index is not None
    elif ranks.rank == 0 and config.layout == "matrix":
        shutil.rmtree(out / "shards")
    return index


def _check_images(images: Images, config: EmbedConfig) -> None:
    if not len(images):
        raise ValueError("there is no image to embed.")
    for row, name in enumerate(images.names):
        if name.splitlines() != [name]:
            raise ValueError(f"{images.where(row)}: the name {name!r} is empty or has a line break; names.txt has not.")
    if not config.skip_unreadable:
        require_present(images, "images")


# --- computing ------------------------------------------------------------------------------------


def _compute(encoder: Encoder, images: Images, out: Path, config: EmbedConfig, ranks: Place) -> None:
    """Write this rank's shards that are not there yet."""
    device = torch.device(config.device)
    encoder.module.to(device)
    own = range(ranks.rank * config.shard, len(images), ranks.world * config.shard)
    todo = [start for start in own if not _record(out, start).exists()]
    rows_of = {start: range(start, min(start + config.shard, len(images))) for start in own}
    total = sum(len(rows) for rows in rows_of.values())
    done = total - sum(len(rows_of[start]) for start in todo)
    every = itertools.chain.from_iterable(rows_of[start] for start in todo)
    load = functools.partial(_decoded, images, encoder.pixels)
    if config.compile:
        compiled = torch.compile(encoder.module, options={"freezing": True})
        encoder = replace(encoder, module=cast(nn.Module, compiled))
    prefetched = config.batch * config.prefetch
    with (
        ahead(load, every, threads=config.workers, depth=prefetched, name="decode") as decoded,
        tqdm(total=total, initial=done, desc="embed", unit="image", disable=ranks.rank > 0) as bar,
    ):
        for start in todo:
            _write_shard(encoder, images, out, start, itertools.islice(decoded, len(rows_of[start])), config, device)
            bar.update(len(rows_of[start]))


Decoded = tuple[int, NDArray[Any] | UnreadableImage]
"""Row number, and its pixels or why there are none."""


def _decoded(images: Images, spec: PixelSpec, row: int) -> Decoded:
    try:
        return row, load_image(images, row, spec)
    except UnreadableImage as error:
        return row, error


def _write_shard(
    encoder: Encoder,
    images: Images,
    out: Path,
    start: int,
    decoded: Iterator[Decoded],
    config: EmbedConfig,
    device: torch.device,
) -> None:
    """Encode one shard; its record is written after it, and makes it complete."""
    kept: list[int] = []
    skipped: list[dict[str, Any]] = []
    parts: list[Tensor] = []
    while chunk := list(itertools.islice(decoded, config.batch)):
        batch = []
        for row, pixels in chunk:
            if isinstance(pixels, UnreadableImage):
                if not config.skip_unreadable:
                    raise pixels
                skipped.append({"row": row, "name": images.names[row], "reason": str(pixels)})
            else:
                kept.append(row)
                batch.append(pixels)
        if batch:
            parts.append(_forward(encoder, np.stack(batch), config, device))
    # Only here does a GPU's work have to be waited for.
    features = torch.cat(parts).float().cpu().numpy() if parts else np.zeros((0, encoder.size), np.float32)
    if features.shape[1:] != (encoder.size,):
        raise ValueError(f"the encoder says {encoder.size} values an image, and gave {features.shape[1:]}.")
    with np.errstate(over="ignore"):
        block = np.ascontiguousarray(features, config.dtype)
    _require_finite(block, images, kept, config)
    _save(out, start, block, kept, config)
    write_json(_record(out, start), {"rows": len(block), "sha256": _sha256(block), "skipped": skipped})


def _forward(encoder: Encoder, batch: NDArray[Any], config: EmbedConfig, device: torch.device) -> Tensor:
    pixels = torch.from_numpy(batch)
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    pixels = pixels.to(device, non_blocking=True)
    with torch.autocast(device.type, getattr(torch, config.precision), enabled=config.precision != "float32"):
        return features_of(encoder, pixels)


def _require_finite(block: NDArray[Any], images: Images, rows: Sequence[int], config: EmbedConfig) -> None:
    finite = np.isfinite(block).all(1)
    if not finite.all():
        where = images.where(rows[int((~finite).argmax())])
        lower = config.precision != "float32" or config.dtype != "float32"
        advice = f" Try precision and dtype float32 (now {config.precision}, {config.dtype})." if lower else ""
        count = int((~finite).sum())
        raise ValueError(f"{where}: a feature is not finite; so it is of {count} images of its shard.{advice}")


# --- files ----------------------------------------------------------------------------------------


def _shard(out: Path, start: int, config: EmbedConfig) -> Path:
    return out / f"shards/{start:08d}.{'safetensors' if config.layout == 'safetensors' else 'npy'}"


def _record(out: Path, start: int) -> Path:
    return out / f"shards/{start:08d}.json"


def _sha256(block: NDArray[Any]) -> str:
    return hashlib.sha256(block.data).hexdigest()


def _save(out: Path, start: int, block: NDArray[Any], rows: Sequence[int], config: EmbedConfig) -> None:
    file = _shard(out, start, config)
    if config.layout == "safetensors":
        with whole(file) as stream:
            stream.write(safetensors.numpy.save({"features": block, "rows": np.array(rows, np.int64)}))
    else:
        write_array(file, block)


def _load(file: Path) -> NDArray[Any]:
    if file.suffix == ".safetensors":
        return safetensors.numpy.load_file(file)["features"]
    return np.asarray(np.load(file, allow_pickle=False))


def _checked(file: Path, record: dict[str, Any], width: int, dtype: str) -> NDArray[Any]:
    """A shard's rows [n, width]. Raises ValueError naming a shard that is not as it was written."""
    try:
        block = _load(file)
    except (OSError, ValueError, EOFError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} cannot be read ({error}); remove it and its .json, and run again.") from error
    expected = (record["rows"], width)
    if block.shape != expected or block.dtype != np.dtype(dtype):
        found = f"{block.dtype} {block.shape}; expected {dtype} {expected}"
        raise ValueError(f"{file} is {found}. Remove it and its .json, and run again.")
    if _sha256(block) != record["sha256"]:
        raise ValueError(f"{file} has changed since it was written; remove it and its .json, and run again.")
    return block


def _read_index(out: Path, config: EmbedConfig) -> dict[str, Any] | None:
    """The index of complete features, or None."""
    file = out / "index.json"
    if not file.exists():
        return None
    index: dict[str, Any] = json.loads(file.read_text())
    files = [out / "features.npy"] if config.layout == "matrix" else [out / s["file"] for s in index["shards"]]
    return index if all(file.exists() for file in files) else None


def _assemble(width: int, images: Images, out: Path, config: EmbedConfig, identity: dict[str, Any]) -> None:
    """Check every shard, write the matrix, names, labels and, last, the index."""
    starts = range(0, len(images), config.shard)
    records = [json.loads(_record(out, start).read_text()) for start in starts]
    skipped = [image for record in records for image in record["skipped"]]
    n = len(images) - len(skipped)
    if not n:
        raise ValueError(f"none of {len(images)} images can be read; the first: {skipped[0]['reason']}")
    shards = []
    first = 0
    blocks = _blocks(out, starts, records, width, config)
    digest = hashlib.sha256()
    if config.layout == "matrix":
        with whole(out / "features.npy") as stream:
            header = {"descr": np.dtype(config.dtype).str, "fortran_order": False, "shape": (n, width)}
            np.lib.format.write_array_header_1_0(stream, header)
            for block in blocks:
                digest.update(block.data)
                stream.write(block.data)
    else:
        for block in blocks:
            digest.update(block.data)
    for start, record in zip(starts, records, strict=True):
        place = {"first_image": start, "first_row": first, "rows": record["rows"], "sha256": record["sha256"]}
        file = _shard(out, start, config).relative_to(out)
        shards.append(place if config.layout == "matrix" else place | {"file": file.as_posix()})
        first += record["rows"]
    _write_rows(images, {image["row"] for image in skipped}, out)
    index = identity | {"rows": n, "width": width, "sha256": digest.hexdigest(), "skipped": skipped, "shards": shards}
    write_json(out / "index.json", index)
    if config.layout == "matrix":
        shutil.rmtree(out / "shards")


def _blocks(
    out: Path, starts: Iterable[int], records: Sequence[dict[str, Any]], width: int, config: EmbedConfig
) -> Iterator[NDArray[Any]]:
    """Every shard's rows in order, checked, one at a time."""
    for start, record in zip(tqdm(starts, desc="assemble", unit="shard"), records, strict=True):
        yield _checked(_shard(out, start, config), record, width, config.dtype)


def _write_rows(images: Images, skipped: set[int], out: Path) -> None:
    """Names and classes of the rows that are kept."""
    rows = [row for row in range(len(images)) if row not in skipped]
    write_names(out, [images.names[row] for row in rows])
    if (labels := images.labels) is not None:
        with whole(out / "labels.txt") as stream:
            stream.writelines(f"{labels[row]}\n".encode() for row in rows)
        write_array(out / "groups.npy", np.unique([labels[row] for row in rows], return_inverse=True)[1])
