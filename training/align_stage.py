"""The `align` stage: uncertainty distillation from files, and what it gives on concepts that it has not seen."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.files import sha256_of
from contract.triplets import Kernel
from training import evaluate
from training.align import AlignConfig, Transform, uncertainty_distillation
from training.stage import claim, read_features, write_json
from training.things import read_concepts, read_held_out
from training.vice import read_embeddings

KERNEL: dict[str, Kernel] = {"untransformed": "cosine", "aligned": "dot"}
"""Similarity of each space: the transform is fitted to dot products; raw features are compared by cosine."""

DRAWS, REPETITIONS = 10, 200
"""Random photos of each held-out concept, and bootstrap samples behind an interval."""


def align(
    features_file: Path,
    concepts_file: Path,
    vice_file: Path,
    out: Path,
    config: AlignConfig,
    *,
    hold_out: Path | None = None,
    samples: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Learn a transform of one set of features, and write a folder; what is complete is not done again.

    identity.json   config, seed, sha256 of every input, versions
    transform.npz   in the layout that gLocal published (and `power`, see `Transform`)
    summary.json    written last: counts and, with held-out concepts, agreement with VICE's most likely odd one out

    Args:
        features_file: .npy, float32 [n, p], a row a photo.
        concepts_file: concept number of each row; see `training.things.read_concepts`.
        vice_file: mean embedding .npy, or posterior .npz; see `training.vice.read_embeddings`.
        out: folder to make or to continue.
        config: constants.
        hold_out: concept numbers whose photos are used for nothing but the figures.
        samples: R, posterior samples behind the target probabilities.
        seed: of everything drawn.

    Returns:
        what summary.json holds.

    Raises:
        ValueError: bad files (the row is named), files that do not fit together, or `out` belongs to another fit.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    features, digest = read_features(features_file)
    vice = read_embeddings(vice_file, samples, seed=seed)
    n_concepts = vice.shape[-2]
    concept = read_concepts(concepts_file, n_concepts)
    if len(concept) != len(features):
        raise ValueError(f"{concepts_file} has {len(concept)} rows, {features_file} {len(features)}; expected as many.")
    hidden = np.empty(0, np.int64) if hold_out is None else read_held_out(hold_out, n_concepts)
    files = {"concepts": concepts_file, "vice": vice_file} | ({} if hold_out is None else {"hold_out": hold_out})
    out.mkdir(parents=True, exist_ok=True)
    inputs = {"features": digest} | {name: sha256_of(file) for name, file in files.items()}
    drawn = len(vice) if vice.ndim == 3 else None
    identity = {"config": asdict(config), "seed": seed, "samples": drawn, "inputs": inputs}
    claim(out / "identity.json", identity, ("numpy", "torch"))
    with_photos = np.unique(concept[concept >= 0])
    train = np.setdiff1d(with_photos, hidden)
    if not (out / "transform.npz").exists():
        learned = uncertainty_distillation(features, concept, train, hidden, vice, config, seed=seed)
        learned.save(out / "transform.npz")
    transform = Transform.load(out / "transform.npz")
    seen = np.intersect1d(with_photos, hidden)
    summary = identity | {
        "photos": len(features),
        "photos_with_concept": int((concept >= 0).sum()),
        "photos_held_out": int(np.isin(concept, hidden).sum()),
        "concepts": len(train),
        "concepts_held_out": len(seen),
        "width": [features.shape[1], transform.weights.shape[1]],
        "agreement": _agreement(features, transform, concept, seen, vice, seed) if len(seen) >= 3 else None,
    }
    write_json(out / "summary.json", summary)
    return summary


def _agreement(
    features: NDArray[np.float32],
    transform: Transform,
    concept: NDArray[np.int64],
    held_out: NDArray[np.int64],
    vice: NDArray[np.floating[Any]],
    seed: int,
) -> dict[str, Any]:
    """On held-out concepts, of both spaces: fraction of triplets with VICE's most likely odd one out."""
    mean = (vice if vice.ndim == 2 else vice.mean(0))[held_out].astype(np.float64)
    own = np.flatnonzero(np.isin(concept, held_out))
    rows_of = [np.flatnonzero(concept[own] == c) for c in held_out]
    spaces = {"untransformed": features[own], "aligned": transform.apply(features[own])}
    judged = {
        name: evaluate.judge_split(vectors, rows_of, mean, KERNEL[name], draws=DRAWS, seed=seed)
        for name, vectors in spaces.items()
    }
    return {
        name: asdict(evaluate.estimate([split], evaluate.agreement, repetitions=REPETITIONS, seed=seed))
        for name, split in judged.items()
    }
