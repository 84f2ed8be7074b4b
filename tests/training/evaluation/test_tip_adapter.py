"""Tip-Adapter: its arithmetic by hand, its training, and the whole of it with a tiny open_clip model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.evaluation.maps import unit
from training.evaluation.result import Constants, NotHere, Setting
from training.evaluation.subjects import Features, read_subject
from training.evaluation.text_tower import text_vectors
from training.evaluation.tip_adapter import cache_logits, class_vectors, fine_tuned, templates, tip_adapter


def test_the_cache_votes_as_the_paper_says() -> None:
    rng = np.random.default_rng(0)
    x, keys = unit(rng.normal(size=(4, 6))), unit(rng.normal(size=(5, 6)))
    onehot = np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 0]]
    by_hand = np.zeros((4, 3))
    for i in range(4):
        for j in range(5):
            by_hand[i] += 2.0 * np.exp(-3.0 * (1 - float(x[i] @ keys[j]))) * onehot[j]
    assert cache_logits(x, keys, onehot, alpha=2.0, beta=3.0) == pytest.approx(by_hand, abs=1e-5)


def test_several_sentences_of_a_class_are_averaged_as_directions() -> None:
    seen: list[str] = []
    length = {"a red fox": 1.0, "the red fox": 100.0}

    def embed(lines: list[str]) -> np.ndarray:
        seen.extend(lines)
        return np.array([[length[line], 0] if line[0] == "a" else [0, length[line]] for line in lines], np.float32)

    found = class_vectors(embed, ["red_fox"], ("a {}", "the {}"))
    assert seen == ["a red fox", "the red fox"]
    assert found == pytest.approx(np.array([[0.5**0.5, 0.5**0.5]]))


def test_fine_tuning_starts_at_the_shots_and_lowers_their_loss() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(4), 8)
    x = unit(np.eye(4, 12)[label] + rng.normal(size=(32, 12)) * 0.6)
    onehot, text = np.eye(4, dtype=np.float32)[label], rng.normal(size=(32, 4)).astype(np.float32)

    def loss(keys: np.ndarray) -> float:
        logits = torch.from_numpy(text + cache_logits(x, keys, onehot))
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(label)))

    keys = fine_tuned(x, label, onehot, text, 0)
    assert loss(keys) < loss(x) - 0.005
    assert 0 < np.abs(keys - x).max() < 20 * 1e-3 + 1e-6  # twenty steps of at most the rate
    assert np.array_equal(keys, fine_tuned(x, label, onehot, text, 0))


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model word of a tiny open_clip model with random weights."""
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), tmp_path / "clip.pt")
    return f"clip=open_clip:tiny-clip/@{tmp_path / 'clip.pt'}"


def test_a_tiny_open_clip_model_takes_part_and_others_do_not(tmp_path: Path, clip: str) -> None:
    rng = np.random.default_rng(0)
    for c, name in enumerate(("black", "red", "white")):
        for i in range(8):
            file = tmp_path / f"data/classification/paint/{name}/{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shade = [(0, 0, 0), (250, 0, 0), (250, 250, 250)][c] + rng.integers(0, 5, 3)
            Image.new("RGB", (16, 16), tuple(int(v) for v in shade)).save(file)
    np.save(tmp_path / "blind.npy", np.ones((24, 2), np.float32))
    subjects = (read_subject(clip), read_subject(str(tmp_path / "blind.npy")))
    setting = Setting(tmp_path / "data", subjects, Features(tmp_path / "f"), Constants(repetitions=5))
    found = tip_adapter(setting)
    value = {row.setting: row.estimate.value for row in found.rows}
    assert {row.model for row in found.rows} == {"clip"}
    assert set(value) == {
        "zero-shot",
        *[f"{n}, {how}" for n in ("1 shot", "10 shots") for how in ("training-free", "fine-tuned")],
    }
    assert value["10 shots, training-free"] >= value["zero-shot"]  # colours are told apart by any features
    assert "models without a text tower are left out." in found.notes
    with pytest.raises(NotHere, match="no model has a text tower"):
        tip_adapter(replace(setting, subjects=subjects[1:]))


def test_a_checkpoint_of_an_image_tower_alone_has_no_sentences(tmp_path: Path, clip: str) -> None:
    state = torch.load(tmp_path / "clip.pt", weights_only=True)
    torch.save({k: v for k, v in state.items() if k.startswith("visual.")}, tmp_path / "visual.pt")
    with pytest.raises(ValueError, match="has no text tower"):
        text_vectors(read_subject(f"open_clip:tiny-clip/@{tmp_path / 'visual.pt'}"), ["a word"])


def test_a_template_without_a_place_for_the_class_is_named(tmp_path: Path) -> None:
    from tests.training.evaluation.test_transfer import write_images
    from training.evaluation.image_sets import image_sets

    write_images(tmp_path / "classification/x", ["a/0.png", "a/1.png", "b/0.png", "b/1.png"])
    (tmp_path / "classification/x/templates.txt").write_text("a {}\na photo\n")
    setting = Setting(tmp_path, (), Features(tmp_path / "f"), Constants())
    with pytest.raises(ValueError, match=r"templates\.txt, line 2: 'a photo'"):
        templates(setting, image_sets(tmp_path, 0)[0])
