"""VICE: recovery of a known embedding, its formulas against independent ones, files, resuming, refusals."""

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from numpy.typing import NDArray

from contract import triplets
from training import vice_fit
from training.recipes.vice_things import RECIPE
from training.things import read_responses, read_vice
from training.vice import (
    Posterior,
    ViceConfig,
    complexity,
    discoveries,
    figures,
    gradients,
    learning_rate,
    read_embeddings,
    triplet_probabilities,
)
from training.vice_data import fitting_odd, odd_last, read_triplets, simulate_choices
from training.vice_fit import converged, fit_vice

OBJECTS, DIMENSIONS = 30, 3
LEARN = ViceConfig(
    dimensions=6, batch=256, learning_rate=0.05, epochs=120, burn_in=70, window=25, validate_every=30, mc_samples=2
)
SHORT = replace(LEARN, epochs=4, validate_every=2, min_objects=0, posterior_samples=2)


def known_embedding() -> NDArray[np.float64]:
    """Three sparse, non-negative dimensions that overlap."""
    rng = np.random.default_rng(0)
    shape = (OBJECTS, DIMENSIONS)
    return rng.uniform(0.8, 2.2, shape) * (rng.random(shape) < 0.45)


def true_probabilities(embedding: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return triplets.pair_probabilities(triplets.pair_similarities(embedding[rows]))


TRAIN = simulate_choices(known_embedding(), 8_000, seed=1)
VALIDATION = simulate_choices(known_embedding(), 1_000, seed=2)


def short_fit(out: Path, config: ViceConfig = SHORT, seed: int = 0, train: Any = TRAIN) -> Posterior:
    return fit_vice(train[:1000], VALIDATION, config, out, seed, n_objects=OBJECTS)


def contents(out: Path) -> dict[str, bytes]:
    """Everything a fit leaves, but for the checkpoint: a zip whose bytes hold dates."""
    return {file.name: file.read_bytes() for file in sorted(out.iterdir()) if file.suffix in (".json", ".jsonl")} | {
        f"{file.name}/{name}": array.tobytes() for file in out.glob("*.npz") for name, array in np.load(file).items()
    }


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Posterior, Path]:
    out = tmp_path_factory.mktemp("vice") / "fit"
    return fit_vice(TRAIN, VALIDATION, LEARN, out, 0, n_objects=OBJECTS), out


def test_a_known_embedding_comes_back_from_simulated_choices(fitted: tuple[Posterior, Path]) -> None:
    posterior, truth = fitted[0], known_embedding()
    assert posterior.loc.shape == (OBJECTS, DIMENSIONS)
    match = np.corrcoef(posterior.embedding().T, truth.T)[:DIMENSIONS, DIMENSIONS:]
    assert sorted(match.argmax(0)) == [0, 1, 2]  # each true dimension has one of its own
    assert match.max(0).min() > 0.98
    fresh = simulate_choices(truth, 2_000, seed=3)
    p, q = triplet_probabilities(posterior, fresh), true_probabilities(truth, fresh)
    assert np.abs(p - q).mean() < 0.03
    assert figures(p)[1] == pytest.approx(figures(q)[1], abs=0.01)


def test_pruning_leaves_the_true_dimensions_and_the_files_say_what_was_there(fitted: tuple[Posterior, Path]) -> None:
    posterior, out = fitted
    full, summary = Posterior.load(out / "parameters.npz"), json.loads((out / "summary.json").read_text())
    assert full.loc.shape == (OBJECTS, LEARN.dimensions)
    assert sorted(np.load(out / "pruned_params.npz").files) == ["pruned_loc", "pruned_scale"]
    assert np.array_equal(full.prune().loc, posterior.loc)
    norms = np.abs(posterior.loc).sum(0)
    assert (np.diff(norms) <= 0).all()
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(30, summary["epochs"] + 1, 30))
    assert summary["converged"]
    assert summary["epochs"] < LEARN.epochs
    assert summary["val_loss"] == pytest.approx(lines[-1]["val_loss"], abs=0.02)
    assert lines[-1]["train_loss"] < np.log(3) - 0.2


def test_a_dimension_needs_strictly_more_clear_objects_than_the_least() -> None:
    loc = np.full((40, 3), -1.0, np.float32)
    loc[:5, 0], loc[:6, 1], loc[:7, 2] = 9, 2, 1
    posterior = Posterior(loc, np.full_like(loc, 0.1))
    assert posterior.importance(0.05).tolist() == [5, 6, 7]
    assert posterior.prune(5).loc[0].tolist() == [2, 1]  # the larger norm first
    assert posterior.prune(6).loc[0].tolist() == [1]
    assert posterior.prune(4).loc[0].tolist() == [9, 2, 1]


def test_what_a_fit_kept_is_not_pruned_again_by_other_constants(tmp_path: Path) -> None:
    few = replace(LEARN, min_objects=1)  # as for a team's own choices
    loc = np.full((30, 3), -1.0, np.float32)
    loc[:3, 0], loc[:4, 1] = 2, 1  # clear for 3 and 4 objects, 5 would be too few by default
    full = Posterior(loc, np.full_like(loc, 0.1))
    full.prune(few.min_objects).save(tmp_path / "pruned_params.npz", "pruned_")
    full.save(tmp_path / "parameters.npz")
    assert read_embeddings(tmp_path / "pruned_params.npz", 2, seed=0).shape == (2, 30, 2)
    with pytest.raises(ValueError, match=r"no dimension survives pruning; .*pruned_params\.npz"):
        read_embeddings(tmp_path / "parameters.npz", 2, seed=0)
    (tmp_path / "identity.json").write_text(json.dumps({"config": asdict(few)}))
    kept = read_embeddings(tmp_path / "parameters.npz", 2, seed=0)
    assert np.array_equal(kept, read_embeddings(tmp_path / "pruned_params.npz", 2, seed=0))


def test_benjamini_hochberg_by_hand_and_by_scipy() -> None:
    # Thresholds .01 .02 .03 .04 .05: .029 saves .025, which alone is above its own .02; .041 and .6 fall.
    by_hand = torch.tensor([0.6, 0.025, 0.001, 0.041, 0.029])[:, None]
    assert discoveries(by_hand, 0.05).tolist() == [3]
    p = np.random.default_rng(0).random((50, 20)) ** np.linspace(1, 6, 20)
    p[:, 0] = 1
    expected = (scipy.stats.false_discovery_control(p, axis=0) <= 0.05).sum(0)
    assert discoveries(torch.from_numpy(p), 0.05).tolist() == expected.tolist()
    assert len(set(expected)) > 5


@pytest.mark.parametrize("spread", [0.1, 30.0])  # at 30 a density in linear space is 0
def test_the_complexity_is_the_one_of_scipy(spread: float) -> None:
    rng, config = np.random.default_rng(0), replace(LEARN, spike=0.1, slab=0.7, pi=0.6)
    loc, log_scale, noise = spread * rng.normal(size=(7, 5)), rng.normal(-2, 1, (7, 5)), rng.normal(size=(7, 5))
    scale = np.exp(log_scale)
    x = loc + scale * noise
    log_prior = scipy.special.logsumexp(
        [scipy.stats.norm.logpdf(x, 0, 0.1), scipy.stats.norm.logpdf(x, 0, 0.7)], axis=0, b=[[[0.6]], [[0.4]]]
    )
    expected = (scipy.stats.norm.logpdf(x, loc, scale) - log_prior).sum()
    ours = complexity(*(torch.from_numpy(a) for a in (loc, log_scale, noise)), config)
    assert float(ours) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("spread", [0.1, 30.0])
def test_written_out_gradients_are_those_of_autograd_through_the_whole_loss(spread: float) -> None:
    rng, config, n_train = torch.Generator().manual_seed(0), replace(LEARN, pi=0.6), 3  # so that the prior weighs
    loc, log_scale, noise = (torch.randn(7, 5, generator=rng, dtype=torch.float64) for _ in range(3))
    loc, log_scale = (spread * loc).requires_grad_(True), (log_scale - 1).requires_grad_(True)
    index = torch.tensor([[0, 1, 2], [2, 4, 0], [5, 0, 1], [2, 1, 0]])  # object 3 and 6 in none
    z = (loc + log_scale.exp() * noise).relu()
    log_p = triplets.pair_log_probabilities(triplets.pair_similarities(z[index]))
    loss = -log_p[:, 0].mean() + complexity(loc, log_scale, noise, config) / n_train
    expected = torch.autograd.grad(loss, [loc, log_scale])
    ours = gradients(loc.detach(), log_scale.detach(), noise, index, config, n_train)
    for mine, theirs in zip(ours, (log_p.detach(), *expected), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_posterior_probabilities_are_averaged_as_probabilities_and_of_rectified_samples() -> None:
    loc, scale = np.array([[2.0], [1.0], [-0.5], [0.7]], np.float32), np.full((4, 1), 1.5, np.float32)
    index = np.array([[0, 1, 2], [3, 1, 0]])
    p = triplet_probabilities(Posterior(loc, scale), index, samples=4000, seed=1)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    z = np.maximum(loc + scale * np.random.default_rng(0).normal(size=(40_000, 4, 1)), 0)
    sims = triplets.pair_similarities(z[:, index])
    np.testing.assert_allclose(p, triplets.pair_probabilities(sims).mean(0), atol=0.02)
    for wrong in (sims.mean(0), triplets.pair_similarities(z.mean(0)[index])):
        assert np.abs(triplets.pair_probabilities(wrong) - p).max() > 0.1
    alone = triplet_probabilities(Posterior(loc, scale), index[1:], samples=4000, seed=1)
    assert np.array_equal(alone, p[1:])


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training import test_vice as t
honest, calls = t.vice_fit.gradients, []
def deadly(*given):
    calls.append(1)
    if len(calls) == 11:  # in the third epoch of four steps
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(*given)
t.vice_fit.gradients = deadly
t.short_fit(Path(sys.argv[1]))
"""


def test_a_fit_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "killed/checkpoint.pt").exists()
    assert not (tmp_path / "killed/summary.json").exists()
    resumed, whole = short_fit(tmp_path / "killed"), short_fit(tmp_path / "whole")
    assert np.array_equal(resumed.loc, whole.loc)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_the_same_seed_gives_the_same_posterior_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (short_fit(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert np.array_equal(first.loc, again.loc)
    assert np.array_equal(first.scale, again.scale)
    assert not np.array_equal(first.loc, other.loc)


def test_validation_changes_nothing_but_the_results(tmp_path: Path) -> None:
    often, never = short_fit(tmp_path / "a"), short_fit(tmp_path / "b", replace(SHORT, validate_every=99))
    assert np.array_equal(often.loc, never.loc)
    assert not (tmp_path / "b/results.jsonl").exists()


def test_a_complete_fit_is_not_done_again_and_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = short_fit(tmp_path / "fit")
    monkeypatch.delattr(vice_fit, "gradients")
    assert np.array_equal(short_fit(tmp_path / "fit").loc, first.loc)
    for changed, what in (({"seed": 1}, "seed"), ({"config": LEARN}, "config"), ({"train": VALIDATION}, "inputs")):
        with pytest.raises(ValueError, match=f"was made with another {what}; remove it"):
            short_fit(tmp_path / "fit", **changed)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_stops_with_the_step_named(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 0, step 1; lower the learning rate"):
        short_fit(tmp_path, replace(SHORT, learning_rate=1e30))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_an_embedding_of_no_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no dimension survives pruning after 4 epochs"):
        short_fit(tmp_path, replace(SHORT, min_objects=OBJECTS))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([9, 3, 3, 3], True),
        ([9, 3, 3], False),  # epoch 2 is not past the burn-in
        ([3, 3, 9, 3, 3], False),
        ([9, 0, 0, 0], False),
    ],
)
def test_convergence_is_a_number_of_dimensions_that_stays(counts: list[int], expected: bool) -> None:
    assert converged(counts, replace(LEARN, burn_in=2, window=3)) is expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2, 3], [4, 5, 1]], r"t\.npy is 1-based: its numbers run from 1 to 5\. Subtract 1; expected 0 to 4"),
        ([[2, 3, 4], [4, 5, 2]], r"t\.npy is 1-based: its numbers run from 2 to 5"),
        ([[0, 1, 2], [0, 5, 2]], r"row 1: \[0, 5, 2\]; expected objects 0 to 4\. 1 of 2 rows are wrong"),
        ([[0, 1, 2], [-1, 4, 2]], r"row 1: .* expected objects 0 to 4"),
        ([[0, 1, 2], [2, 4, 2]], r"row 1: \[2, 4, 2\]; an object stands twice"),
        ([[0, 1, 2.5]], r"row 0: .* not whole numbers"),
        ([[0, 1, np.nan]], r"row 0: .* not whole numbers"),
        ([[0, 1]], r"is \(1, 2\); expected N x 3"),
        (np.empty((0, 3)), r"expected N x 3"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, rows: Any, message: str) -> None:
    np.save(tmp_path / "t.npy", np.array(rows))
    with pytest.raises(ValueError, match=message):
        read_triplets(tmp_path / "t.npy", 5, odd="last")


def test_text_and_npy_are_read_alike_and_the_odd_one_is_moved_to_the_end(tmp_path: Path) -> None:
    rows = np.array([[3, 0, 2], [1, 4, 0]])
    np.save(tmp_path / "t.npy", rows)
    np.savetxt(tmp_path / "t.txt", rows)  # 3.000000000000000000e+00, as some published files are
    for name in ("t.npy", "t.txt"):
        assert read_triplets(tmp_path / name, 5, odd="last").tolist() == rows.tolist()
        assert read_triplets(tmp_path / name, 5, odd="first").tolist() == [[0, 2, 3], [4, 0, 1]]
    (tmp_path / "pmfs.txt").write_bytes(pickle.dumps({(0, 1, 2): [0.1, 0.2, 0.7]}))
    with pytest.raises(ValueError, match=r"pmfs\.txt is a Python pickle"):
        read_triplets(tmp_path / "pmfs.txt", 5, odd="last")


def test_simulated_choices_are_in_proportion_to_the_embeddings_probabilities() -> None:
    embedding = np.array([[2.0, 0.0], [1.0, 1.5], [0.0, 0.8]])
    rows = simulate_choices(embedding, 30_000, seed=0)
    assert len(rows) == 30_000
    found = np.bincount(rows[:, 2], minlength=3) / len(rows)
    expected = triplets.odd_probabilities(triplets.pair_similarities(embedding))
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert np.ptp(expected) > 0.2


def test_unknown_constants_are_refused_by_name_and_strings_are_converted() -> None:
    with pytest.raises(ValueError, match="no such constants of VICE: beta, spikes; there are dimensions, spike"):
        ViceConfig.from_mapping({"spikes": 1, "beta": 2, "pi": 0.4})
    assert ViceConfig.from_mapping({"pi": "0.4", "batch": "64"}) == ViceConfig(pi=0.4, batch=64)
    for bad in ({"batch": "many"}, {"pi": 1.0}, {"spike": 0.0}, {"slab": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(bad)) if bad != {"batch": "many"} else "many"):
            ViceConfig.from_mapping(bad)


def test_the_recipe_is_for_things() -> None:
    assert RECIPE.n_objects == 1854
    assert RECIPE.config.posterior_samples == 50


@pytest.mark.realdata
def test_human_responses_are_odd_last_by_the_published_embedding_with_its_known_figures(realdata: Path) -> None:
    vice = read_vice(realdata / "things/vice_embedding.npy")
    responses = read_responses(realdata / "things/human_test_responses.csv", len(vice))
    rows = odd_last(responses.concepts, responses.odd)
    convention, both = fitting_odd(rows, vice)
    assert convention == "last"
    assert both["last"] == pytest.approx(0.636, abs=0.001)
    assert figures(true_probabilities(vice, rows))[1] == pytest.approx(0.8365, abs=0.0005)


def test_the_learning_rate_is_constant_unless_it_is_to_fall_by_a_cosine() -> None:
    assert {learning_rate(epoch, LEARN) for epoch in range(LEARN.epochs)} == {LEARN.learning_rate}
    falling = replace(LEARN, final_rate=0.1)
    rates = [learning_rate(epoch, falling) / LEARN.learning_rate for epoch in range(LEARN.epochs + 1)]
    assert (np.diff(rates) < 0).all()
    assert (rates[0], rates[-1]) == (pytest.approx(1), pytest.approx(0.1))
    assert rates[LEARN.epochs // 2] == pytest.approx(0.55)
    with pytest.raises(ValueError, match=r"final_rate is 1\.5"):
        replace(LEARN, final_rate=1.5)


def test_the_falling_rate_reaches_the_optimiser(tmp_path: Path) -> None:
    plain, falling = (
        short_fit(tmp_path / str(rate), replace(SHORT, final_rate=rate)).loc.tobytes() for rate in (1.0, 0.0)
    )
    assert plain != falling
