"""Triplets: pair order, similarities, choice probabilities, the odd one out, ties, accuracy.

A triplet holds three images 0, 1, 2. Its three pairs always stand in the order 01, 02, 12
(`PAIRS`). Whoever judges a triplet picks the most similar pair; the image left over is the
odd one out, so pair `k` being the most similar makes image `2 - k` the odd one
(Hebart et al. 2020; Muttenthaler et al. 2025, section "Odd-one-out").

Every function takes numpy arrays or torch tensors and returns the same kind; on tensors the
maths is differentiable. Torch is never imported here: a tensor can only arrive if the caller
has loaded torch already. Axes: `...` any leading axes, `3` the images or pairs of a triplet,
`d` the embedding.
"""

import math
import sys
from typing import Any, Literal, TypeVar, get_args

import numpy as np

PAIRS: tuple[tuple[int, int], ...] = ((0, 1), (0, 2), (1, 2))
"""Image positions of the three pairs, in the one order used everywhere."""

TIE = -1
"""What `odd_one_out` answers where the tie rule names no winner."""

Kernel = Literal["dot", "cosine", "pearson"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

TieRule = Literal["strict", "argmax", "all-equal", "rounded"]
TIE_RULES: tuple[TieRule, ...] = get_args(TieRule)

# A numpy array or a torch tensor: what goes in comes out.
A = TypeVar("A")


def _namespace(array: Any) -> Any:
    """The array library of `array`: torch if it is a tensor, numpy otherwise."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return torch
    return np


def _require_three(array: Any, what: str) -> None:
    if array.shape[-1:] != (3,):
        raise ValueError(f"{what} has shape {tuple(array.shape)}; expected [..., 3], one value per pair or image.")


def _to_kernel(vectors: Any, kernel: str) -> Any:
    """Rewrite vectors [..., d] so that their plain dot product is the kernel's similarity.

    A zero vector (for pearson: a constant one) has no direction; its cosine and its correlation
    with anything are defined as 0 here, never NaN.
    """
    if kernel == "dot":
        return vectors
    if kernel not in KERNELS:
        raise ValueError(f"similarity kernel is {kernel!r}; expected one of {', '.join(KERNELS)}.")
    xp = _namespace(vectors)
    smallest = 0.0
    if kernel == "pearson":
        # Centring a constant vector leaves rounding noise, not zeros: anything below it counts as constant.
        noise = xp.finfo(vectors.dtype).eps * vectors.shape[-1]
        smallest = noise * noise * (vectors * vectors).sum(-1)
        vectors = vectors - vectors.mean(-1)[..., None]
    squared = (vectors * vectors).sum(-1)
    has_direction = squared > smallest
    # where() inside and out keeps the gradient finite at zero (0 * inf would be NaN).
    norm = xp.sqrt(xp.where(has_direction, squared, xp.ones_like(squared)))
    scale = xp.where(has_direction, 1.0 / norm, xp.zeros_like(norm))
    return vectors * scale[..., None]


def pair_similarities(vectors: A, kernel: Kernel = "dot") -> A:
    """Similarities of the pairs 01, 02, 12.

    Args:
        vectors: [..., 3, d], the three embeddings of each triplet.
        kernel: `dot`, `cosine`, or `pearson` (correlation over the d values).

    Returns:
        [..., 3], in the order of `PAIRS`. Each value depends on its own two vectors only, so it
        is the same, bit for bit, whatever else is in the array.

    Raises:
        ValueError: an unknown kernel, or not three vectors.
    """
    x: Any = vectors
    if x.ndim < 2 or x.shape[-2] != 3:
        raise ValueError(f"vectors have shape {tuple(x.shape)}; expected [..., 3, d].")
    # One memory order, so that sums run in one order.
    x = np.ascontiguousarray(x) if _namespace(x) is np else x.contiguous()
    x = _to_kernel(x, kernel)
    sims = [(x[..., i, :] * x[..., j, :]).sum(-1) for i, j in PAIRS]
    out: A = _namespace(x).stack(sims, -1)
    return out


def similarities_at(matrix: A, index: A) -> A:
    """Similarities of the pairs 01, 02, 12 of triplets [t, 3], read from a similarity matrix [n, n]: [t, 3].

    Args:
        matrix: [n, n] similarities between n images.
        index: [t, 3] whole numbers below n, of the same kind of array as `matrix`.
    """
    m: Any = matrix
    i: Any = index
    out: A = _namespace(m).stack([m[i[:, a], i[:, b]] for a, b in PAIRS], -1)
    return out


def similarity_matrix(queries: A, candidates: A, kernel: Kernel = "dot") -> A:
    """Similarity of every query with every candidate: [n, d] and [m, d] to [n, m].

    Raises:
        ValueError: an unknown kernel, or vectors of different sizes.
    """
    q: Any = queries
    c: Any = candidates
    if q.ndim != 2 or c.ndim != 2 or q.shape[-1] != c.shape[-1]:
        raise ValueError(f"queries {tuple(q.shape)} and candidates {tuple(c.shape)}; expected [n, d] and [m, d].")
    out: A = _to_kernel(q, kernel) @ _to_kernel(c, kernel).T
    return out


def pair_log_probabilities(similarities: A, temperature: float = 1.0) -> A:
    """Log-probability, in nats, that each pair is chosen as the most similar: log softmax(s / T).

    The temperature divides. The largest similarity is subtracted first, so dot products of any
    finite size neither overflow nor lose the loser's log-probability.

    Args:
        similarities: [..., 3] in the order of `PAIRS`.
        temperature: T > 0, in the units of the similarity.

    Raises:
        ValueError: a temperature that is not a finite number above 0, or a wrong shape.
    """
    s: Any = similarities
    _require_three(s, "similarities")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; expected a finite number above 0.")
    xp = _namespace(s)
    z = (s - xp.amax(s, -1)[..., None]) / temperature
    out: A = z - xp.log(xp.exp(z).sum(-1))[..., None]
    return out


def pair_probabilities(similarities: A, temperature: float = 1.0) -> A:
    """Probability that each pair is chosen as the most similar, [..., 3] in the order of `PAIRS`."""
    log_p: Any = pair_log_probabilities(similarities, temperature)
    out: A = _namespace(log_p).exp(log_p)
    return out


def odd_probabilities(similarities: A, temperature: float = 1.0) -> A:
    """Probability that each IMAGE 0, 1, 2 is the odd one out, [..., 3].

    The same numbers as `pair_probabilities`, reversed: pair 01 leaves image 2, pair 12 image 0.
    """
    p: Any = pair_probabilities(similarities, temperature)
    out: A = p[..., [2, 1, 0]]
    return out


def odd_one_out(similarities: A, tie_rule: TieRule = "strict") -> A:
    """Position (0, 1, 2) of the odd one out, or `TIE`.

    THE tie rule of this product is `strict`: the winning pair must be strictly larger than both
    others, compared exactly, without rounding; otherwise there is no odd one, and for accuracy
    the triplet counts as wrong. A constant embedding therefore scores 0, not 33 or 100 %.

    The other rules exist to compare with published numbers, which mean nothing without theirs:
    `argmax` lets the first of equal pairs win; `all-equal` (SPoSE; human_alignment's zero-shot
    evaluator) refuses only three equal similarities; `rounded` (VICE, gLocal) also refuses when
    ANY two choice probabilities (T = 1) are equal, or all three agree to two decimals.

    Args:
        similarities: [..., 3] in the order of `PAIRS`.

    Returns:
        integer array [...].
    """
    s: Any = similarities
    _require_three(s, "similarities")
    xp = _namespace(s)
    winner = xp.argmax(s, -1)
    a, b, c = s[..., 0], s[..., 1], s[..., 2]
    largest = xp.amax(s, -1)
    if tie_rule == "strict":
        tied = (s == largest[..., None]).sum(-1) != 1  # NaN equals nothing: no winner
    elif tie_rule == "argmax":
        tied = winner != winner
    elif tie_rule == "all-equal":
        tied = (a == b) & (b == c)
    elif tie_rule == "rounded":
        p = pair_probabilities(s)
        pa, pb, pc = p[..., 0], p[..., 1], p[..., 2]
        cents = xp.round(p * 100)
        all_agree = (cents[..., 0] == cents[..., 1]) & (cents[..., 1] == cents[..., 2])
        tied = (pa == pb) | (pb == pc) | (pa == pc) | all_agree
    else:
        raise ValueError(f"tie rule is {tie_rule!r}; expected one of {', '.join(TIE_RULES)}.")
    out: A = xp.where(tied, xp.full_like(winner, TIE), 2 - winner)
    return out


def entropy(probabilities: A) -> A:
    """Shannon entropy in nats of [..., 3] probabilities, with 0 log 0 = 0. At most ln 3 = 1.0986."""
    p: Any = probabilities
    _require_three(p, "probabilities")
    xp = _namespace(p)
    positive = p > 0
    terms = xp.where(positive, -p * xp.log(xp.where(positive, p, xp.ones_like(p))), xp.zeros_like(p))
    out: A = terms.sum(-1)
    return out


def normalized_entropy(probabilities: A) -> A:
    """Entropy divided by ln 3: 0 is certain, 1 is a coin with three equal sides."""
    h: Any = entropy(probabilities)
    out: A = h / math.log(3)
    return out


def margin(probabilities: A) -> A:
    """Largest minus second-largest of [..., 3] probabilities: 0 is a tie, 1 is certain."""
    p: Any = probabilities
    _require_three(p, "probabilities")
    xp = _namespace(p)
    a, b, c = p[..., 0], p[..., 1], p[..., 2]
    high, low = xp.maximum(a, b), xp.minimum(a, b)
    second = xp.maximum(low, xp.minimum(high, c))
    out: A = xp.maximum(high, c) - second
    return out


def accuracy(similarities: Any, odd: Any, tie_rule: TieRule = "strict") -> float:
    """Fraction of triplets whose odd one out is the one that people chose; a tie counts as wrong.

    Args:
        similarities: [n, 3] in the order of `PAIRS`.
        odd: [n] positions 0, 1, 2 that people chose.

    Raises:
        ValueError: no triplets, lengths that differ, or a choice outside 0, 1, 2.
    """
    if len(odd) == 0 or odd.ndim != 1 or tuple(similarities.shape) != (len(odd), 3):
        given = f"similarities {tuple(similarities.shape)} and choices {tuple(odd.shape)}"
        raise ValueError(f"{given}; expected [n, 3] and [n], n > 0.")
    if bool(((odd < 0) | (odd > 2)).any()):
        raise ValueError("odd holds a position outside 0, 1, 2; drop or split ties of the human data first.")
    return float((odd_one_out(similarities, tie_rule) == odd).sum()) / len(odd)


def tie_rate(similarities: Any, tie_rule: TieRule = "strict") -> float:
    """Fraction of [n, 3] triplets for which the tie rule names no odd one out."""
    if len(similarities) == 0:
        raise ValueError("no triplets given; the tie rate of nothing is undefined.")
    if similarities.ndim != 2:
        raise ValueError(f"similarities have shape {tuple(similarities.shape)}; expected [n, 3].")
    return float((odd_one_out(similarities, tie_rule) == TIE).sum()) / len(similarities)
