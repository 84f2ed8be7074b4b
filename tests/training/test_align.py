"""Uncertainty distillation: what it learns, from which photos alone, and the map it leaves."""

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
from training import evaluate
from training.align import (
    AlignConfig,
    Targets,
    Transform,
    _identity_penalty,
    _kl,
    _schedule,
    normalize_power,
    uncertainty_distillation,
)

CONFIG = AlignConfig(
    power=None, components=None, penalty=0.0, steps=60, learning_rate=0.02, triplets=400, noise=0.0, residuals=0.0
)
CONCEPTS, DIMENSIONS, WIDTH = 30, 4, 12
TRAIN, HIDDEN = np.arange(20), np.arange(20, CONCEPTS)


class World:
    """VICE-like concepts; photos are a random linear view of them plus what people do not look at.

    Three photos of each concept (but six of the first), and ten of nothing.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.vice = rng.exponential(1, (CONCEPTS, DIMENSIONS)) * (rng.random((CONCEPTS, DIMENSIONS)) < 0.6)
        per_concept = [6, *[3] * (CONCEPTS - 1)]
        self.concept = np.concatenate([np.repeat(np.arange(CONCEPTS), per_concept), np.full(10, -1)])
        seen = np.where(self.concept[:, None] < 0, rng.exponential(1, (len(self.concept), DIMENSIONS)), 0)
        seen[self.concept >= 0] = self.vice[self.concept[self.concept >= 0]]
        view, distraction = rng.normal(size=(DIMENSIONS, WIDTH)), rng.normal(size=(3, WIDTH))
        loud = 3 * rng.normal(size=(len(seen), 3)) @ distraction
        self.features = (seen @ view + loud + 0.1 * rng.normal(size=(len(seen), WIDTH))).astype(np.float32)

    def learn(self, config: AlignConfig = CONFIG, seed: int = 0, features: Any = None, train: Any = TRAIN) -> Transform:
        given_ = self.features if features is None else features
        return uncertainty_distillation(given_, self.concept, train, HIDDEN, self.vice, config, seed=seed)

    def agreement(self, vectors: NDArray[np.float32]) -> float:
        """With VICE's most likely choice, over triplets of hidden concepts."""
        rows_of = [np.flatnonzero(self.concept == c) for c in HIDDEN]
        judged = evaluate.judge_split(vectors, rows_of, self.vice[HIDDEN], "dot", draws=8, seed=0)
        return evaluate.estimate([judged], evaluate.agreement, repetitions=1, seed=0).value


def same_bits(a: Transform, b: Transform) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("weights", "bias", "mean", "std"))


def scaled_identity_misfit(weights: NDArray[np.float32]) -> float:
    off = weights - np.eye(len(weights)) * np.diag(weights).mean()
    return float(np.linalg.norm(off) / np.linalg.norm(weights))


@pytest.mark.parametrize("components", [None, 7])
def test_it_raises_agreement_on_concepts_that_it_has_not_seen(components: int | None) -> None:
    world = World(seed=1)
    learned = world.learn(replace(CONFIG, components=components, steps=200, learning_rate=0.05)).apply(world.features)
    assert world.agreement(world.features - world.features.mean(0)) < 0.5
    assert world.agreement(learned) > 0.75


def test_a_strong_penalty_keeps_the_map_a_scaled_identity_and_none_does_not() -> None:
    world = World()
    assert scaled_identity_misfit(world.learn(replace(CONFIG, penalty=100.0)).weights) < 0.05
    assert scaled_identity_misfit(world.learn(replace(CONFIG, penalty=0.0)).weights) > 0.5


@pytest.mark.parametrize("components", [None, 5])
@pytest.mark.parametrize("power", [None, 0.5])
def test_photos_of_hidden_concepts_have_no_influence_at_all(power: float | None, components: int | None) -> None:
    world, config = World(), replace(CONFIG, steps=3, power=power, components=components, noise=0.1, residuals=1.0)
    features = np.abs(world.features)
    altered = features.copy()
    altered[np.isin(world.concept, HIDDEN)] *= 7
    first = world.learn(config, features=features)
    assert same_bits(first, world.learn(config, features=altered))
    altered[world.concept == TRAIN[3]] *= 7  # and photos that are used have one
    assert not same_bits(first, world.learn(config, features=altered))


def test_vice_rows_of_hidden_concepts_have_no_influence_at_all() -> None:
    world, config = World(), replace(CONFIG, steps=3)
    first = world.learn(config)
    world.vice[HIDDEN] = 99.0
    assert same_bits(first, world.learn(config))
    world.vice[TRAIN[0]] = 0.5
    assert not same_bits(first, world.learn(config))


def test_photos_without_a_concept_count_by_their_mean_and_covariance_only() -> None:
    world, config = World(), replace(CONFIG, steps=10, components=5)
    mirrored, stretched = world.features.copy(), world.features.copy()
    nothing = world.concept < 0
    mirrored[nothing] = 2 * mirrored[nothing].mean(0) - mirrored[nothing]
    stretched[nothing] *= 3
    first = world.learn(config)
    np.testing.assert_allclose(world.learn(config, features=mirrored).weights, first.weights, atol=1e-3)
    assert np.abs(world.learn(config, features=stretched).weights - first.weights).max() > 0.05


def test_the_same_seed_gives_the_same_transform_and_another_seed_another() -> None:
    world, config = World(), replace(CONFIG, steps=5, noise=0.5, residuals=1.0)
    assert same_bits(world.learn(config, seed=1), world.learn(config, seed=1))
    assert not same_bits(world.learn(config, seed=1), world.learn(config, seed=2))


@pytest.mark.parametrize("change", [{"noise": 0.5}, {"penalty": 1.0}, {"triplets": 200}, {"steps": 4}, {"power": 0.9}])
def test_every_constant_has_a_say(change: dict[str, Any]) -> None:
    world, config = World(), replace(CONFIG, steps=3)
    world.features = np.abs(world.features)
    assert not same_bits(world.learn(config), world.learn(replace(config, **change)))


def test_components_rotate_to_the_leading_axes_of_the_photos() -> None:
    world = World()
    transform = world.learn(replace(CONFIG, steps=1, learning_rate=1e-12, components=3))
    axes = transform.weights / np.linalg.norm(transform.weights, axis=0)
    visible = world.features[~np.isin(world.concept, HIDDEN)]
    expected = np.linalg.svd(visible - visible.mean(0))[2][:3]
    assert transform.weights.shape == (WIDTH, 3)
    np.testing.assert_allclose(np.abs(expected @ axes), np.eye(3), atol=1e-3)


def blends_alike(world: World) -> bool:
    learned = [world.learn(replace(CONFIG, steps=3, residuals=blend)) for blend in (0.0, 1.0)]
    return same_bits(*learned)


def test_single_photos_borrow_differences_of_concepts_with_five_photos_and_others_do_not() -> None:
    world = World()
    assert blends_alike(world)  # nobody has a single photo
    first_of_each = np.unique(world.concept, return_index=True)[1][1:]
    kept = np.concatenate([np.flatnonzero(world.concept == 0), first_of_each[1:]])
    world.features, world.concept = world.features[kept], world.concept[kept]
    assert not blends_alike(world)  # singles borrow from the six of concept 0
    world.features, world.concept = world.features[2:], world.concept[2:]
    assert blends_alike(world)  # four of concept 0 are too few to lend


def test_the_divergence_is_zero_for_the_target_itself_and_positive_for_anything_else() -> None:
    target = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[0, 1, 2], [3, 4, 5], [5, 0, 3]])
    assert float(_kl(target, Targets(target), index)) == 0
    assert float(_kl(target * 1.5, Targets(target), index)) > 1e-3


def test_the_loss_is_the_one_worked_by_hand() -> None:
    # VICE: dot products ln 6, ln 3, 0 -> 0.6, 0.3, 0.1. The student sees three equal pairs: 1/3 each.
    a, b = np.log([6.0, 3.0])
    target = torch.tensor([[1.0, 1.0], [a, 0.0], [0.0, b]], dtype=torch.float64)
    expected = sum(p * np.log(p * 3) for p in (0.6, 0.3, 0.1))
    loss = _kl(torch.eye(3, dtype=torch.float64), Targets(target), torch.tensor([[0, 1, 2]]))
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_the_penalty_is_the_squared_distance_from_the_scaled_identity() -> None:
    # mean of the diagonal 3: differences -1, 4, 0, 1
    assert float(_identity_penalty(torch.tensor([[2.0, 4.0], [0.0, 4.0]]))) == 18
    assert float(_identity_penalty(torch.eye(3) * 2.5)) == 0


def test_the_learning_rate_warms_up_over_ten_steps_and_falls_to_zero() -> None:
    rates = [_schedule(step, 1000) for step in range(1000)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-3)
    assert rates[499] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0)
    assert (np.diff(rates[10:]) < 0).all()


def test_the_gradient_of_the_loss_equals_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    target = torch.rand(5, 4, dtype=torch.float64, generator=generator)
    weights = torch.randn(3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, generator=generator, requires_grad=True)
    index = torch.tensor([[0, 1, 2], [2, 3, 4], [4, 0, 1]])
    assert torch.autograd.gradcheck(lambda w, b: _kl(x @ w + b, Targets(target), index), (weights, bias))


def test_identical_posterior_samples_teach_what_the_mean_embedding_teaches() -> None:
    world, config = World(), replace(CONFIG, steps=20)
    mean = world.learn(config)
    world.vice = np.stack([world.vice] * 5)
    np.testing.assert_allclose(world.learn(config).weights, mean.weights, atol=1e-4)


def test_targets_are_the_mean_of_the_samples_probabilities() -> None:
    rng = np.random.default_rng(0)
    draws, index = np.maximum(rng.normal(1, 1, (40, 6, 3)), 0), np.array([[0, 1, 2], [3, 5, 1], [4, 2, 0]])
    p = Targets(torch.from_numpy(draws)).log_probabilities(torch.from_numpy(index)).exp().numpy()
    expected = np.mean([triplets.pair_probabilities(triplets.pair_similarities(z[index])) for z in draws], 0)
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    of_mean_logits = triplets.pair_probabilities(np.mean([triplets.pair_similarities(z[index]) for z in draws], 0))
    assert np.abs(p - of_mean_logits).max() > 0.05


def test_a_noisy_posterior_gives_softer_targets_and_a_less_certain_transform() -> None:
    world, index = World(), np.array([[0, 1, 2], [3, 5, 1], [4, 2, 0], [9, 11, 7], [6, 8, 10]])
    noisy = np.maximum(world.vice + np.random.default_rng(0).normal(0, 1, (60, *world.vice.shape)), 0)
    doubt, doubt_learned = [], []
    for vice in (noisy.mean(0), noisy):
        world.vice = vice
        targets = Targets(torch.from_numpy(vice)).log_probabilities(torch.from_numpy(index))
        doubt.append(float(triplets.entropy(targets.exp()).mean()))
        photos = world.learn().apply(world.features)[3 * index]  # photo 3 c is of concept c, or of c - 1
        sims = triplets.pair_similarities(photos.astype(np.float64))
        doubt_learned.append(triplets.entropy(triplets.pair_probabilities(sims)).mean())
    assert doubt[1] > doubt[0] + 0.1
    assert doubt_learned[1] > doubt_learned[0] + 0.05


@pytest.mark.parametrize("bad", [np.full((24, 3), np.nan), np.ones(24), np.ones((1, 2, 24, 3))])
def test_a_vice_that_cannot_be_is_refused(bad: Any) -> None:
    world = World()
    world.vice = bad
    with pytest.raises(ValueError, match=r"VICE is \(.*expected finite"):
        world.learn()


def test_more_components_than_features_are_refused() -> None:
    with pytest.raises(ValueError, match=rf"components is {WIDTH + 1}; the features have {WIDTH}"):
        World().learn(replace(CONFIG, components=WIDTH + 1))


def test_fewer_than_three_training_concepts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 training concepts.*expected 3 or more"):
        World().learn(train=np.array([0, 1]))


def test_a_training_concept_without_photos_is_named() -> None:
    world = World()
    world.concept[world.concept == 7] = -1
    with pytest.raises(ValueError, match=r"20 training concepts, of which \[7\] have no photo"):
        world.learn()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_with_their_photo(bad: float) -> None:
    world = World()
    world.features[17, 3] = bad
    with pytest.raises(ValueError, match="features of photo 17 are not finite"):
        world.learn()


def test_a_learning_rate_that_diverges_is_refused_with_its_step() -> None:
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d+; lower the learning rate"):
        World().learn(replace(CONFIG, learning_rate=1e25))


# --- the transform ----------------------------------------------------------------------------


def a_transform(power: float = np.nan, mean_size: int = 5) -> Transform:
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    mean = rng.normal(size=mean_size).astype(np.float32) if mean_size else np.array(0.3, np.float32)
    return Transform(weights, bias, mean, np.array(1.7, np.float32), np.array(power, np.float32))


@pytest.mark.parametrize("power", [np.nan, 0.25])
@pytest.mark.parametrize("mean_size", [0, 5])
def test_a_transform_survives_its_file(tmp_path: Path, power: float, mean_size: int) -> None:
    transform = a_transform(power, mean_size)
    transform.save(tmp_path / "t.npz")
    loaded = Transform.load(tmp_path / "t.npz")
    assert same_bits(loaded, transform)
    assert np.array_equal(loaded.power, transform.power, equal_nan=True)
    assert [file.name for file in tmp_path.iterdir()] == ["t.npz"]


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_published_glocal_file_is_read_and_applied_as_published(tmp_path: Path, with_bias: bool) -> None:
    weights, bias = np.array([[1.0, 0.0], [2.0, -1.0]]), np.array([0.5, 0.25])
    arrays: dict[str, Any] = {"weights": weights, "mean": np.array(0.5), "std": np.array(2.0)}
    np.savez(tmp_path / "transform.npz", **(arrays | {"bias": bias} if with_bias else arrays))
    got = Transform.load(tmp_path / "transform.npz").apply(np.array([[2.5, 4.5]], np.float32))
    # (2.5 - 0.5) / 2 = 1, (4.5 - 0.5) / 2 = 2: [1 + 4, -2]
    np.testing.assert_allclose(got, [[5.5, -1.75]] if with_bias else [[5.0, -2.0]])
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, r"lacks \['weights'\]"),
        ({"std": None, "mean": None}, r"lacks \['mean', 'std'\]"),
        ({"weights": np.ones(5)}, "do not fit together"),
        ({"weights": np.ones((5, 2))}, "do not fit together"),
        ({"bias": np.ones(4)}, "do not fit together"),
        ({"mean": np.ones(3)}, "do not fit together"),
        ({"mean": np.ones((1, 5))}, "do not fit together"),
        ({"std": np.ones(5)}, "must be single numbers"),
        ({"std": np.array(0.0)}, "std above 0"),
        ({"std": np.array(np.nan)}, "std above 0"),
        ({"std": np.array(np.inf)}, "std above 0"),
        ({"bias": np.array([0, np.nan, 0])}, r"\['bias'\] hold a value that is not finite"),
        ({"power": np.ones(5)}, "must be single numbers"),
    ],
)
def test_a_file_whose_arrays_do_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {"weights": np.ones((5, 3)), "bias": np.ones(3), "mean": np.ones(5), "std": np.array(1.0)} | change
    np.savez(tmp_path / "t.npz", **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=rf"t\.npz.*{message}"):
        Transform.load(tmp_path / "t.npz")


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.sampled_from([0, 5]))
def test_the_folded_map_is_the_same_map(seed: int, std: float, mean_size: int) -> None:
    rng = np.random.default_rng(seed)
    transform = replace(a_transform(mean_size=mean_size), std=np.array(std, np.float32))
    features = rng.normal(size=(4, 5)).astype(np.float32)
    weights, bias = transform.folded()
    np.testing.assert_allclose(features @ weights + bias, transform.apply(features), rtol=1e-4, atol=1e-4 / std)


def test_with_a_power_the_folded_map_follows_power_normalisation() -> None:
    transform, features = a_transform(power=0.3), np.random.default_rng(1).random((4, 5)).astype(np.float32)
    weights, bias = transform.folded()
    np.testing.assert_allclose(normalize_power(features, 0.3) @ weights + bias, transform.apply(features), atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e4, width=32), min_size=2, max_size=9), st.floats(0.05, 1))
def test_power_normalised_features_have_length_one_and_keep_their_order(values: list[float], power: float) -> None:
    features = np.array([values], np.float32)
    normalised = normalize_power(features, power)[0]
    assert np.linalg.norm(normalised) == pytest.approx(1, abs=1e-5)
    assert (np.diff(normalised[np.argsort(features[0])]) >= 0).all()


def test_a_small_power_makes_a_quiet_feature_louder() -> None:
    loud_and_quiet = np.array([[100.0, 1.0]], np.float32)
    ratios = [np.divide(*normalize_power(loud_and_quiet, power)[0]) for power in (1.0, 0.5, 0.1)]
    np.testing.assert_allclose(ratios, [100, 10, 100**0.1], rtol=2e-3)


def test_power_normalisation_refuses_negative_features() -> None:
    with pytest.raises(ValueError, match="features are negative"):
        normalize_power(np.array([[1.0, -1e-6]], np.float32), 0.5)
