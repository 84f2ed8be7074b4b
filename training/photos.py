"""The photos of a run: a CSV manifest of files, their dataset, class label and THINGS concept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.images import FileImages, require_present
from training.tables import read_rows, to_int

NO_CONCEPT = -1


@dataclass(frozen=True)
class Photos:
    """Photos in the order of the manifest; a `training.images.Images`.

    Attributes:
        root: folder that the paths are relative to.
        paths: n relative paths.
        dataset, label: n strings.
        concept: [n] THINGS concept number, `NO_CONCEPT` where the object is none.
    """

    root: Path
    paths: tuple[str, ...]
    dataset: tuple[str, ...]
    label: tuple[str, ...]
    concept: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> tuple[str, ...]:
        """The paths, as `Images` calls them."""
        return self.paths

    @property
    def sizes(self) -> NDArray[np.int64]:
        """See `Images`."""
        return self._files.sizes

    @property
    def labels(self) -> None:
        """None: the labels of several data sets are no one set of classes."""
        return None

    def where(self, row: int) -> str:
        """See `Images`."""
        return self._files.where(row)

    def read(self, row: int) -> bytes:
        """See `Images`."""
        return self._files.read(row)

    @property
    def _files(self) -> FileImages:
        return FileImages(self.root, self.paths)

    @property
    def concepts(self) -> NDArray[np.int64]:
        """The concept numbers that have at least one photo, ascending."""
        return np.unique(self.concept[self.concept != NO_CONCEPT])

    def of_dataset(self, name: str) -> tuple[NDArray[np.bool_], list[str]]:
        """(which photos are of one dataset [n], the labels of those)."""
        inside = np.array([dataset == name for dataset in self.dataset])
        return inside, [label for label, own in zip(self.label, inside, strict=True) if own]

    def of_concept(self, concept: int) -> NDArray[np.int64]:
        """Row numbers of one concept's photos."""
        return np.flatnonzero(self.concept == concept)


def read_photos(manifest: Path, n_concepts: int) -> Photos:
    """Read `path,dataset,label,things_index` (other columns are ignored); paths are relative to the file.

    Raises:
        ValueError: a column is missing, a concept lies outside 0..n-1, or files do not exist (all are counted,
            the first is named).
    """
    rows = read_rows(manifest, ("path", "dataset", "label", "things_index"))
    if not rows:
        raise ValueError(f"{manifest} lists no photo.")
    cells = [to_int(manifest, i, row, "things_index", empty=NO_CONCEPT) for i, row in enumerate(rows)]
    concept = np.array(cells, np.int64)
    outside = (concept < NO_CONCEPT) | (concept >= n_concepts)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"{manifest}, row {row}: things_index {concept[row]}; expected 0 to {n_concepts - 1} or empty. "
            f"{int(outside.sum())} of {len(outside)} rows are outside."
        )
    photos = Photos(
        root=manifest.parent,
        paths=tuple(row["path"] for row in rows),
        dataset=tuple(row["dataset"] for row in rows),
        label=tuple(row["label"] for row in rows),
        concept=concept,
    )
    require_present(photos, str(manifest))
    return photos
