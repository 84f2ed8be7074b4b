"""What made an image the odd one: how the answer's log-probability falls when a part of a picture is covered.

Occlusion sensitivity (Zeiler and Fergus 2014, section 4.2), on the pixels that the model gets: a square of one colour
slides over one picture of the triplet while the other two stay whole, each covered picture is embedded, and the drop
of the answer's log-probability is the value of that place. It needs no gradient, so it works with every engine, and
it is slow: 3 x 49 pictures a triplet. Hence a limit of its own, and only few of them are in the queue at once.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.embedder import Embedder
from app.errors import ServiceError
from app.metrics import Metrics
from app.timings import Timings
from contract import triplets
from contract.manifest import Space
from contract.pixels import PixelSpec, shown_box

GRID = 7
"""Places a side. The square has a quarter of the picture's side, and neighbours overlap by half of it."""

CHUNK = 8
"""Covered pictures in the queue at once: a request that comes meanwhile waits for no more than these."""

SHARED = 5
"""Dimensions that are named of a pair, at most."""

METHOD = (
    "Occlusion sensitivity (Zeiler and Fergus 2014): a square of the picture's mean colour covers each place of one "
    "picture while the other two stay whole. A value is ln p(odd_one_out) of the whole pictures minus that with the "
    "place covered: above 0, what is there speaks for the answer; below 0, against it."
)


class Explaining:
    """How many explanations this process makes at once.

    Args:
        most: of them; 0 makes none.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most = most
        self._now = 0
        self._metrics = metrics

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Room for one, until the block ends. Raises ServiceError: 429 there is none now, 400 nor ever."""
        if not self._most:
            raise ServiceError("invalid_request", "explain: this service makes no explanations.")
        if self._now >= self._most:
            self._metrics.rejected.labels("explain").inc()
            detail = f"{self._now} explanations are being made; at most {self._most} at once. Try again."
            raise ServiceError("overloaded", detail, limit=self._most, retry_after=5)
        self._now += 1
        try:
            yield
        finally:
            self._now -= 1


def pictures(triplets_explained: int) -> int:
    """Covered pictures that explanations of so many triplets take."""
    return triplets_explained * 3 * GRID * GRID


async def explain(
    files: list[bytes],
    vectors: NDArray[np.float64],
    odd: int,
    names: tuple[int, int, int],
    space: tuple[str, Space],
    spec: PixelSpec,
    embedder: Embedder,
    timings: Timings,
) -> dict[str, Any]:
    """Explain one judgment.

    Args:
        files: the three encoded images.
        vectors: [3, d] of them.
        odd: position 0, 1, 2 of the answer among them.
        names: their positions in the request.
        space: name and description of the space that it was judged in.
        spec: of the model's pixels.
        embedder: of the model.
        timings: of the request; `until` ends the work.

    Returns:
        the fields of `app.schemas.Explanation`.

    Raises:
        ServiceError, TimeoutError: as `Embedder.embed`.
    """
    name, stated = space
    images = []
    full = log_probability(vectors[None], odd, stated)[0]
    for position, photo in enumerate(await embedder.decode(files, timings)):
        covered = []
        for start in range(0, GRID * GRID, CHUNK):
            places = range(start, min(start + CHUNK, GRID * GRID))
            chunk = [cover(photo.pixels, place) for place in places]
            covered.append((await embedder.embed_altered(chunk, timings))[name])
        changed = np.repeat(vectors[None], GRID * GRID, axis=0)  # [49, 3, d]
        changed[:, position] = np.concatenate(covered)
        drop = full - log_probability(changed, odd, stated)
        images.append(
            {
                "image": names[position],
                "size": list(photo.size),
                "map": drop.reshape(GRID, GRID).tolist(),
                "boxes": boxes(photo.size, spec).tolist(),
            }
        )
    return {
        "odd_one_out": names[odd],
        "log_probability": float(full),
        "grid": [GRID, GRID],
        "images": images,
        "shared": shared_dimensions(vectors, odd, names, stated),
        "method": METHOD,
    }


def log_probability(vectors: NDArray[np.float64], odd: int, space: Space) -> NDArray[np.float64]:
    """[n, 3, d] to [n]: ln of the probability that image `odd` (0, 1, 2) is the odd one, in nats."""
    similarities = triplets.pair_similarities(vectors, space.similarity)
    by_pair: NDArray[np.float64] = triplets.pair_log_probabilities(similarities, space.temperature)
    return by_pair[:, 2 - odd]  # pair k being the most similar leaves image 2 - k


def spans(side: int) -> NDArray[np.int64]:
    """[GRID, 2] first pixel and the one behind the last of each place along a side of so many pixels."""
    length = max(1, round(2 * side / (GRID + 1)))
    first = np.linspace(0, side - length, GRID).round().astype(np.int64)
    return np.stack([first, first + length], axis=1)


def cover(pixels: NDArray[Any], place: int) -> NDArray[Any]:
    """A copy of one picture [3, height, width] with a place, counted row by row, in the picture's mean colour."""
    row, column = divmod(place, GRID)
    (top, bottom), (left, right) = spans(pixels.shape[1])[row], spans(pixels.shape[2])[column]
    colour = pixels.mean(axis=(1, 2), dtype=np.float64)
    out = pixels.copy()
    out[:, top:bottom, left:right] = (colour.round() if out.dtype == np.uint8 else colour)[:, None, None]
    return out


def boxes(size: tuple[int, int], spec: PixelSpec) -> NDArray[np.float64]:
    """[GRID, GRID, 4]: left, top, right, bottom of each place in pixels of the upright photo of (width, height)."""
    left, top, right, bottom = shown_box(size, spec)
    x = left + spans(spec.width) * (right - left) / spec.width
    y = top + spans(spec.height) * (bottom - top) / spec.height
    out = np.empty((GRID, GRID, 4), np.float64)
    out[..., 0::2] = x[None, :]
    out[..., 1::2] = y[:, None]
    return out


def shared_dimensions(
    vectors: NDArray[np.float64], odd: int, names: tuple[int, int, int], space: Space
) -> dict[str, Any] | None:
    """What the most similar pair [3, d] has in common, where the space is of named dimensions and dot products.

    A dimension's share is its product over the pair's dot product; only what adds to it is named.
    """
    if space.similarity != "dot" or not space.dimensions:
        return None
    a, b = triplets.PAIRS[2 - odd]
    products = vectors[a] * vectors[b]
    total = float(products.sum())
    order = np.argsort(-products, kind="stable")[:SHARED]
    found = [
        {"name": space.dimensions[i], "product": float(products[i]), "share": float(products[i] / total)}
        for i in order
        if total > 0 and products[i] > 0
    ]
    return {"pair": [names[a], names[b]], "similarity": total, "dimensions": found}
