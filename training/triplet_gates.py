"""The gates that labelled triplets must pass before anything trains on them.

Published files were reported to be out of step with their images (AligNet issues 9 and 10), so `load` checks:

- s01 is the largest of every row (the published promise, s12 < s01 and s12 < s02, does not say so);
- on a class border exactly two images are of one class, and in most rows these are images 0 and 1: the paper's
  teacher picks them in 90 to 93 %; about one third says that names and similarities do not belong together;
- similarities computed again from any sensible features rank about 1,000 rows alike, pair position by pair
  position (s01 is the largest in any file, so ranking all three together would flatter a shuffled one).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tqdm import tqdm

from contract.triplets import PAIRS, TIE, entropy, odd_one_out, pair_probabilities
from training.triplet_files import Chunk, Names, read, synsets

CONFIDENT = 0.99
"""A soft label with a probability above this is as good as hard."""


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What `load` insists on.

    Attributes:
        agreement: least share of class-border rows whose images 0 and 1 are of one class.
        correlation: least Spearman correlation with similarities computed again, mean of the three pairs.
        sample: rows of that comparison.
        seed: of those rows.
    """

    agreement: float = 0.7
    correlation: float = 0.2
    sample: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Loaded:
    """A checked set: rows [n, 3] of one's own images, similarities [n, 3], and what the gates measured."""

    rows: NDArray[np.int32]
    similarities: NDArray[np.float32]
    report: dict[str, Any]


@dataclass
class Summary:
    """Running counts over chunks."""

    triplets: int = 0
    ties: int = 0
    confident: int = 0
    together: int = 0
    labelled: int = 0
    entropy: float = 0.0

    def add(self, chunk: Chunk, labels: NDArray[Any] | None) -> None:
        """Count a chunk; `labels` [t, 3] are the groups of its images."""
        p = pair_probabilities(chunk.similarities)
        self.triplets += len(p)
        self.ties += int((odd_one_out(chunk.similarities) == TIE).sum())
        self.confident += int((p.max(1) > CONFIDENT).sum())
        self.entropy += float(entropy(p).sum(dtype=np.float64))
        if labels is not None:
            self.labelled += len(labels)
            self.together += int((labels[:, 0] == labels[:, 1]).sum())

    def report(self) -> dict[str, Any]:
        """Shares and means. The entropy of VICE on random THINGS triplets is 0.79 nats; near 0 is one-hot."""
        n = max(self.triplets, 1)
        return {
            "triplets": self.triplets,
            "ties": self.ties,
            "tie_rule": "strict",
            "entropy": self.entropy / n,
            "confident": self.confident / n,
            "images_0_and_1_of_one_group": self.together / self.labelled if self.labelled else None,
        }


def load(
    path: Path,
    names: Names,
    gates: Gates,
    *,
    features: NDArray[np.floating[Any]] | None = None,
    classes: NDArray[np.integer[Any]] | None = None,
    class_border: bool | None = None,
) -> Loaded:
    """Read a set, resolve its images by name, and refuse it unless it passes the gates.

    Args:
        path: file or folder of shards.
        names: one's own images.
        gates: thresholds.
        features: [images, p] of one's own images by any sensible model; None leaves the correlation out.
        classes: of one's own images; None takes the WordNet number that ImageNet's file names begin with.
        class_border: whether rows are on a class border; None asks the name of the file.

    Raises:
        ValueError: the set is damaged or does not belong to the images; the message says what to suspect.
    """
    border = "class_border" in path.stem if class_border is None else class_border
    if features is not None and len(features) != len(names.names):
        raise ValueError(f"{len(features)} rows of features for {len(names.names)} images of {names.where}.")
    rows, sims, summary = [], [], Summary()
    with tqdm(desc=f"load {path.name}", unit="triplet", unit_scale=True) as bar:
        for chunk in read(path):
            check_order(chunk)
            found = names.rows(chunk)
            labels = None
            if border:
                labels = synsets(chunk.filenames, str(chunk.where), chunk.start) if classes is None else classes[found]
                check_border(labels, chunk)
            summary.add(chunk, labels)
            rows.append(found)
            sims.append(chunk.similarities)
            bar.update(len(found))
    if not rows:
        raise ValueError(f"{path} has no triplets.")
    report = summary.report()
    if border:
        check_agreement(report["images_0_and_1_of_one_group"], gates.agreement, path)
    out = Loaded(np.concatenate(rows), np.concatenate(sims), report)
    report["correlation"] = None if features is None else check_correlation(out, features, gates, path)
    return out


def check_order(chunk: Chunk) -> None:
    """Gate: s01 is the largest similarity of each row. Raises ValueError naming the row."""
    s = chunk.similarities
    fine = (s[:, 0] >= s[:, 1]) & (s[:, 0] >= s[:, 2])  # false for NaN
    if not fine.all():
        at = int((~fine).argmax())
        raise ValueError(
            f"{chunk.where}, row {chunk.start + at}: similarities {s[at].tolist()}; the first, of images 0 and 1, "
            f"must be the largest. {int((~fine).sum())} of {len(s)} rows here break this: is the odd one last?"
        )


def check_border(labels: NDArray[Any], chunk: Chunk) -> None:
    """Gate: exactly two of the three labels [t, 3] are equal in each row. Raises ValueError naming the row."""
    pairs = sum((labels[:, i] == labels[:, j]).astype(int) for i, j in PAIRS)
    if (pairs != 1).any():
        at = int((pairs != 1).argmax())
        raise ValueError(
            f"{chunk.where}, row {chunk.start + at}: images {chunk.filenames[at].tolist()} are of classes "
            f"{labels[at].tolist()}; on a class border exactly two are of one class. "
            f"{int((pairs != 1).sum())} of {len(labels)} rows here break this: names do not belong to these triplets."
        )


def check_agreement(share: float, least: float, path: Path) -> None:
    """Gate: images 0 and 1 are of one class in at least this share of the rows. Raises ValueError."""
    if not share >= least:
        raise ValueError(
            f"{path}: images 0 and 1 are of one class in {share:.1%} of the class-border rows, expected at least "
            f"{least:.0%} and about 90 %. One third is chance: similarities and file names do not belong together, "
            "or rows are not in the order most similar pair, odd one. Do not train on it; make the triplets anew."
        )


def check_correlation(loaded: Loaded, features: NDArray[np.floating[Any]], gates: Gates, path: Path) -> float:
    """Gate: similarities computed again from features rank a sample of rows alike.

    Returns:
        Spearman's correlation within each pair position, mean of the three.

    Raises:
        ValueError: it is below the threshold, or undefined because the similarities do not vary.
    """
    n = len(loaded.rows)
    chosen = np.sort(np.random.default_rng(gates.seed).choice(n, min(gates.sample, n), replace=False))
    x = np.asarray(features[loaded.rows[chosen]], np.float64)
    stored = loaded.similarities[chosen]
    again = np.stack([(x[:, i] * x[:, j]).sum(1) for i, j in PAIRS], 1)
    if len(chosen) < 3 or (np.ptp(stored, axis=0) == 0).any() or (np.ptp(again, axis=0) == 0).any():
        raise ValueError(f"{path}: similarities of {len(chosen)} rows do not vary; their correlation is undefined.")
    each = [float(spearmanr(stored[:, pair], again[:, pair]).statistic) for pair in range(3)]
    mean = float(np.mean(each))
    if not mean >= gates.correlation:
        raise ValueError(
            f"{path}: similarities computed again correlate with those of the file by {mean:.2f} "
            f"({', '.join(f'{value:.2f}' for value in each)} for pairs 01, 02, 12), expected at least "
            f"{gates.correlation}. The images are not those that were labelled, or the rows are shuffled."
        )
    return mean
