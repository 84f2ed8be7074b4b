"""The `vice-probabilities` stage: how likely people are to choose each pair of a triplet, by a fitted posterior."""

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from contract import triplets
from contract.files import sha256_of
from training.stage import claim, write_array, write_json
from training.vice import mean_probabilities, read_embeddings
from training.vice_data import Odd, misread, read_triplets

Order = Literal["pairs", "odd-one-out"]
"""Columns of the probabilities of a triplet (0, 1, 2): that the pairs 01, 02, 12 are the most similar, or that the
images 0, 1, 2 are the odd one out. The same three numbers, back to front."""


def vice_probabilities(
    triplets_file: Path,
    vice_file: Path,
    out: Path,
    *,
    samples: int = 50,
    seed: int = 0,
    order: Order = "pairs",
    odd: Odd | None = None,
    zero_absent: bool = False,
) -> dict[str, Any]:
    """Probabilities of every row of triplets, by the columns of the file; what is complete is not done again.

    identity.json       samples, seed, order, sha256 of both inputs, versions
    probabilities.npy   float32 [n, 3]; rows and image positions are those of the file, whatever `odd` says
    summary.json        written last: counts, mean entropy and, with `odd`, how well the file's choices are foretold

    Args:
        triplets_file: N x 3 object numbers, .npy or text.
        vice_file: posterior .npz, or a mean embedding .npy; see `training.vice.read_embeddings`.
        out: folder to make or to continue.
        samples: R, of the posterior. The mean over samples of softmax probabilities is written.
        seed: of the samples.
        order: of the columns.
        odd: which column of the file is the odd one that people chose, if any.
        zero_absent: that object 0 is in no row is known; see `training.vice_data.read_triplets`.

    Returns:
        what summary.json holds.

    Raises:
        ValueError: bad files (the row is named), or `out` belongs to other probabilities.
    """
    vice = read_embeddings(vice_file, samples, seed=seed)
    # "last" leaves the columns as they are
    rows = read_triplets(triplets_file, vice.shape[-2], odd="last", zero_absent=zero_absent)
    embeddings = vice if vice.ndim == 3 else vice[None]
    if odd is not None:
        choices = rows if odd == "last" else rows[:, [1, 2, 0]]
        if said := misread(choices, embeddings.mean(0), odd=odd):
            warnings.warn(f"{triplets_file}: {said}. The probabilities do not depend on it.", stacklevel=2)
    inputs = {"triplets": sha256_of(triplets_file), "vice": sha256_of(vice_file)}
    identity = {"samples": len(embeddings), "seed": seed, "order": order, "odd": odd, "inputs": inputs}
    out.mkdir(parents=True, exist_ok=True)
    claim(out / "identity.json", identity, ("numpy", "torch"))
    if not (out / "summary.json").exists() or not (out / "probabilities.npy").exists():
        draws = tqdm(torch.from_numpy(embeddings), desc=f"{len(rows)} triplets", unit="sample")
        p = mean_probabilities(draws, rows)
        write_array(out / "probabilities.npy", (p if order == "pairs" else p[:, ::-1]).astype(np.float32))
        summary: dict[str, Any] = identity | {"triplets": len(rows), "mean_entropy": float(triplets.entropy(p).mean())}
        if odd is not None:
            chosen = 2 if odd == "last" else 0  # the pair that is left when image k is the odd one is 2 - k
            log_p, answers = np.log(np.maximum(p, np.finfo(np.float64).tiny)), np.full(len(p), chosen)
            rules: tuple[triplets.TieRule, ...] = ("argmax", "rounded")
            summary["accuracy"] = {rule: triplets.accuracy(log_p, answers, rule) for rule in rules}
            summary["negative_log_likelihood"] = float(-log_p[:, 2 - chosen].mean())
        write_json(out / "summary.json", summary)
    written: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return written
