"""Structure: levels as the hierarchy says, changes with the sign that was built in, photos in the page."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cosine

from tests.training.tiny import write_rows
from training.evaluation.hierarchies import LEVELS, read_hierarchy
from training.evaluation.maps import maps
from training.evaluation.result import Constants, NotHere, Setting
from training.evaluation.structure import distance, draw_pairs, hierarchy_change, model_agreement
from training.evaluation.subjects import Features, Subject

CLASSES = {"corgi": ("dog", "animal"), "husky": ("dog", "animal"), "tabby": ("cat", "animal"), "oak": ("tree", "plant")}


def world(tmp_path: Path, strength: float, photos: int = 6) -> Setting:
    """Photos of four classes; `after` sees noise as `before` does, and the hierarchy `strength` times besides."""
    rows, noise, seen = [["path", "dataset", "label"]], [], []
    rng = np.random.default_rng(0)
    code = {name: rng.normal(size=40) for pair in CLASSES.values() for name in pair} | {
        c: rng.normal(size=40) for c in CLASSES
    }
    for label, (basic, above) in CLASSES.items():
        for i in range(photos):
            name = f"{label}-{i}.png"
            Image.new("RGB", (300, 200)).save(tmp_path / name)
            rows.append([name, "set", label])
            noise.append(rng.normal(size=40))
            seen.append(code[label] + 2 * code[basic] + 4 * code[above])
    write_rows(tmp_path / "images.csv", rows)
    life = {"animal": "yes", "plant": "no"}  # of this world
    table = [["label", "basic", "superordinate", "living"], *[[c, *p, life[p[1]]] for c, p in CLASSES.items()]]
    write_rows(tmp_path / "hierarchy.csv", table)
    vectors = {"before": np.array(noise), "after": np.array(noise) + strength * np.array(seen)}
    subjects = []
    for name, x in vectors.items():
        np.save(tmp_path / f"{name}.npy", x.astype(np.float32))
        subjects.append(Subject(name, {"x": name}, stored=(tmp_path / f"{name}.npy", None)))
    return Setting(tmp_path, tuple(subjects), Features(tmp_path / "f"), Constants(repetitions=10, triplets=500))


def test_levels_of_pairs_are_those_of_the_table(tmp_path: Path) -> None:
    world(tmp_path, 1.0)
    hierarchy = read_hierarchy(tmp_path)
    i = np.zeros(4, np.int64)  # the first corgi
    assert [LEVELS[k] for k in hierarchy.level(i, np.array([1, 6, 12, 18]))] == list(LEVELS)


def test_distances_are_cosine(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    found = distance(x, np.array([0, 1, 2]), np.array([3, 4, 2]))
    assert found == pytest.approx([cosine(x[0], x[3]), cosine(x[1], x[4]), 0], abs=1e-6)


def test_pairs_are_of_different_photos_and_no_level_has_too_many(tmp_path: Path) -> None:
    setting = world(tmp_path, 1.0)
    pairs = draw_pairs(read_hierarchy(tmp_path), setting.vectors(read_hierarchy(tmp_path).images), 0, per_level=20)
    assert (pairs.i != pairs.j).all()
    count = np.bincount(pairs.level)
    assert count[0] == count[3] == count.max() == 20 and count.min() > 5


def test_seeing_the_hierarchy_moves_classes_together_and_the_rest_apart_in_its_order(tmp_path: Path) -> None:
    result = hierarchy_change(world(tmp_path, 0.5))
    change = {r.group: r.estimate.value for r in result.rows if r.figure == "standardised distance" and r.is_difference}
    values = [change[level] for level in LEVELS]
    assert values == sorted(values) and values[0] < 0 < values[-1]
    slope = {r.group: r.estimate for r in result.rows if r.figure == "regression of the change"}
    assert slope["same class (intercept)"].value < 0
    assert 0 < slope["same basic"].value < slope["same superordinate"].value < slope["different"].value
    assert slope["different"].low > 0


def test_living_and_other_things_move_apart_and_among_themselves_together(tmp_path: Path) -> None:
    rows = [r for r in hierarchy_change(world(tmp_path, 0.5)).rows if r.figure == "standardised distance, by life"]
    change = {r.group: r.estimate.value for r in rows if r.is_difference}
    assert set(change) == {"both living", "living and non-living"}  # one class of plants has no two classes
    assert change["both living"] < 0 < change["living and non-living"]


def test_the_first_map_is_of_the_largest_variances(tmp_path: Path) -> None:
    setting, notes = world(tmp_path, 0.5, photos=12), []
    hierarchy = read_hierarchy(tmp_path)
    x = setting.vectors(hierarchy.images)["after"]
    (plot, *_) = maps(hierarchy, {"after": x}, 0, notes)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    found, expected = np.array(plot.values["points"]["after"]), u[:, :2] * s[:2]
    assert np.abs(np.sum(found * expected, 0)) == pytest.approx(s[:2] ** 2, rel=1e-2)
    assert sorted(set(plot.values["classes"])) == ["animal", "plant"]


def test_neighbours_stay_neighbours_in_a_pacmap(tmp_path: Path) -> None:
    pytest.importorskip("pacmap")
    setting = world(tmp_path, 3.0, photos=12)
    hierarchy = read_hierarchy(tmp_path)
    plots = maps(hierarchy, {"after": setting.vectors(hierarchy.images)["after"]}, 0, [])
    xy, own = np.array(plots[1].values["points"]["after"]), np.array(plots[1].values["classes"])
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2) + np.eye(len(xy)) * 1e9
    assert (own[apart.argmin(1)] == own).mean() > 0.95


def test_the_pairs_that_changed_are_shown_small(tmp_path: Path) -> None:
    (plot,) = [p for p in hierarchy_change(world(tmp_path, 0.5)).plots if p.kind == "pairs"]
    captions = [pair["caption"] for pair in plot.values["pairs"]]
    assert captions[0].startswith("-") and captions[-1].startswith("+")
    assert all(
        i["src"].startswith("data:image/jpeg") and len(i["src"]) < 9_000 for i in plot.values["pairs"][0]["images"]
    )


def test_two_models_agree_with_themselves_and_at_chance_with_noise(tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.training.evaluation.worlds import tiny_setting

    setting = tiny_setting(tmp_path, one=0.0, same=0.0, noise=1e6)
    value = {(r.model, r.group): r.estimate.value for r in model_agreement(setting).rows}
    assert value["same", "with one"] > 0.9  # photos without a concept are all alike: ties agree with nothing
    assert value["noise", "with one"] == pytest.approx(1 / 3, abs=0.1)
    with pytest.raises(NotHere, match="needs two"):
        model_agreement(replace(setting, subjects=setting.subjects[:1]))
