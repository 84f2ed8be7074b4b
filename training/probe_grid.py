"""A grid of linear transforms: every penalty with every learning rate on every fold, the best one kept."""

import json
import math
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from contract.files import whole
from training.align import Transform
from training.folds import Fold, object_folds
from training.probing import TIE_RULE, ProbeConfig, ProbeData, fit_probe
from training.stage import claim


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is tried: every penalty with every learning rate, on every fold. They replace those of the config."""

    penalties: tuple[float, ...]
    learning_rates: tuple[float, ...]
    folds: int = 3

    def __post_init__(self) -> None:
        for name, values in (("penalties", self.penalties), ("learning_rates", self.learning_rates)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} are {values}; expected one or more, each once.")


@dataclass(frozen=True)
class Probed:
    """The result of a grid.

    Attributes:
        transform: best step of the best fold of the best cell.
        summary: the cell and fold chosen, with means over the cell's folds. A figure of the best fold alone
            flatters: the fold may be the easiest.
        results: a line for each fit, in order.
    """

    transform: Transform
    summary: dict[str, Any]
    results: list[dict[str, Any]]


def probe(
    data: ProbeData,
    config: ProbeConfig,
    grid: Grid,
    out: Path,
    *,
    seed: int,
    device: str = "cpu",
    every_fold: bool = False,
) -> Probed:
    """Fit every cell of the grid on every fold, keep the best, and write a folder; killed, the same call goes on.

    identity.json      config, grid, seed, sha256 of the data, versions
    results.jsonl      a line for every fit done: cell, fold, counts of triplets, figures, or the error that ended it
    cell-C-fold-F.npz  transforms that may still win; those that cannot are removed
    transform.npz      the winner, in the layout that gLocal published
    summary.json       written last

    The best cell has the lowest validation cross-entropy, mean over folds; its best fold the lowest again. A cell
    of which a fit diverged cannot win, and does not end the grid.

    Args:
        data: features and judgments.
        config: constants; its penalty and learning rate are replaced by the grid's.
        grid: what to try.
        out: folder to make or to continue.
        seed: of the folds and of every fit.
        device: where torch computes.
        every_fold: keep the transforms of all folds of the best cell; `fold_transform` reads them.

    Raises:
        ValueError: bad data, or `out` belongs to another grid.
        FloatingPointError: no cell could be fitted on all folds; the message names the step of the first failure.
    """
    data.check(config)
    cells = [
        replace(config, penalty=penalty, learning_rate=rate)
        for penalty, rate in product(grid.penalties, grid.learning_rates)
    ]
    folds = object_folds(data.rows, len(data.features), grid.folds, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    identity = {"config": asdict(config), "grid": asdict(grid), "seed": seed, "device": torch.device(device).type}
    claim(out / "identity.json", identity | {"inputs": data.sha256()}, ("numpy", "torch"))
    results = _read_results(out / "results.jsonl")
    fits = list(product(enumerate(cells), folds))
    with tqdm(total=len(fits), initial=len(results), desc=f"probe {config.objective}", unit="fit") as bar:
        for (cell, constants), fold in fits[len(results) :]:
            file = _file(out, cell, fold.number)
            results.append(_describe(cell, constants, fold, seed))
            try:
                name = f"cell {cell} of {len(cells)}, fold {fold.number} of {len(folds)}"
                fitted = fit_probe(data, fold, constants, seed=seed, device=device, description=name)
            except FloatingPointError as error:
                results[-1]["error"] = str(error)
            else:
                fitted.transform.save(file)
                results[-1] |= fitted.figures
            with whole(out / "results.jsonl") as stream:
                stream.writelines(f"{json.dumps(line, allow_nan=False)}\n".encode() for line in results)
            _tidy(out, results, grid.folds, every_fold)
            bar.update()
    _tidy(out, results, grid.folds, every_fold)
    best = _best(results, grid.folds)
    if best is None:
        first = next(line["error"] for line in results if "error" in line)
        raise FloatingPointError(f"no cell of the grid could be fitted on all folds; the first: {first}")
    transform = Transform.load(_file(out, best["cell"], best["fold"]))
    transform.save(out / "transform.npz")
    summary = _summary(best, results)
    with whole(out / "summary.json") as stream:
        stream.write((json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    return Probed(transform, summary, results)


def fold_transform(out: Path, probed: Probed, fold: int) -> Transform:
    """The transform of one fold of the best cell, of a grid that kept every fold."""
    return Transform.load(_file(out, probed.summary["cell"], fold))


def _describe(cell: int, config: ProbeConfig, fold: Fold, seed: int) -> dict[str, Any]:
    return {
        "cell": cell,
        "fold": fold.number,
        "objective": config.objective,
        "penalty": config.penalty,
        "learning_rate": config.learning_rate,
        "seed": seed,
        "objects_validated": len(fold.objects),
        "triplets_train": len(fold.train),
        "triplets_validation": len(fold.validation),
        "triplets_discarded": fold.discarded,
        "tie_rule": TIE_RULE,
    }


def _file(out: Path, cell: int, fold: int) -> Path:
    return out / f"cell-{cell}-fold-{fold}.npz"


def _read_results(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _complete(results: list[dict[str, Any]], folds: int) -> list[list[dict[str, Any]]]:
    """The lines of each cell that has all its folds."""
    cells = [results[start : start + folds] for start in range(0, len(results), folds)]
    return [lines for lines in cells if len(lines) == folds]


def _best(results: list[dict[str, Any]], folds: int) -> dict[str, Any] | None:
    """The line of the best fold of the best complete cell; the earlier of equals."""
    sound = [lines for lines in _complete(results, folds) if not any("error" in line for line in lines)]
    if not sound:
        return None
    cell = min(sound, key=lambda lines: _mean(lines, "cross_entropy"))
    return min(cell, key=lambda line: line["cross_entropy"])


def _tidy(out: Path, results: list[dict[str, Any]], folds: int, every_fold: bool) -> None:
    """Remove the transforms of complete cells, but the best one, or those of the best cell."""
    best = _best(results, folds)
    for lines in _complete(results, folds):
        for line in lines:
            if line is not best and not (every_fold and best is not None and line["cell"] == best["cell"]):
                _file(out, line["cell"], line["fold"]).unlink(missing_ok=True)


def _mean(lines: list[dict[str, Any]], name: str) -> float:
    return math.fsum(line[name] for line in lines) / len(lines)


def _summary(best: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    lines = [line for line in results if line["cell"] == best["cell"]]
    names = ("cross_entropy", "accuracy", "untransformed_accuracy", *(("divergence",) if "divergence" in best else ()))
    chosen = {name: best[name] for name in ("objective", "cell", "penalty", "learning_rate", "fold", "best_step")}
    means = {f"{name}_mean_of_folds": _mean(lines, name) for name in names}
    failed = sum("error" in line for line in results)
    return chosen | means | {"fits": len(results), "fits_failed": failed, "tie_rule": TIE_RULE, "seed": best["seed"]}
