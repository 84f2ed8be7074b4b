"""Probing: what each objective learns and minimises, folds, the best step, resuming, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from contract import triplets
from training import probing
from training.align import Transform
from training.folds import Fold, object_folds
from training.probe_grid import Grid, probe
from training.probing import (
    Batch,
    Fitted,
    Objective,
    ProbeConfig,
    ProbeData,
    choice_loss,
    fit_probe,
    identity_penalty,
    learning_rate,
    local_loss,
    norm_penalty,
    objective_value,
)
from training.vice_data import simulate_choices

OBJECTS, WIDTH = 60, 8
OBJECTIVES: tuple[Objective, ...] = ("hard", "global", "glocal", "soft")


class World:
    """What people see is a linear map of the features: two loud dimensions mean nothing to them."""

    def __init__(self, seed: int = 0, choices: int = 6000) -> None:
        rng = np.random.default_rng(seed)
        seen = 1.6 * rng.normal(size=(OBJECTS, WIDTH - 2))
        rotation = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
        everything = np.concatenate([seen, 8 * rng.normal(size=(OBJECTS, 2))], 1)
        self.features = (everything @ rotation + 3).astype(np.float32)
        self.rows = simulate_choices(seen, choices, seed=seed)
        self.probabilities = triplets.pair_probabilities(triplets.pair_similarities(seen[self.rows]))
        self.local = (rng.normal(size=(80, WIDTH)) * 4 + 3).astype(np.float32)

    def data(self, objective: str) -> ProbeData:
        soft, local = objective == "soft", objective == "glocal"
        return ProbeData(self.features, self.rows, self.probabilities if soft else None, self.local if local else None)

    def fit(self, config: ProbeConfig, seed: int = 0) -> Fitted:
        return fit_probe(self.data(config.objective), self.fold(), config, seed=seed)

    def fold(self) -> Fold:
        return object_folds(self.rows, OBJECTS, 3, seed=0)[0]


def config(objective: Objective = "global", **changes: Any) -> ProbeConfig:
    quick: dict[str, Any] = {"learning_rate": 0.02, "sigma": 0.1, "steps": 200, "validate_every": 20, "local_batch": 32}
    return ProbeConfig(objective=objective, **(quick | changes))


def same_bits(a: Transform, b: Transform) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("weights", "bias", "mean", "std"))


# --- what is learned --------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_raises_accuracy_on_objects_that_it_has_not_seen(objective: Objective, optimiser: Any) -> None:
    figures = World().fit(config(objective, optimiser=optimiser, clip=1.0)).figures
    assert figures["untransformed_accuracy"] < 0.55
    assert figures["accuracy"] > figures["untransformed_accuracy"] + 0.2
    assert figures["best_step"] > 0


def test_the_figures_are_those_of_the_transform_as_it_is_applied() -> None:
    world, fold = World(), World().fold()
    fitted = world.fit(config("soft"))
    rows = world.rows[fold.validation]
    sims = triplets.pair_similarities(fitted.transform.apply(world.features)[rows].astype(np.float64))
    log_q, p = triplets.pair_log_probabilities(sims), world.probabilities[fold.validation]
    assert fitted.figures["accuracy"] == pytest.approx(triplets.accuracy(sims, np.full(len(rows), 2)), abs=0.003)
    assert fitted.figures["cross_entropy"] == pytest.approx(-(p * log_q).sum(1).mean(), rel=1e-4)
    assert fitted.figures["divergence"] == pytest.approx((p * (np.log(p) - log_q)).sum(1).mean(), rel=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_huge_penalty_keeps_the_map_a_scaled_identity_unless_the_objective_is_hard(objective: Objective) -> None:
    weights = World().fit(config(objective, penalty=1e3, learning_rate=1e-3)).transform.weights
    off = weights - np.eye(WIDTH) * np.diag(weights).mean()
    assert np.linalg.norm(off) < 0.05 * np.linalg.norm(weights)
    free = World().fit(config(objective, penalty=0.0)).transform.weights
    assert np.linalg.norm(free - np.eye(WIDTH) * np.diag(free).mean()) > 0.5 * np.linalg.norm(free)


def test_hard_alignment_shrinks_the_map_and_the_global_one_does_not() -> None:
    config_ = config("hard", steps=60, learning_rate=2e-3, min_steps=60)
    start, norms = 0.1 * np.sqrt(WIDTH), {}
    for objective in ("hard", "global"):
        data, fold = World().data(objective), World().fold()
        fit = probing._Fit(data, fold, replace(config_, objective=objective, penalty=100.0), 0, "cpu")
        fit.train("test")
        norms[objective] = float(fit._weights.detach().norm())  # of the last step, not of the best
    assert norms["hard"] < 0.2 * start
    assert norms["global"] > 0.8 * start


def test_without_a_bias_it_stays_zero_and_with_one_it_is_learned() -> None:
    assert not World().fit(config(bias=False)).transform.bias.any()
    assert World().fit(config(bias=True)).transform.bias.any()


def test_the_standardisation_is_one_mean_and_one_deviation_of_all_features() -> None:
    transform = World().fit(config(steps=1)).transform
    assert transform.mean.shape == transform.std.shape == ()
    assert float(transform.mean) == pytest.approx(World().features.mean(dtype=np.float64))
    assert float(transform.std) == pytest.approx(World().features.std(dtype=np.float64, ddof=0), rel=1e-6)


def test_the_local_term_sees_features_standardised_as_the_transform_does() -> None:
    world = World()
    fit = probing._Fit(world.data("glocal"), world.fold(), config("glocal", local_batch=16), 0, "cpu")
    seen = next(fit._batches()).local
    assert seen is not None and len(seen) == 16
    transform = replace(fit._transform(), weights=np.eye(WIDTH, dtype=np.float32))
    expected = transform.apply(world.local)
    assert all((np.abs(expected - row.numpy()).max(1) < 1e-6).any() for row in seen)


def test_photos_that_validate_the_local_term_never_train() -> None:
    world = World()
    fit = probing._Fit(world.data("glocal"), world.fold(), config("glocal"), 0, "cpu")
    both = np.concatenate([fit._local_train, fit._local_validation])
    assert len(fit._local_validation) == 17
    np.testing.assert_array_equal(np.sort(both), np.arange(80))


def test_judgments_of_held_out_objects_have_no_influence_on_what_a_step_learns() -> None:
    world, fold = World(), World().fold()
    learned = []
    for _ in range(2):
        fit = probing._Fit(world.data("soft"), fold, config("soft", steps=5), 0, "cpu")
        fit.train("test")
        learned.append(fit._transform())
        mixed = np.setdiff1d(np.arange(len(world.rows)), fold.train)
        world.rows[mixed] = world.rows[mixed][:, [2, 0, 1]]
        world.probabilities[mixed] = 1 / 3
    assert same_bits(*learned)
    world.probabilities[fold.train] = 1 / 3
    assert not same_bits(learned[0], world.fit(config("soft", steps=5, validate_every=1)).transform)


# --- what is minimised ------------------------------------------------------------------------


def test_the_penalties_are_those_worked_by_hand() -> None:
    weights = torch.tensor([[2.0, 4.0], [0.0, 4.0]])
    assert float(norm_penalty(weights)) == 6  # the root of 4 + 16 + 16
    assert float(identity_penalty(weights)) == 18  # mean of the diagonal 3: -1, 4, 0, 1
    assert float(identity_penalty(torch.eye(3) * 2.5)) == 0


def test_the_choice_losses_are_those_worked_by_hand() -> None:
    sims = torch.log(torch.tensor([[6.0, 3.0, 1.0], [1.0, 3.0, 6.0]], dtype=torch.float64))
    assert float(choice_loss(sims)) == pytest.approx(-(np.log(0.6) + np.log(0.1)) / 2)
    certain = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.3, 0.1]], dtype=torch.float64)
    expected = (-np.log(0.6) + 0.6 * np.log(6) + 0.1 * np.log(1 / 6)) / 2
    assert float(choice_loss(sims, certain)) == pytest.approx(expected)
    assert float(choice_loss(sims, triplets.pair_probabilities(sims))) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_the_local_term_equals_an_independent_computation(tau: float) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 7, 5))
    terms = []
    for i in range(7):
        others = [j for j in range(7) if j != i]
        cosines = [
            np.array([z[i] @ z[j] / (np.linalg.norm(z[i]) * np.linalg.norm(z[j])) for j in others]) / tau
            for z in (before, after)
        ]
        p, q = (np.exp(c) / np.exp(c).sum() for c in cosines)
        terms.append(-(p * np.log(q)).sum())
    got = local_loss(torch.from_numpy(before), torch.from_numpy(after), tau)
    assert float(got) == pytest.approx(np.mean(terms), rel=1e-12)


def a_batch(objective: str) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    """Weights, bias and a batch in double precision."""
    rng = np.random.default_rng(0)
    x, local, weights, bias = (torch.from_numpy(rng.normal(size=size)) for size in ((6, 3), (5, 3), (3, 3), (3,)))
    index = torch.tensor([[0, 1, 2], [2, 3, 5], [5, 0, 1]])
    target = torch.from_numpy(rng.dirichlet(np.ones(3), 3)) if objective == "soft" else None
    batch = Batch(x, index, target, local if objective == "glocal" else None)
    return weights.requires_grad_(True), bias.requires_grad_(True), batch


def test_glocal_weighs_its_two_terms_and_adds_the_penalty() -> None:
    weights, bias, batch = a_batch("glocal")
    assert batch.local is not None
    choices = choice_loss(triplets.pair_similarities((batch.x @ weights + bias)[batch.index]))
    local = local_loss(batch.local, batch.local @ weights + bias, 0.5)
    got = objective_value(weights, bias, batch, config("glocal", alpha=0.25, tau=0.5, penalty=2.0))
    assert got.item() == pytest.approx((0.75 * choices + 0.25 * local + 2 * identity_penalty(weights)).item())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_of_every_objective_equals_finite_differences(objective: Objective) -> None:
    weights, bias, batch = a_batch(objective)
    constants = config(objective, penalty=0.3, alpha=0.4, tau=0.5)
    assert torch.autograd.gradcheck(lambda w, b: objective_value(w, b, batch, constants), (weights, bias))


def test_a_constant_learning_rate_is_constant_and_a_cosine_warms_up_and_falls() -> None:
    assert {learning_rate(step, config(steps=100)) for step in range(100)} == {0.02}
    constants = config(steps=1000, schedule="cosine", warm_up=10)
    rates = np.array([learning_rate(step, constants) for step in range(1000)]) / 0.02
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-3)
    assert rates[500] == pytest.approx(0.5)
    assert rates[-1] < 1e-4
    assert (np.diff(rates[10:]) < 0).all()


def test_the_schedule_and_the_clip_reach_the_optimiser() -> None:
    plain = World().fit(config(optimiser="sgd", steps=20)).transform
    for change in ({"schedule": "cosine"}, {"clip": 0.01}):
        assert not same_bits(World().fit(config(optimiser="sgd", steps=20, **change)).transform, plain)


# --- folds ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(30, 60))
def test_folds_divide_objects_and_triplets(seed: int, k: int, n_objects: int) -> None:
    index = np.random.default_rng(seed).integers(n_objects, size=(3000, 3))
    folds = object_folds(index, n_objects, k, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.objects for fold in folds])), np.arange(n_objects))
    assert max(len(fold.objects) for fold in folds) - min(len(fold.objects) for fold in folds) <= 1
    for fold in folds:
        held_out = set(fold.objects.tolist())
        inside = [sum(o in held_out for o in row) for row in index[:200].tolist()]
        used = np.concatenate([fold.train, fold.validation])
        assert [i for i in fold.train if i < 200] == [i for i, count in enumerate(inside) if count == 0]
        assert [i for i in fold.validation if i < 200] == [i for i, count in enumerate(inside) if count == 3]
        assert len(np.unique(used)) == len(used) == len(index) - fold.discarded


def test_folds_follow_their_seed() -> None:
    index = np.random.default_rng(0).integers(30, size=(3000, 3))
    first, again, other = (object_folds(index, 30, 3, seed=seed)[0].objects.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_three_folds_of_many_objects_keep_the_published_shares() -> None:
    index = np.random.default_rng(0).integers(1854, size=(200_000, 3))
    fold = object_folds(index, 1854, 3, seed=0)[0]
    assert len(fold.train) / len(index) == pytest.approx(8 / 27, abs=0.005)
    assert len(fold.validation) / len(index) == pytest.approx(1 / 27, abs=0.003)


# --- the best step, the grid, resuming --------------------------------------------------------


def test_the_best_step_is_kept_when_later_steps_are_worse() -> None:
    world = World(choices=800)  # few triplets and no penalty: it overfits
    long = world.fit(config("hard", penalty=0.0, learning_rate=0.05, steps=400, validate_every=10, patience=100))
    best = long.figures["best_step"]
    assert 0 < best < long.figures["steps"] == 400
    exactly = world.fit(config("hard", penalty=0.0, learning_rate=0.05, steps=best, validate_every=10, patience=100))
    assert same_bits(long.transform, exactly.transform)
    assert long.figures["cross_entropy"] == exactly.figures["cross_entropy"]


def test_patience_ends_a_fit_and_min_steps_holds_it() -> None:
    world = World(choices=800)
    impatient = config("hard", penalty=0.0, learning_rate=0.05, steps=400, validate_every=10, patience=2)
    stopped = world.fit(impatient).figures
    assert (stopped["stopped"], stopped["steps"]) == ("patience", stopped["best_step"] + 20)
    held = world.fit(replace(impatient, min_steps=300)).figures
    assert 300 <= held["steps"] < 400


def test_patience_starts_anew_at_an_improvement_and_the_best_step_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [1.0, 0.9, 0.95, 0.8, 0.85, 0.7999, 0.5]  # 0.7999 is best so far, but no improvement
    validate = lambda self, step: {"best_step": step, "loss": losses[step], "accuracy": 0.0}  # noqa: E731
    monkeypatch.setattr(probing._Fit, "_validate", validate)
    figures = World().fit(config(steps=6, validate_every=1, patience=2, min_delta=0.001)).figures
    assert (figures["steps"], figures["best_step"], figures["stopped"]) == (5, 5, "patience")


def test_the_same_seed_gives_the_same_transform_and_another_seed_another() -> None:
    world, constants = World(), config("glocal", steps=20)
    assert same_bits(world.fit(constants, seed=1).transform, world.fit(constants, seed=1).transform)
    assert not same_bits(world.fit(constants, seed=1).transform, world.fit(constants, seed=2).transform)


GRID = Grid(penalties=(10.0, 1e-3), learning_rates=(0.02, 1e-4), folds=3)
"""The best cell is number 2, neither the first nor the last."""


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_grid_keeps_the_best_fold_of_the_best_cell(tmp_path: Path) -> None:
    world = World()
    probed = probe(world.data("global"), config(steps=60), GRID, tmp_path, seed=0)
    assert lines(tmp_path) == probed.results
    means = {c: np.mean([r["cross_entropy"] for r in probed.results if r["cell"] == c]) for c in range(4)}
    assert (probed.summary["cell"], probed.summary["penalty"]) == (min(means, key=means.__getitem__), 1e-3) == (2, 1e-3)
    assert probed.summary["cross_entropy_mean_of_folds"] == pytest.approx(means[probed.summary["cell"]])
    best = min((r for r in probed.results if r["cell"] == probed.summary["cell"]), key=lambda r: r["cross_entropy"])
    assert probed.summary["fold"] == best["fold"]
    fold = object_folds(world.rows, OBJECTS, 3, seed=0)[best["fold"]]
    alone = fit_probe(world.data("global"), fold, config(steps=60, penalty=1e-3, learning_rate=0.02), seed=0)
    assert same_bits(probed.transform, alone.transform)
    assert same_bits(Transform.load(tmp_path / "transform.npz"), alone.transform)


def test_a_grid_reports_counts_seed_and_tie_rule_and_leaves_no_loser(tmp_path: Path) -> None:
    probed = probe(World().data("hard"), config("hard", steps=5), GRID, tmp_path, seed=7)
    assert len(probed.results) == 12
    for line in probed.results:
        counts = [line[f"triplets_{name}"] for name in ("train", "validation", "discarded")]
        assert sum(counts) == 6000 and min(counts) > 0
        assert (line["seed"], line["tie_rule"], line["objects_validated"]) == (7, "strict", 20)
    winner = f"cell-{probed.summary['cell']}-fold-{probed.summary['fold']}.npz"
    kept = {"identity.json", "results.jsonl", "summary.json", "transform.npz", winner}
    assert {file.name for file in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("killed_at", [0, 1, 4, 11])
def test_a_killed_grid_goes_on_and_ends_bit_for_bit_the_same(
    tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, constants = World().data("glocal"), config("glocal", steps=10, validate_every=5)
    whole = probe(data, constants, GRID, tmp_path / "whole", seed=0)
    fits, train = [0], probing._Fit.train

    def dying(self: Any, description: str) -> Fitted:
        fits[0] += 1
        if fits[0] == killed_at + 1:
            raise KeyboardInterrupt
        return train(self, description)

    monkeypatch.setattr(probing._Fit, "train", dying)
    with pytest.raises(KeyboardInterrupt):
        probe(data, constants, GRID, tmp_path / "killed", seed=0)
    resumed = probe(data, constants, GRID, tmp_path / "killed", seed=0)
    assert fits[0] == 12 + 1  # the one that died, and every other once
    for name in ("results.jsonl", "summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert same_bits(resumed.transform, whole.transform)
    assert same_bits(probe(data, constants, GRID, tmp_path / "killed", seed=0).transform, whole.transform)
    assert fits[0] == 13


def test_a_folder_of_another_grid_is_refused(tmp_path: Path) -> None:
    world, constants, small = World(), config(steps=1), Grid(penalties=(1.0,), learning_rates=(0.1,), folds=2)
    probe(world.data("global"), constants, small, tmp_path, seed=0)
    with pytest.raises(ValueError, match="made with another seed"):
        probe(world.data("global"), constants, small, tmp_path, seed=1)
    world.rows[0] = world.rows[0][[1, 0, 2]]
    with pytest.raises(ValueError, match="made with another inputs"):
        probe(world.data("global"), constants, small, tmp_path, seed=0)


def test_a_rate_that_diverges_names_its_step_and_does_not_end_the_grid(tmp_path: Path) -> None:
    world, constants = World(), config(steps=30, optimiser="sgd")
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step 1; lower the learning rate"):
        world.fit(replace(constants, learning_rate=1e20))
    rates = Grid(penalties=(1e-3,), learning_rates=(1e20, 1e-3), folds=2)
    probed = probe(world.data("global"), constants, rates, tmp_path / "one", seed=0)
    assert ["error" in line for line in probed.results] == [True, True, False, False]
    assert (probed.summary["cell"], probed.summary["fits_failed"]) == (1, 2)
    with pytest.raises(FloatingPointError, match=r"no cell .* could be fitted.*at step \d+"):
        probe(world.data("global"), constants, replace(rates, learning_rates=(1e20,)), tmp_path / "all", seed=0)


def test_a_map_that_collapses_all_objects_scores_zero_and_not_a_third() -> None:
    world = World()
    fit = probing._Fit(world.data("global"), world.fold(), config(), 0, "cpu")
    with torch.no_grad():
        fit._weights.zero_()
        fit._bias.fill_(0.3)
    figures = fit._validate(0)
    assert figures["accuracy"] == 0
    assert figures["cross_entropy"] == pytest.approx(np.log(3))


# --- the published layout ---------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_a_learned_transform_survives_the_published_layout(tmp_path: Path, bias: bool) -> None:
    world = World()
    transform = world.fit(config(steps=20, bias=bias)).transform
    transform.save(tmp_path / "ours.npz")
    assert same_bits(Transform.load(tmp_path / "ours.npz"), transform)
    with np.load(tmp_path / "ours.npz") as archive:
        published = {name: archive[name] for name in ("weights", "mean", "std", *(("bias",) if bias else ()))}
    np.savez(tmp_path / "published.npz", **published)
    x = (world.features - published["mean"]) / published["std"]
    expected = x @ published["weights"] + (published["bias"] if bias else 0)
    np.testing.assert_allclose(Transform.load(tmp_path / "published.npz").apply(world.features), expected, atol=1e-5)


# --- what is refused --------------------------------------------------------------------------


def put(name: str, row: int, value: Any) -> Callable[[World], None]:
    def change(world: World) -> None:
        getattr(world, name)[row] = value

    return change


def one_based(world: World) -> None:
    world.rows += 1


def replaced(name: str, make: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[World], None]:
    return lambda world: setattr(world, name, make(getattr(world, name)))


@pytest.mark.parametrize(
    ("objective", "damage", "message"),
    [
        ("hard", put("features", 17, np.nan), "features, row 17: a value is not finite"),
        ("hard", put("features", 3, np.inf), "features, row 3: a value is not finite"),
        ("hard", replaced("features", np.ones_like), "features are all one number"),
        ("hard", replaced("features", lambda x: x[0]), r"features are float32 \(8,\); expected"),
        ("hard", put("rows", 5, [0, 1, OBJECTS]), rf"triplet 5 is \[0, 1, {OBJECTS}\]; expected objects 0 to 59"),
        ("hard", put("rows", 6, [0, -1, 2]), r"triplet 6 is \[0, -1, 2\]"),
        ("hard", one_based, "triplets are 1-based: they run from 1 to 60"),
        ("hard", put("rows", 9, [4, 7, 4]), r"triplet 9 is \[4, 7, 4\]; an object stands twice"),
        ("hard", replaced("rows", lambda x: x[:, :2]), r"triplets are int64 \(6000, 2\); expected"),
        ("hard", replaced("rows", lambda x: x.astype(float)), "triplets are float64"),
        ("soft", put("probabilities", 2, [0.5, 0.5, 0.5]), r"probabilities of triplet 2 are \[0.5, 0.5, 0.5\]"),
        ("soft", put("probabilities", 2, [1.5, -0.5, 0]), "probabilities of triplet 2 are"),
        ("soft", put("probabilities", 2, np.nan), "probabilities of triplet 2 are"),
        ("soft", replaced("probabilities", lambda p: p[:, ::-1]), "favour pair 12 over pair 01"),
        ("soft", replaced("probabilities", lambda p: p[1:]), r"are \(5999, 3\); expected \(6000, 3\)"),
        ("glocal", put("local", 11, np.nan), "local features, row 11: a value is not finite"),
        ("glocal", replaced("local", lambda x: x[:, 1:]), r"local features are \(80, 7\).*as wide as the features"),
        ("glocal", replaced("local", lambda x: x[:5]), "expected 6 rows or more"),
    ],
)
def test_bad_data_are_refused_and_named(objective: Objective, damage: Callable[[World], None], message: str) -> None:
    world = World()
    damage(world)
    with pytest.raises(ValueError, match=message):
        world.data(objective).check(config(objective))


@pytest.mark.parametrize(("objective", "given_"), [("soft", "hard"), ("glocal", "soft"), ("global", "soft")])
def test_an_objective_takes_its_own_data_only(objective: Objective, given_: str) -> None:
    with pytest.raises(ValueError, match=rf"the objective {objective} (needs|has no use for) "):
        World().data(given_).check(config(objective))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "naive"}, "objective is 'naive'; expected one of hard, global"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"lmbda": 1.0}, "no such constants of probing: lmbda; there are objective, penalty"),
        ({"bias": "False"}, "bias is 'False'; expected True or False"),
        ({"steps": 1e3}, "steps is 1000.0; expected a whole number"),
        ({"penalty": -1.0}, "penalty is -1.0; expected a finite"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"tau": np.nan}, "tau is nan"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"alpha": 1.5}, "alpha 1.5; expected"),
        ({"warm_up": 5}, "warm_up is 5"),
    ],
)
def test_constants_that_mean_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeConfig.from_mapping({"objective": "hard"} | change)
    with pytest.raises(ValueError, match="objective is missing"):
        ProbeConfig.from_mapping({})


@pytest.mark.parametrize(
    ("k", "message"), [(1, "1 folds of 60"), (61, "61 folds of 60"), (30, r"fold 0 of 30 has \d+")]
)
def test_folds_that_cannot_be_are_refused(k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        object_folds(World().rows, OBJECTS, k, seed=0)


def test_a_grid_without_a_choice_or_with_one_twice_is_refused() -> None:
    for penalties in ((), (1.0, 1.0)):
        with pytest.raises(ValueError, match="penalties are"):
            Grid(penalties=penalties, learning_rates=(1.0,))
