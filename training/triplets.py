"""Many triplets and a teacher's soft labels for them: what AligNet students are trained on.

How triplets are drawn stands in training/triplet_sampling.py, their layout in training/triplet_files.py.

A label is the three dot products of the teacher's transformed features; rows are turned so that the most
similar pair comes first and the odd one out last. Its softmax (temperature 1) is the soft label, `soft_labels`;
the choice itself, ties and all, is `contract.triplets.odd_one_out`. A tied row stays in the file, turned by the
first of its equal pairs, and is counted.

Shard k of one configuration holds the same triplets whatever was interrupted: its seed is (seed, split, first
row). Memory is bounded by the features (mapped), the file names and one shard.
"""

import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contract.triplets import PAIRS, pair_probabilities
from training import triplet_files
from training.named_rows import NAMES, names_beside
from training.stage import claim, read_features, write_json
from training.triplet_gates import Summary
from training.triplet_sampling import Draw, Groups, Sampling, sample

SPLITS = ("train", "val")

BUFFER = 2**19
"""Bytes of gathered rows a thread holds at once: small enough for its cache."""

PIECE = 4096
"""Triplets that a thread labels before it takes the next."""


@dataclass(frozen=True, kw_only=True)
class TripletConfig:
    """Constants of a set of triplets.

    Attributes:
        sampling: how triplets are drawn.
        triplets: how many.
        split: `train` or `val`: part of the file's name, and of the seed; both draw from the same images.
        transform: part of the folder's name: whose similarities they are.
        draw: how groups are drawn; `random` has none.
        seed: of the draw.
        shard: triplets of one file; a killed run loses at most one.
        single: join the shards into one file, the official layout; otherwise the folder of shards is the set.
    """

    sampling: Sampling
    triplets: int
    split: Literal["train", "val"] = "train"
    transform: Literal["uncertainty_distillation", "untransformed"] = "uncertainty_distillation"
    draw: Draw = "uniform"
    seed: int = 0
    shard: int = 100_000
    single: bool = True


def similarities(features: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Dot products [t, 3] in the order of `contract.triplets.PAIRS` of features [n, p] at rows [t, 3].

    Equal to `contract.triplets.pair_similarities(features[rows])` but for the order of its sums; a few rows are
    gathered at a time, so that each is read from memory once and multiplied in the cache.
    """
    p = features.shape[1]
    step = min(len(rows), max(1, BUFFER // (3 * p * features.itemsize)))
    gathered = np.empty((3, step, p), np.float32)
    out = np.empty((len(rows), 3), np.float32)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        x = gathered[:, : len(part)]
        for image in range(3):
            # clip: indices are checked before; raise would copy through a buffer.
            np.take(features, part[:, image], axis=0, out=x[image], mode="clip")
        with np.errstate(over="ignore", invalid="ignore"):  # `label` refuses what is not finite, by name
            for pair, (i, j) in enumerate(PAIRS):
                np.vecdot(x[i], x[j], out=out[start : start + step, pair])
    return out


def label(
    features: NDArray[np.float32], rows: NDArray[np.int64], workers: int = 2
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(rows, similarities) of triplets, both turned so that the most similar pair comes first.

    Raises:
        ValueError: an image number out of range, or a similarity that is not finite; the triplet is named.
    """
    outside = (rows < 0) | (rows >= len(features))
    if outside.any():
        at = int(outside.any(1).argmax())
        raise ValueError(f"triplet {at} is of images {rows[at].tolist()}; there are {len(features)}, from 0.")
    pieces = [rows[start : start + PIECE] for start in range(0, len(rows), PIECE)]
    with ThreadPoolExecutor(workers) as pool:
        sims = np.concatenate(list(pool.map(similarities, itertools.repeat(features), pieces)))
    if not np.isfinite(sims).all():
        at = int((~np.isfinite(sims)).any(1).argmax())
        raise ValueError(f"triplet {at}, images {rows[at].tolist()}: similarities {sims[at].tolist()} are not finite.")
    return turn(rows, sims)


def turn(rows: NDArray[Any], sims: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Triplets and their similarities with the most similar pair first; of equal pairs, the first one.

    Where pair 01 is the most similar, nothing moves; pair 02 turns images 0, 1, 2 into 0, 2, 1; pair 12 into
    1, 2, 0. The similarities follow their images.
    """
    winner = sims.argmax(1)
    images = np.array([[0, 1, 2], [0, 2, 1], [1, 2, 0]])[winner]
    pairs = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]])[winner]
    return np.take_along_axis(rows, images, 1), np.take_along_axis(sims, pairs, 1)


def soft_labels(sims: NDArray[np.float32]) -> NDArray[np.float64]:
    """The teacher's probabilities [t, 3] that each pair is the most similar one, at temperature 1."""
    return pair_probabilities(sims.astype(np.float64))


def make_triplets(
    features: Path, names: Path, groups: Path | None, root: Path, config: TripletConfig, *, workers: int = 2
) -> dict[str, Any]:
    """Write what is not complete yet of `{root}/{transform}/{split}_{sampling}.npz` and return its report.

    The sampling of a cluster border is written with its number of clusters: `train_cluster_border_500.npz`.
    Beside the file stand its `.json` (config, sha256 of the inputs, versions) and `.report.json`.

    Args:
        features: .npy, float32 [n, p], the teacher's transformed features.
        names: the n file names, `.npy` of strings or one a line.
        groups: .npy, n whole numbers: clusters or classes. None for `random`; elsewhere, None takes the
            class to be the WordNet number that ImageNet's file names begin with.
        root: folder of all sets.
        config: constants.
        workers: threads that label; no bit depends on them.

    Raises:
        ValueError: bad input (file and row are named), or the set there belongs to others.
    """
    _check(config)
    x, digest = read_features(features)
    filenames = triplet_files.read_names(names)
    if len(filenames) != len(x):
        advice = f" Those of these rows are in {features.parent / NAMES}." if names_beside(features, len(x)) else ""
        raise ValueError(f"{names} has {len(filenames)} names, {features} {len(x)} rows; they must match.{advice}")
    triplet_files.Names(filenames, str(names))  # refuses a name that is there twice: images are found by name
    labels = _labels(groups, names, filenames, config)
    suffix = f"_{int(labels.max()) + 1}" if labels is not None and config.sampling == "cluster_border" else ""
    grouped = None if labels is None else Groups.of(labels, config.sampling, str(groups or names))
    base = root / config.transform / f"{config.split}_{config.sampling}{suffix}"
    base.parent.mkdir(parents=True, exist_ok=True)
    identity = {
        "config": asdict(config),
        "features": {"sha256": digest, "shape": x.shape},
        "names": triplet_files.digest(filenames),
        "groups": None if labels is None else triplet_files.digest(labels),
    }
    claim(base.with_suffix(".json"), identity, ("numpy",))
    single, report = base.with_suffix(".npz"), base.with_suffix(".report.json")
    if grouped and grouped.skipped:
        group, row = grouped.skipped[0]
        tqdm.write(
            f"{groups or names}: {len(grouped.skipped)} groups have too few images for {config.sampling} and are "
            f"left out, the first is group {group} with row {row}.",
            file=sys.stderr,
        )
    if not single.exists():
        base.mkdir(exist_ok=True)
        _shards(x, filenames, grouped, base, config, workers)
        if config.single:
            triplet_files.join(base, single)
    if config.single:
        shutil.rmtree(base, ignore_errors=True)  # whole in the single file by now
    if not report.exists():
        made = _report(single if config.single else base, labels, grouped)
        write_json(report, made | {"triplets": config.triplets})
    out: dict[str, Any] = json.loads(report.read_text())
    return out


def _check(config: TripletConfig) -> None:
    for value, options in (
        (config.sampling, get_args(Sampling)),
        (config.draw, get_args(Draw)),
        (config.split, SPLITS),
    ):
        if value not in options:
            raise ValueError(f"{value!r} is none of {', '.join(options)}.")
    if config.triplets < 1 or config.shard < 1:
        raise ValueError(f"{config.triplets} triplets in shards of {config.shard}; both must be at least 1.")


def _labels(
    groups: Path | None, names: Path, filenames: NDArray[np.str_], config: TripletConfig
) -> NDArray[np.int64] | None:
    """[n] group numbers of the images, None where the sampling has no groups."""
    if config.sampling == "random":
        return None
    if groups is None:
        if config.sampling == "cluster_border":
            raise ValueError("cluster_border needs groups, the assignments.npy of a clustering.")
        return np.unique(triplet_files.synsets(filenames, str(names)), return_inverse=True)[1]
    labels: NDArray[Any] = np.load(groups, allow_pickle=False)
    if labels.shape != filenames.shape or labels.dtype.kind not in "iu":
        raise ValueError(f"{groups} is {labels.dtype} {labels.shape}; expected {len(filenames)} whole numbers.")
    return labels.astype(np.int64)


def _shards(
    x: NDArray[np.float32],
    filenames: NDArray[np.str_],
    groups: Groups | None,
    folder: Path,
    config: TripletConfig,
    workers: int,
) -> None:
    """Write the shards of `folder` that are not there."""
    pending = [(start, file) for start, file in _files(folder, config) if not file.exists()]
    done = config.triplets - sum(min(config.shard, config.triplets - start) for start, _ in pending)
    description = f"{config.split}_{config.sampling}"
    with tqdm(total=config.triplets, initial=done, desc=description, unit="triplet", unit_scale=True) as bar:
        for start, file in pending:
            rng = np.random.default_rng([config.seed, SPLITS.index(config.split), start])
            count = min(config.shard, config.triplets - start)
            drawn = sample(config.sampling, count, rng, len(x), groups, config.draw)
            rows, sims = label(x, drawn, workers)
            triplet_files.write_shard(file, filenames[rows], sims, rows)
            bar.update(count)


def _files(folder: Path, config: TripletConfig) -> Iterator[tuple[int, Path]]:
    for start in range(0, config.triplets, config.shard):
        yield start, folder / f"{start:010d}.npz"


def _report(path: Path, labels: NDArray[np.int64] | None, groups: Groups | None) -> dict[str, Any]:
    """Ties, entropy, agreement of a complete set, from one pass over it."""
    summary = Summary()
    for chunk in tqdm(triplet_files.read(path, with_names=False), desc=f"report on {path.name}", unit="chunk"):
        summary.add(chunk, None if labels is None else labels[chunk.indices])
    return summary.report() | {"groups": groups and len(groups.size), "skipped_groups": groups and len(groups.skipped)}
