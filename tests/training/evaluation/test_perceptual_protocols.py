"""Perceptual protocols: counts, hits, Jaccard and depth by hand, heads that learn what tokens say; the whole suite."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.tiny import tiny_clip, tiny_vit, write_bapps, write_rows
from training.encoders import Encoder
from training.evaluation import dense
from training.evaluation.perceptual import count_by_neighbours, read_counts, read_judgments, top_hits
from training.evaluation.rag import UNCLEAR, class_of, nearest, vote
from training.evaluation.result import Constants, NotHere
from training.evaluation.subjects import Subject, read_subject
from training.evaluation.suites import evaluate
from training.images import load_image
from training.levels import Levels
from training.models import build
from training.perceptual.embedding import Ensemble, Headed


def circle(degrees: list[float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def test_counts_are_the_mean_of_the_neighbours_and_k_is_chosen_without_the_image_itself() -> None:
    # Pairs of equal counts side by side: one neighbour is exact, three are not.
    train, count = circle([0, 1, 20, 21, 40, 41]), np.array([1.0, 1, 5, 5, 9, 9])
    predicted, k = count_by_neighbours(train, count, circle([0.4, 22, 31]))
    assert k == 1 and predicted.tolist()[:2] == [1, 5]
    # Of all different counts no neighbour is exact, but the mean of three is on a line of counts.
    line = circle([float(i) for i in range(12)])
    predicted, k = count_by_neighbours(line, np.arange(12.0) % 2 * 2, circle([5.2]))
    assert k in (3, 5, 10) and 0 < predicted[0] < 2


def test_an_item_is_found_by_rank_and_a_tie_counts_against_the_model() -> None:
    gallery, items = circle([0, 10, 20, 30, 40, 50, 0]), np.array(list("abcdefb"))
    found = top_hits(circle([9, 21, 0]), gallery, np.array(["d", "c", "a"]), items)
    assert found["top 1"].tolist() == [0, 1, 0] and found["top 3"].tolist() == [0, 1, 1]
    assert found["top 5"].tolist() == [1, 1, 1]


def test_bad_counts_and_judgments_are_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "counts.csv", [["image", "count", "split"], ["a.png", "3", "train"], ["b.png", "x", "test"]])
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"images/{name}.png")
    with pytest.raises(ValueError, match="row 1"):
        read_counts(tmp_path)
    write_rows(tmp_path / "counts.csv", [["image", "count", "split"], ["a.png", "3", "val"]])
    with pytest.raises(ValueError, match="split is 'val'; expected train or test"):
        read_counts(tmp_path)
    with pytest.raises(ValueError, match=r"not laid out as NIGHTS, BAPPS or THINGS, and has no generated\.json"):
        read_judgments(tmp_path, 0)
    (tmp_path / "generated.json").write_text('{"gaps": [0.1, 0.2]}')
    with pytest.raises(ValueError, match=r"has \['gaps'\]; expected some of"):
        read_judgments(tmp_path, 0)


def test_the_nearest_labelled_photos_vote_and_the_nearest_breaks_a_tie() -> None:
    x, test = circle([0, 10, 20, 90, 1]), np.array([False, False, False, False, True])
    assert nearest(x, test).tolist() == [[0, 1, 2]]
    classes = np.array([["a", "b", "b"], ["c", "a", "b"]])
    assert vote(classes).tolist() == ["b", "c"]
    with pytest.raises(ValueError, match="2 labelled photos; expected 3 or more"):
        nearest(x[:3], np.array([False, False, True]))


def test_an_answer_names_one_class_or_none() -> None:
    classes = ["cat", "wild cat", "dog"]
    assert class_of("It is a Wild Cat.", classes) == "wild cat" and class_of("CAT", classes) == "cat"
    assert class_of("a cat or a dog", classes) == class_of("concatenated", classes) == UNCLEAR


def test_jaccard_and_depth_error_by_hand() -> None:
    truth = torch.tensor([[0, 0], [1, dense.IGNORED]])
    mine = torch.nn.functional.one_hot(torch.tensor([[0, 1], [1, 0]]), 3).permute(2, 0, 1).float()
    assert dense.jaccard(mine, truth) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert dense.depth_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])) == pytest.approx(2**0.5)


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_a_linear_head_learns_what_tokens_say(task: dense.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "RATE", 3e-2)
    monkeypatch.setitem(dense.BATCH, "depth", 4)
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (48, 4, 4))
    tokens = torch.nn.functional.one_hot(torch.from_numpy(classes), 3).permute(0, 3, 1, 2).float()
    truth = [torch.from_numpy(c) if task == "segmentation" else torch.from_numpy(c + 1).float() for c in classes]
    predict = dense.fit_head(tokens[:40], truth[:40], task, 0)
    score = dense.jaccard if task == "segmentation" else dense.depth_error
    values = [score(predict(tokens[i : i + 1], truth[i])[0], truth[i]) for i in range(40, 48)]
    assert np.mean(values) > 0.9 if task == "segmentation" else np.mean(values) < 0.4
    blind = dense.fit_head(torch.zeros_like(tokens[:40]), truth[:40], task, 0)
    guessed = [score(blind(0 * tokens[i : i + 1], truth[i])[0], truth[i]) for i in range(40, 48)]
    assert np.mean(guessed) < 0.5 if task == "segmentation" else np.mean(guessed) > 0.6


def test_tokens_are_those_of_the_network_branch_by_branch_and_a_head_reads_none() -> None:
    one, images = tiny_vit(0), _Noise()
    tokens = dense.patch_tokens(one, images)
    both = Ensemble([one.module, tiny_vit(1).module], "none")
    assert tokens.shape == (3, 12, 2, 2)
    double = dense.patch_tokens(Encoder(both, one.pixels, 24, one.base_model), images)
    torch.testing.assert_close(double[:, :12], tokens)
    headed = Encoder(Headed(one.module, 12, 4), one.pixels, 12, one.base_model)
    torch.testing.assert_close(dense.patch_tokens(headed, images), tokens)
    levels = Encoder(Levels(one.module, (12, 12)), one.pixels, 24, one.base_model)
    torch.testing.assert_close(dense.patch_tokens(levels, images), tokens)


class _Noise:
    """Three images of noise."""

    names, labels, sizes = ("a", "b", "c"), None, np.ones(3, np.int64)

    def __len__(self) -> int:
        return 3

    def where(self, row: int) -> str:
        return self.names[row]

    def read(self, row: int) -> bytes:
        import io

        stream = io.BytesIO()
        pixels = np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()


def write_world(data: Path) -> None:
    """Every layout that the suite reads, of noise: colours say item, class and count."""
    rng = np.random.default_rng(0)

    def image(file: Path, shade: float) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(40 + 40 * shade, 8, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file)

    for i in range(30):
        image(data / f"two-alternative/made/images/{i}.png", i % 5)
        image(data / f"instances/shop/{'gallery' if i % 2 else 'queries'}/{i // 2 % 5}/{i}.png", i // 2 % 5)
        image(data / f"counting/cells/images/{i}.png", i % 5)
        image(data / f"classification/shades/{i % 3}/{i}.png", i % 3)
        for task, folder in dense.TRUTH.items():
            part = data / task / "rooms" / ("train" if i < 20 else "test")
            image(part / f"images/{i}.png", i % 2)
            (part / folder).mkdir(parents=True, exist_ok=True)
            if task == "segmentation":
                Image.fromarray(np.full((16, 16), i % 2, np.uint8)).save(part / folder / f"{i}.png")
            else:
                np.save(part / folder / f"{i}.npy", np.full((16, 16), 1.0 + i % 2))
    (data / "two-alternative/made/generated.json").write_text(json.dumps({"longest": 16, "shares": [0.4, 0.1, 0.5]}))
    rows = [[f"{i}.png", i % 5, "train" if i < 20 else "test"] for i in range(30)]
    write_rows(data / "counting/cells/counts.csv", [["image", "count", "split"], *rows])


def test_the_suite_judges_before_against_after_on_every_layout(tmp_path: Path) -> None:
    write_world(tmp_path / "data")
    subjects = [Subject(name, {"seed": seed}, encoder=partial(tiny_vit, seed)) for seed, name in enumerate("ab")]
    evaluate(subjects, "perceptual", tmp_path / "data", tmp_path / "out", Constants(repetitions=5))
    for name in ("two-alternative", "instances", "counting", "segmentation", "depth", "nearest-examples"):
        rows = json.loads((tmp_path / f"out/protocols/{name}.json").read_text())["rows"]
        value = {(row["model"], row["figure"], row["setting"]): row["value"] for row in rows}
        for (model, figure, how), difference in value.items():
            if model == "b - a":
                assert difference == pytest.approx(value["b", figure, how] - value["a", figure, how])
        assert {model for model, _, _ in value} == {"a", "b", "b - a"}


def test_judgments_in_which_people_always_tie_judge_no_model_and_are_left_out(tmp_path: Path) -> None:
    write_bapps(tmp_path / "two-alternative/tied", {"val/cnn": [0.5, 0.5]})
    vit = [Subject("vit", {}, encoder=tiny_vit)]
    with pytest.raises(ValueError, match=r"people tie in all two-alternative trials of .*, which judge no model"):
        evaluate(vit, "two-alternative", tmp_path, tmp_path / "out")
    write_bapps(tmp_path / "two-alternative/some", {"val/cnn": [0.5, 0.5], "val/color": [0.5, 1, 0]})
    result = evaluate(vit, "two-alternative", tmp_path, tmp_path / "out").sections[0].result
    assert result is not None
    assert {(row.group, row.setting) for row in result.rows} == {("some", "all"), ("some", "color")}
    for name in ("tied", "some"):
        assert f"{name}: people tie in all trials of cnn, which is left out." in result.notes


def test_models_without_patches_take_no_part_and_are_named(tmp_path: Path) -> None:
    write_world(tmp_path / "data")
    cnn = partial(build, "timm:test_efficientnet", side=32, pretrained=False)
    both = [Subject("vit", {}, encoder=tiny_vit), Subject("cnn", {"cnn": 1}, encoder=cnn)]
    report = evaluate(both, "segmentation", tmp_path / "data", tmp_path / "both", Constants(repetitions=5))
    assert (result := report.sections[0].result) is not None
    assert {row.model for row in result.rows} == {"vit"}
    assert "without patch tokens, and left out: cnn." in result.notes
    with pytest.raises(ValueError, match=r"no model has patch tokens; a ViT of timm or open_clip has"):
        evaluate(both[1:], "segmentation,depth", tmp_path / "data", tmp_path / "one")


def test_open_clip_shows_its_own_patch_tokens_after_its_final_norm(tmp_path: Path) -> None:
    encoder = build(tiny_clip(tmp_path), pretrained=False)
    assert dense.has_patches(encoder.module)
    tokens = dense.patch_tokens(encoder, _Noise())
    pixels = torch.from_numpy(np.stack([load_image(_Noise(), row, encoder.pixels) for row in range(3)]))
    tower: Any = encoder.module.backbone
    with torch.inference_mode():
        x = tower.ln_post(tower.transformer(tower._embeds(encoder.module.normalized(pixels))))  # type: ignore[operator]
    assert tokens.shape == (3, 64, 4, 4)
    torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), x[:, 1:])


def test_data_without_sets_is_said_to_lack_them(tmp_path: Path) -> None:
    for name in ("segmentation", "depth", "counting", "instances", "two-alternative"):
        with pytest.raises(ValueError, match=r"nothing in .* to evaluate"):
            evaluate([Subject("a", {}, encoder=tiny_vit)], name, tmp_path, tmp_path / "out")
    assert issubclass(NotHere, ValueError)


def test_a_perceptual_run_is_a_model_as_aligned_and_as_it_started(tmp_path: Path) -> None:
    (tmp_path / "embedding.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no weights\.safetensors; finish it"):
        read_subject(f"after={tmp_path}")
    (tmp_path / "weights.safetensors").write_bytes(b"1")
    after, before = read_subject(f"after={tmp_path}"), read_subject(f"before={tmp_path}@before")
    assert after.name == "after" and set(after.identity) == {"embedding.json", "weights.safetensors"}
    assert before.identity != after.identity and not before.seen
    with pytest.raises(ValueError, match="has no part 'middle'"):
        read_subject(f"{tmp_path}@middle")
