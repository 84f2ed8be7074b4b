"""Files of triplets: the official layout there and back, images found by name, and gates that stop the wrong ones."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.triplets import entropy, pair_probabilities, tie_rate
from training.triplet_files import KEYS, Names, join, read, read_names, synsets, write_shard
from training.triplet_gates import Gates, load
from training.triplet_sampling import Groups, sample
from training.triplets import label

N = 120
CLASSES = np.arange(N) % 6
NAMES = np.array([f"n{c:08d}_{i}.JPEG" for i, c in enumerate(CLASSES)])
FEATURES = (np.eye(6, 9)[CLASSES] + np.random.default_rng(0).normal(0, 0.3, (N, 9))).astype(np.float32)


def arrays(n: int = 300, seed: int = 0) -> dict[str, Any]:
    """Class-border triplets, honestly labelled."""
    rng = np.random.default_rng(seed)
    groups = Groups.of(CLASSES, "class_border")
    rows, sims = label(FEATURES, sample("class_border", n, rng, N, groups))
    return {"filenames": NAMES[rows], "similarities": sims, "indices": rows}


def written(folder: Path, name: str = "train_class_border.npz", **arrays: Any) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def names(order: np.ndarray | None = None) -> Names:
    return Names(NAMES if order is None else NAMES[order], "photos")


TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=0x3000), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(TEXT, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 12))
def test_shards_and_their_join_say_what_was_written_in_any_chunks(
    tmp_path_factory: pytest.TempPathFactory, text: str, sizes: list[int], rows: int
) -> None:
    folder, parts, start = tmp_path_factory.mktemp("set"), [], 0
    for size in sizes:
        part = arrays(size, seed=start)
        part["filenames"] = np.strings.add(text, part["filenames"])
        write_shard(folder / f"{start:010d}.npz", **part)
        parts.append(part)
        start += size
    join(folder, folder / "all.npz")
    with np.load(folder / "all.npz", allow_pickle=False) as official:
        assert official.files == list(KEYS)
        for key in KEYS:
            assert np.array_equal(official[key], np.concatenate([part[key] for part in parts]))
            for path in (folder, folder / "all.npz"):
                chunks = list(read(path, rows=rows))
                assert max(len(chunk.indices) for chunk in chunks) <= rows  # memory is bounded by this
                assert np.array_equal(np.concatenate([getattr(c, key) for c in chunks]), official[key])


def test_compressed_files_and_files_of_bytes_and_doubles_are_read(tmp_path: Path) -> None:
    honest = arrays()
    other = {"filenames": honest["filenames"].astype("S"), "similarities": honest["similarities"].astype(np.float64)}
    np.savez_compressed(tmp_path / "train_class_border.npz", **{**honest, **other}, more=np.zeros(3))
    loaded = load(tmp_path / "train_class_border.npz", names(), Gates())
    assert np.array_equal(loaded.rows, honest["indices"])
    assert np.array_equal(loaded.similarities, honest["similarities"]) and loaded.similarities.dtype == np.float32


def test_images_are_found_by_name_whatever_the_indices_and_the_order_of_ones_own(tmp_path: Path) -> None:
    honest = arrays()
    order = np.random.default_rng(1).permutation(N)
    lying = written(tmp_path, **{**honest, "indices": honest["indices"][::-1] * 7 - 3})
    rows = load(lying, names(order), Gates(), features=FEATURES[order]).rows
    assert np.array_equal(order[rows], honest["indices"])


def test_a_name_without_folder_finds_a_file_in_one_unless_two_have_it(tmp_path: Path) -> None:
    for path in ("a/1.png", "a/2.png", "b/2.png", "c/3.png"):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).touch()
    mine = Names(read_names(tmp_path / "images"), "images")
    assert mine.names.tolist() == ["a/1.png", "a/2.png", "b/2.png", "c/3.png"]
    one = {"similarities": np.ones((2, 3)), "indices": np.zeros((2, 3), int)}
    for wanted, result in {
        ("1.png", "3.png", "b/2.png"): [0, 3, 2],
        ("1.png", "2.png", "3.png"): r"x\.npz, row 1: '2\.png' stands for several of the 4 images of images",
        ("1.png", "b/3.png", "3.png"): r"x\.npz, row 1: 'b/3\.png' is not among the 4 images of images",
    }.items():
        path = written(tmp_path, "x.npz", filenames=np.array([("1.png", "1.png", "1.png"), wanted]), **one)
        if isinstance(result, list):
            assert load(path, mine, Gates()).rows[1].tolist() == result
        else:
            with pytest.raises(ValueError, match=result):
                load(path, mine, Gates())


def test_names_come_from_text_or_numpy_and_must_be_there_once(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    np.save(tmp_path / "names.npy", NAMES.astype("S"))
    assert read_names(tmp_path / "names.txt").tolist() == read_names(tmp_path / "names.npy").tolist() == NAMES.tolist()
    np.save(tmp_path / "names.npy", np.arange(3))
    (tmp_path / "none.txt").touch()
    for file, message in (("names.npy", "expected one file name"), ("none.txt", "no file names")):
        with pytest.raises(ValueError, match=message):
            read_names(tmp_path / file)
    with pytest.raises(ValueError, match="photos, row 2: 'a' is there twice"):
        Names(np.array(["a", "b", "a"]), "photos")


def test_synsets_are_of_the_last_part_and_a_name_without_is_named() -> None:
    assert synsets(np.array(["n01440764_1.JPEG", "train/n01440764/n01440765_2.JPEG"]), "x").tolist() == [
        "n01440764",
        "n01440765",
    ]
    with pytest.raises(ValueError, match=r"x, row 12: 'cat\.jpg' does not begin with a WordNet number"):
        synsets(np.array([["n01440764_1"] * 3, ["n01440764_1"] * 3, ["n01440764_1", "cat.jpg", "n0144076_1"]]), "x", 10)


def test_an_honest_file_passes_every_gate_and_is_described(tmp_path: Path) -> None:
    honest = arrays()
    report = load(written(tmp_path, **honest), names(), Gates(), features=FEATURES).report
    p = pair_probabilities(honest["similarities"])
    assert report["correlation"] == pytest.approx(1, abs=1e-4)
    assert 0.85 < report["images_0_and_1_of_one_group"] <= 1
    assert report["entropy"] == pytest.approx(entropy(p).mean(), rel=1e-5)
    assert report["confident"] == (p.max(1) > 0.99).mean()
    assert report["ties"] == tie_rate(honest["similarities"]) * 300
    by_class = load(written(tmp_path, **honest), names(), Gates(), classes=CLASSES).report
    assert by_class["images_0_and_1_of_one_group"] == report["images_0_and_1_of_one_group"]


def odd_first(a: dict[str, Any]) -> dict[str, Any]:
    return {"filenames": a["filenames"][:, ::-1], "similarities": a["similarities"][:, ::-1], "indices": a["indices"]}


def names_shuffled_in_rows(a: dict[str, Any]) -> dict[str, Any]:
    return {**a, "filenames": np.random.default_rng(0).permuted(a["filenames"], axis=1)}


def names_of_another_order(a: dict[str, Any]) -> dict[str, Any]:
    return {**a, "filenames": NAMES[np.random.default_rng(0).permutation(N)][a["indices"]]}


def rows_shuffled(a: dict[str, Any]) -> dict[str, Any]:
    return {**a, "filenames": np.random.default_rng(0).permutation(a["filenames"])}


def images_renamed_within_classes(a: dict[str, Any]) -> dict[str, Any]:
    """Every class keeps its names, but they belong to other images of it."""
    other = np.arange(N)
    for c in range(6):
        other[c == CLASSES] = np.random.default_rng(c).permutation(other[c == CLASSES])
    return {**a, "filenames": NAMES[other][a["indices"]]}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (odd_first, r"train_class_border\.npz, row \d+: similarities .* must be the largest.*is the odd one last"),
        (names_shuffled_in_rows, r"of one class in 3\d\.\d% .* One third is chance.*make the triplets anew"),
        (names_of_another_order, r"train_class_border\.npz, row \d+: .* exactly two are of one class"),
        (rows_shuffled, r"similarities computed again correlate .* by -?0\.[01]\d .*rows are shuffled"),
        (images_renamed_within_classes, r"similarities computed again correlate"),
    ],
)
def test_a_gate_stops_a_file_that_is_out_of_step(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(written(tmp_path, **spoil(arrays())), names(), Gates(), features=FEATURES)


def test_other_sensible_features_pass_the_correlation(tmp_path: Path) -> None:
    other = FEATURES + np.random.default_rng(5).normal(0, 0.1, FEATURES.shape)
    report = load(written(tmp_path, **arrays()), names(), Gates(sample=200), features=other).report
    assert 0.2 < report["correlation"] < 0.99


def test_one_wrong_row_and_a_similarity_that_is_no_number_are_found_and_named(tmp_path: Path) -> None:
    for column, value in ((1, 99.0), (0, np.nan), (2, np.nan)):
        honest = arrays()
        honest["similarities"][37, column] = value
        with pytest.raises(ValueError, match=r"row 37: similarities .* 1 of 300 rows"):
            load(written(tmp_path, **honest), names(), Gates())


def test_similarities_all_alike_have_no_correlation(tmp_path: Path) -> None:
    constant = {**arrays(), "similarities": np.ones((300, 3))}
    with pytest.raises(ValueError, match="of 300 rows do not vary"):
        load(written(tmp_path, **constant), names(), Gates(), features=FEATURES)
    assert load(written(tmp_path, **constant), names(), Gates()).report["ties"] == 300


def test_the_border_gates_are_for_border_files_or_when_asked(tmp_path: Path) -> None:
    spoilt = names_of_another_order(arrays())
    path = written(tmp_path, "train_random.npz", **spoilt)
    assert load(path, names(), Gates()).report["images_0_and_1_of_one_group"] is None
    with pytest.raises(ValueError, match="exactly two"):
        load(path, names(), Gates(), class_border=True)
    with pytest.raises(ValueError, match="119 rows of features for 120 images of photos"):
        load(path, names(), Gates(), features=FEATURES[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": None}, r"x\.npz lacks indices; it has filenames\.npy, similarities\.npy"),
        ({"similarities": np.ones((299, 3))}, r"x\.npz: .* different numbers of rows.*299"),
        ({"similarities": np.ones((300, 2))}, r"x\.npz: similarities is float64 \(300, 2\)"),
        ({"indices": np.ones((300, 3))}, r"x\.npz: indices is float64"),
        ({"filenames": np.full((300, 3), "a", object)}, r"x\.npz: filenames is object"),
    ],
)
def test_a_file_of_another_layout_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    changed = {key: value for key, value in {**arrays(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        list(read(written(tmp_path, "x.npz", **changed)))


def test_files_cut_short_damaged_empty_or_absent_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "x.npz", **arrays())
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("similarities.npy").header_offset + 400
    for spoilt in (data[:5000], b"", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match=r"x\.npz is (cut short or no npz|cut short or damaged) .* remove it"):
            list(read(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no shards"):
        list(read(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError):
        list(read(tmp_path / "absent.npz"))
    with pytest.raises(ValueError, match="has no triplets"):
        load(written(tmp_path, **{key: value[:0] for key, value in arrays().items()}), names(), Gates())


def test_arrays_that_do_not_belong_together_are_not_written(tmp_path: Path) -> None:
    honest = arrays()
    with pytest.raises(ValueError, match=r"y\.npz: filenames, similarities, indices are .* expected all \(n, 3\)"):
        write_shard(tmp_path / "y.npz", honest["filenames"], honest["similarities"][:9], honest["indices"])
    assert not list(tmp_path.iterdir())


def test_thresholds_are_those_given(tmp_path: Path) -> None:
    load(written(tmp_path, **names_shuffled_in_rows(arrays())), names(), Gates(agreement=0.2))
    load(written(tmp_path, **rows_shuffled(arrays())), names(), Gates(correlation=-0.5), features=FEATURES)
    path = written(tmp_path, **arrays())
    for gates in (Gates(agreement=0.999), Gates(correlation=1.01)):
        with pytest.raises(ValueError, match="expected at least"):
            load(path, names(), gates, features=FEATURES)
