"""MODEL words: each kind is read, features are computed once, and what cannot be evaluated is named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from contract.bundle import read_bundle
from tests.training.tiny import TINY, TINY_MODEL, tiny_vit, write_photos, write_tiny_data
from training import embed
from training.evaluation.subjects import Features, NoFeatures, Split, read_subject
from training.models import MODELS
from training.readout import Readout, block_features, with_readout, write_readout
from training.run import run


def test_a_named_model_is_embedded_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    photos, subject = write_photos(tmp_path / "photos", 5), read_subject("mine=tiny")
    first = Features(tmp_path / "f").of(subject, photos)
    assert (subject.name, first.shape) == ("mine", (5, 64))
    monkeypatch.setattr(embed, "_compute", None)  # computing again would fail
    assert np.array_equal(Features(tmp_path / "f").of(subject, photos), first)


def test_a_checkpoint_with_a_readout_beside_it_is_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny-vit", replace(TINY_MODEL, source=lambda side: tiny_vit()))
    student, weights = with_readout(block_features(tiny_vit(), 2), 5), tmp_path / "weights.safetensors"
    photos = write_photos(tmp_path / "photos", 5)
    save_file(tiny_vit().module.backbone.state_dict(), weights)
    assert isinstance(student.module, Readout)
    write_readout(student.module, tmp_path / "readout.safetensors")
    subject = read_subject(f"student=tiny-vit@{weights}")
    assert Features(tmp_path / "f").of(subject, photos).shape == (5, 5)
    (tmp_path / "readout.safetensors").unlink()
    assert read_subject(f"student=tiny-vit@{weights}").identity != subject.identity


def test_a_bundle_gives_what_its_golden_vectors_say(tmp_path: Path, toy_bundle: Path) -> None:
    golden = read_bundle(toy_bundle).golden
    from training.images import FileImages

    for i, image in enumerate(golden.images):
        (tmp_path / f"{i}.png").write_bytes(image)
    images = FileImages(tmp_path, tuple(f"{i}.png" for i in range(len(golden.images))))
    found = Features(tmp_path / "f").of(read_subject(str(toy_bundle)), images)
    assert np.allclose(found, golden.vectors["aligned"], atol=1e-5)


def test_a_teachers_run_gives_the_transform_of_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    data = write_tiny_data(tmp_path / "data")
    run(TINY, data, tmp_path / "run")
    from training.align import Transform
    from training.run import read_data

    photos = read_data(data).photos
    raw = np.load(tmp_path / "run/features/features.npy")
    subject = read_subject(f"{tmp_path / 'run'}@1")
    expected = Transform.load(tmp_path / "run/splits/seed-1.npz").apply(raw)
    assert np.array_equal(Features(tmp_path / "f").of(subject, photos), expected)
    assert not (tmp_path / "f").exists()  # the run's own features, not computed again
    assert (subject.split, read_subject(str(tmp_path / "run")).split) == (Split(0.5, 1), None)
    assert "trained on all concepts" in read_subject(str(tmp_path / "run")).seen


def test_features_of_other_names_are_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    (tmp_path / "names.txt").write_text("1.png\n0.png\n")
    with pytest.raises(NoFeatures, match="of other images"):
        Features(tmp_path / "f").of(read_subject(str(tmp_path / "x.npy")), photos)


def test_a_feature_that_is_not_finite_is_named(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    np.save(tmp_path / "x.npy", np.array([[0.0], [np.nan]], np.float32))
    with pytest.raises(ValueError, match=r"x\.npy, row 1"):
        Features(tmp_path / "f").of(read_subject(str(tmp_path / "x.npy")), photos)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("resnet50", "no model: .*timm:NAME"),
        ("{}/none.npy", "no features at"),
        ("{}", "is no bundle, run folder or folder of `embed`"),
        ("{}/student", r"say which, as .*student@4"),
        ("{}/student@9", "splits of this run are"),
        ("timm:vit_small_patch16_224@{}/none.pt", "no checkpoint at"),
    ],
)
def test_words_that_name_no_model_are_refused(tmp_path: Path, word: str, said: str) -> None:
    (tmp_path / "student").mkdir()
    recipe = {"student": {"split_seeds": [4], "model": "tiny", "side": 8}}
    (tmp_path / "student/recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=said):
        read_subject(word.format(tmp_path))


def test_all_splits_of_a_run_its_base_and_transforms_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY_MODEL)
    from training.run import read_data

    photos = read_data(write_tiny_data(tmp_path / "data")).photos
    folder = tmp_path / "run"
    run(TINY, tmp_path / "data", folder)
    features, raw = Features(tmp_path / "f"), np.load(folder / "features/features.npy")
    every, base = read_subject(f"{folder}@all"), read_subject(f"{folder}@base")
    assert [one.split for one in every.splits] == [Split(0.5, 0), Split(0.5, 1)]
    second = features.of(every.of_split(1), photos)
    assert np.array_equal(second, features.of(read_subject(f"{folder}@1"), photos))
    assert np.array_equal(features.of(base, photos), raw) and base.of_split(1) is base
    moved = read_subject(f"moved={folder}@base@{folder / 'splits'}")
    assert np.array_equal(features.of(moved.of_split(1), photos), second)
    assert read_subject(f"{folder}@base@{folder / 'splits'}@0").split == Split(0.5, 0)
    with pytest.raises(ValueError, match=r"no seed-7\.npz; its splits are \[0, 1\]"):
        read_subject(f"{folder}@base@{folder / 'splits'}@7")
    with pytest.raises(ValueError, match="or base, all or final"):
        read_subject(f"{folder}@best")
