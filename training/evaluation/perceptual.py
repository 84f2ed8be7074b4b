"""What perceptual alignment is to help: two-alternative judgments, instance retrieval, counting (Sundaram et al. 2024).

DATA/two-alternative/NAME/    NIGHTS, BAPPS or THINGS as published; or generated.json, the fields of GeneratorConfig,
                              beside images/
DATA/instances/NAME/          queries/ITEM/... and gallery/ITEM/..., as consumer-to-shop of DeepFashion2
DATA/counting/NAME/           counts.csv (`image,count,split`, split train or test) and images/

Two-alternative accuracy: distance 1 - cosine, the rule of each data set; the split `test`, or `val` where there is no
other. A set, or a kind of it, in which people tie in every trial judges no model and is left out.
Retrieval: share of queries with a photo of their item among the first 1, 3 and 5 of the gallery by cosine; ties count
against the model. Counting: the mean count of the k nearest training images by cosine, k of 1, 3, 5 and 10 with the
most exact counts on the training images, each predicted from the others (rounded; the least error, then the least k,
of equals); the paper does not say how neighbours are put together.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import triplets
from training.evaluation import intervals
from training.evaluation.result import NotHere, Plot, Result, Row, Setting
from training.evaluation.subjects import Vectors
from training.evaluation.transfer import hit_rows
from training.images import FileImages, open_images, read_folder, require_present
from training.perceptual.bapps import read_bapps
from training.perceptual.figures import accuracy, judgment_scores
from training.perceptual.generated import GeneratorConfig, generate
from training.perceptual.nights import read_nights
from training.perceptual.things import read_things
from training.perceptual.trials import Trials
from training.tables import read_rows, to_int

AT = (1, 3, 5)
NEIGHBOURS = (1, 3, 5, 10)


def two_alternative(setting: Setting) -> Result:
    """Accuracy of every data set, of all its trials and by kind."""
    out, c = Result(), setting.constants
    for folder in _folders(setting, "two-alternative"):
        trials = reported(read_judgments(folder, c.seed))
        tied = sorted(set(trials.kind.tolist()) - set(trials.kind[trials.votes != 0.5].tolist()))
        if tied:
            out.notes.append(f"{folder.name}: people tie in all trials of {', '.join(tied)}, which is left out.")
        if not (trials.votes != 0.5).any():
            continue
        scores = {name: judgment_scores(trials, x) for name, x in setting.vectors(trials.images).items()}
        scores |= {f"{a} - {b}": scores[a] - scores[b] for a, b in setting.pairs}
        _, first = np.unique(trials.judgment, return_index=True)
        kind, unit = trials.kind[first], trials.unit[first]
        groups = {"all": np.ones(len(first), bool)}
        if len(names := np.unique(kind)) > 1:
            groups |= {str(name): kind == name for name in names if name not in tied}
        out.rows += [
            Row(
                "two-alternative accuracy",
                model,
                accuracy(score[inside], unit[inside], repetitions=c.repetitions, seed=c.seed),
                folder.name,
                how,
            )
            for model, score in scores.items()
            for how, inside in groups.items()
        ]
        out.notes.append(f"{folder.name}: {len(trials)} trials; {trials.rule}.")
    if not out.rows:
        raise NotHere(f"people tie in all two-alternative trials of {setting.data}, which judge no model")
    out.plots.append(Plot("bars", "Two-alternative accuracy", {"figure": "two-alternative accuracy", "setting": "all"}))
    return out


def read_judgments(folder: Path, seed: int) -> Trials:
    """The trials of a folder, whichever layout it has. Raises ValueError where it has none."""
    if (folder / "data.csv").is_file():
        return read_nights(folder)
    if any(folder.glob("things_*set.txt")):
        return read_things(folder, seed=seed)
    if any(folder.glob("*/*/judge")):
        return read_bapps(folder)
    if not (file := folder / "generated.json").is_file():
        raise ValueError(f"{folder} is not laid out as NIGHTS, BAPPS or THINGS, and has no generated.json.")
    given, known = json.loads(file.read_text()), {field.name for field in fields(GeneratorConfig)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{file} has {unknown}; expected some of {', '.join(sorted(known))}.")
    fields_given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return generate(open_images(str(folder / "images")), str(folder), GeneratorConfig(**fields_given))


def reported(trials: Trials) -> Trials:
    """The split that is reported."""
    return trials.of_split("test" if (trials.split == "test").any() else "val")


def instances(setting: Setting) -> Result:
    """Whether a photo of a query's item is among the first 1, 3 and 5 of the gallery."""
    out = Result()
    for folder in _folders(setting, "instances"):
        queries, gallery = (read_folder(folder / part) for part in ("queries", "gallery"))
        if queries.labels is None or gallery.labels is None:
            raise ValueError(f"{folder}: expected a folder for each item under queries/ and gallery/.")
        asked, items = np.array(queries.labels), np.array(gallery.labels)
        if missing := sorted(set(asked.tolist()) - set(items.tolist())):
            raise ValueError(f"{folder}: {len(missing)} items of queries/ are not in gallery/, the first {missing[0]}.")
        both = {name: (x, setting.vectors(gallery)[name]) for name, x in setting.vectors(queries).items()}
        scores = {name: top_hits(x, y, asked, items) for name, (x, y) in both.items()}
        out.rows += hit_rows(scores, setting, "instance retrieval", folder.name)
        out.notes.append(f"{folder.name}: {len(asked)} queries, {len(items)} photos in the gallery.")
    out.plots.append(Plot("bars", "Instance retrieval", {"figure": "instance retrieval"}))
    return out


def top_hits(
    queries: Vectors, gallery: Vectors, asked: NDArray[Any], items: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    """Whether one of the right item is among the first k, [queries] for each k; ties count against the model."""
    sims = triplets.similarity_matrix(queries, gallery, "cosine")
    right = asked[:, None] == items[None]
    best = np.where(right, sims, -np.inf).max(1, keepdims=True)
    worse = ((sims >= best) & ~right).sum(1)
    return {f"top {k}": (worse < k).astype(np.float64) for k in AT}


def counting(setting: Setting) -> Result:
    """Mean absolute and root mean squared error of counts by nearest neighbours, each with the k of its model."""
    out, c = Result(), setting.constants
    for folder in _folders(setting, "counting"):
        images, count, test = read_counts(folder)
        errors: dict[str, NDArray[np.float64]] = {}
        chosen = {}
        for name, x in setting.vectors(images).items():
            predicted, chosen[name] = count_by_neighbours(x[~test], count[~test], x[test])
            errors[name] = predicted - count[test]
        columns: dict[str, tuple[Any, Any]] = {name: (e, None) for name, e in errors.items()}
        columns |= {f"{a} - {b}": (errors[a], errors[b]) for a, b in setting.pairs}
        for model, (mine, other) in columns.items():
            for figure, statistic in (("MAE of counts", _mae), ("RMSE of counts", _rmse)):

                def difference(
                    rows: NDArray[np.int64], mine: Any = mine, other: Any = other, statistic: Any = statistic
                ) -> float:
                    return float(statistic(mine[rows]) - (0.0 if other is None else statistic(other[rows])))

                estimate = intervals.over_items(int(test.sum()), difference, c.repetitions, c.seed)
                out.rows.append(Row(figure, model, estimate, folder.name, "nearest neighbours", "objects"))
        k = ", ".join(f"{name} {k}" for name, k in chosen.items())
        out.notes.append(f"{folder.name}: {int((~test).sum())} images to learn from, {int(test.sum())} tested; k: {k}.")
    out.plots.append(Plot("bars", "Counting", {"figure": "MAE of counts"}))
    return out


def read_counts(folder: Path) -> tuple[FileImages, NDArray[np.float64], NDArray[np.bool_]]:
    """(images, count of each, which are tested) of counts.csv.

    Raises:
        ValueError: a count or split that is none (the row is named), a split without images, or images that do not
            exist.
    """
    file = folder / "counts.csv"
    rows = read_rows(file, ("image", "count", "split"))
    for i, row in enumerate(rows):
        if row["split"] not in ("train", "test"):
            raise ValueError(f"{file}, row {i}: split is {row['split']!r}; expected train or test.")
    images = FileImages(folder / "images", tuple(row["image"] for row in rows))
    require_present(images, str(folder / "images"))
    count = np.array([to_int(file, i, row, "count") for i, row in enumerate(rows)], np.float64)
    test = np.array([row["split"] == "test" for row in rows])
    if test.all() or not test.any() or (~test).sum() < 2:
        raise ValueError(f"{file}: {int((~test).sum())} images to learn from, {int(test.sum())} tested; expected both.")
    return images, count, test


def count_by_neighbours(train: Vectors, count: NDArray[np.float64], test: Vectors) -> tuple[NDArray[np.float64], int]:
    """(predicted counts of the test images, k), as the module docstring says."""
    own = triplets.similarity_matrix(train, train, "cosine")
    np.fill_diagonal(own, -np.inf)
    ranks = {k: _mean_count(own, count, k) for k in NEIGHBOURS if k < len(train)}

    def goodness(k: int) -> tuple[float, float, int]:
        error = np.abs(ranks[k] - count)
        return float((np.floor(ranks[k] + 0.5) == count).mean()), -float(error.mean()), -k

    best = max(ranks, key=goodness)
    return _mean_count(triplets.similarity_matrix(test, train, "cosine"), count, best), best


def _mean_count(sims: NDArray[Any], count: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    nearest = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    out: NDArray[np.float64] = count[nearest].mean(1)
    return out


def _mae(error: NDArray[np.float64]) -> float:
    return float(np.abs(error).mean())


def _rmse(error: NDArray[np.float64]) -> float:
    return float(np.sqrt((error**2).mean()))


def _folders(setting: Setting, name: str) -> list[Path]:
    found = sorted(path for path in (setting.data / name).glob("*") if path.is_dir())
    if not found:
        raise NotHere(f"{setting.data} has no {name}/")
    return found
