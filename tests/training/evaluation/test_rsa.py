"""RSA: equal to scipy on the triangle, every layout read, order and kind of a matrix never guessed."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr

from tests.training.evaluation.worlds import tiny_setting
from training.evaluation import rsa
from training.evaluation.rsa import correlation, correlations, noise_ceiling, read_judgments, rsa_with_vice

RNG = np.random.default_rng(0)


def symmetric(n: int, seed: int = 0) -> np.ndarray:
    a = np.random.default_rng(seed).random((n, n))
    return np.asarray(a + a.T)


def photos(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / name)


def only(folder: Path) -> rsa.Judgments:
    (found,) = list(read_judgments(folder))
    return found


def test_correlation_is_spearman_of_the_pairs() -> None:
    a, b = symmetric(9, 1), symmetric(9, 2)
    pairs = [(i, j) for i in range(9) for j in range(i + 1, 9)]
    by_hand = spearmanr([a[p] for p in pairs], [b[p] for p in pairs]).statistic
    assert correlation(a, b) == pytest.approx(by_hand)
    assert correlation(a, np.exp(3 * a)) == pytest.approx(1)  # ranks alone count


def test_resampling_with_every_image_once_is_the_value_itself() -> None:
    a, b = symmetric(12, 1), symmetric(12, 2)
    assert rsa._moments([a], b)[0].correlation(np.ones(12)) == pytest.approx(correlation(a, b))


def test_resampling_is_drawing_images_without_their_pairs_with_themselves() -> None:
    moments = rsa._moments([symmetric(8, 1)], symmetric(8, 2))[0]
    drawn = RNG.integers(8, size=8)
    pairs = [(i, j) for x, i in enumerate(drawn) for j in drawn[x + 1 :] if i != j]
    by_hand = np.corrcoef([moments.x[p] for p in pairs], [moments.y[p] for p in pairs])[0, 1]
    assert moments.correlation(np.bincount(drawn, minlength=8).astype(float)) == pytest.approx(by_hand)


def test_similarities_that_do_not_vary_are_refused() -> None:
    with pytest.raises(ValueError, match="similarities by flat"):
        correlations({"flat": [np.ones((5, 5))]}, symmetric(5), 2, 0)


def test_the_ceiling_holds_a_participants_own_share() -> None:
    shared = symmetric(10, 3)
    people = np.stack([shared + 0.3 * symmetric(10, seed) for seed in range(4, 9)])
    low, high = noise_ceiling(people)
    assert 0.3 < low < high < 1


def test_cichy_is_averaged_over_participants_and_turned_into_similarity(tmp_path: Path) -> None:
    photos(tmp_path / "cichy/images", ["001.jpg", "002.jpg", "003.jpg", "010.jpg"])
    people = np.stack([symmetric(4, seed) for seed in range(3)])
    (tmp_path / "cichy/sim_judgements").mkdir()
    savemat(tmp_path / "cichy/sim_judgements/judgments_general.mat", {"judgments": people})
    found = only(tmp_path)
    assert np.allclose(found.similarity, -people.mean(0))
    assert found.participants is not None and found.participants.shape == (3, 4, 4)
    assert found.images.names == ("001.jpg", "002.jpg", "003.jpg", "010.jpg")


def test_king_has_two_sets_of_flat_pairs(tmp_path: Path) -> None:
    flat = RNG.random((2, 6))
    sets = {}
    for name in ("set1", "set2"):
        photos(tmp_path / "king/images" / name, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
        sets[name] = {"pairwisedistances": flat}
    (tmp_path / "king/sim_judgements").mkdir()
    savemat(tmp_path / "king/sim_judgements/BEHAVIOR.mat", {"BEHAVIOR": sets})
    first, second = read_judgments(tmp_path)
    assert (first.name, second.name) == ("king set1", "king set2")
    assert np.allclose(first.similarity, -squareform(flat.mean(0)))


def test_peterson_is_a_similarity_and_fruits_are_ordered_by_number(tmp_path: Path) -> None:
    photos(tmp_path / "peterson/animals/images", ["x01.png", "x02.png", "x10.png"])
    (tmp_path / "peterson/animals/sim_judgments").mkdir()
    people = symmetric(3)
    savemat(tmp_path / "peterson/animals/sim_judgments/a.mat", {"order": 1, "animal_sim": people})
    photos(tmp_path / "peterson/fruits/images", [f"a{i}.png" for i in range(1, 12)])
    ratings = {f"a{i}.png,a{j}.png": [i, j] for i in range(1, 12) for j in range(i + 1, 12)}
    (tmp_path / "peterson/fruits/sim_judgments").mkdir()
    (tmp_path / "peterson/fruits/sim_judgments/r.pickle").write_bytes(pickle.dumps(ratings))
    animals, fruits = read_judgments(tmp_path)
    assert np.allclose(animals.similarity, people)
    assert fruits.images.names[9] == "a10.png"  # the tenth, though it sorts second as text
    assert fruits.similarity[9, 0] == pytest.approx(5.5)


def test_a_pickle_with_more_than_plain_values_is_refused(tmp_path: Path) -> None:
    photos(tmp_path / "peterson/fruits/images", ["a1.png"])
    (tmp_path / "peterson/fruits/sim_judgments").mkdir()
    (tmp_path / "peterson/fruits/sim_judgments/r.pickle").write_bytes(pickle.dumps({"a": Path("x")}))
    with pytest.raises(ValueError, match="only plain values"):
        only(tmp_path)


def test_numbers_that_sort_otherwise_as_text_need_an_order(tmp_path: Path) -> None:
    photos(tmp_path / "cichy/images", ["1.jpg", "2.jpg", "10.jpg"])
    (tmp_path / "cichy/sim_judgements").mkdir()
    savemat(tmp_path / "cichy/sim_judgements/judgments_general.mat", {"judgments": symmetric(3)})
    with pytest.raises(ValueError, match=r"different orders, from '2\.jpg' on"):
        only(tmp_path)
    (tmp_path / "cichy/order.txt").write_text("1.jpg\n2.jpg\n10.jpg\n")
    assert only(tmp_path).images.names == ("1.jpg", "2.jpg", "10.jpg")


def test_any_matrix_is_aligned_by_its_names(tmp_path: Path) -> None:
    photos(tmp_path / "mine/images", ["a.png", "b.png", "c.png"])
    (tmp_path / "mine/similarity.csv").write_text(",c.png,a.png,b.png\nc.png,0,1,2\na.png,1,0,3\nb.png,2,3,0\n")
    found = only(tmp_path)
    assert found.images.names == ("c.png", "a.png", "b.png")
    assert found.similarity[1, 2] == 3
    (tmp_path / "mine/similarity.csv").write_text(",c.png,a.png,b.png\na.png,0,1,2\nc.png,1,0,3\nb.png,2,3,0\n")
    with pytest.raises(ValueError, match="another order"):
        only(tmp_path)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (symmetric(4), "as many as images"),
        (np.arange(9.0).reshape(3, 3), "not symmetric"),
        (np.full((3, 3), np.nan), "3 of 3 pairs of images have no number"),
        (np.arange(4.0), "not the pairs of any number"),
    ],
)
def test_matrices_that_cannot_be_of_these_images_are_refused(tmp_path: Path, matrix: np.ndarray, said: str) -> None:
    photos(tmp_path / "mine/images", ["a.png", "b.png", "c.png"])
    (tmp_path / "mine/names.txt").write_text("a.png\nb.png\nc.png\n")
    np.save(tmp_path / "mine/dissimilarity.npy", matrix)
    with pytest.raises(ValueError, match=said):
        only(tmp_path)


def test_an_image_that_is_not_there_is_counted(tmp_path: Path) -> None:
    photos(tmp_path / "mine/images", ["a.png"])
    (tmp_path / "mine/names.txt").write_text("a.png\nb.png\nc.png\n")
    np.save(tmp_path / "mine/similarity.npy", symmetric(3))
    with pytest.raises(ValueError, match="2 of 3 files do not exist"):
        only(tmp_path)


def test_with_vice_seeing_beats_noise(tmp_path: Path) -> None:
    rows = rsa_with_vice(tiny_setting(tmp_path, noise=1e6, vice=0.0)).rows
    value = {(r.model, r.setting): r.estimate for r in rows}
    assert value["vice", "cosine"].value > 0.6
    assert abs(value["noise", "pearson"].value) < 0.3
    assert value["vice - noise", "cosine"].low > 0
