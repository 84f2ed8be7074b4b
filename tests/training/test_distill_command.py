"""`python -m training distill`: from photos, vectors and clusters, or from triplets that were judged, to weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.tiny import write_photo
from training.__main__ import main
from training.models import build
from training.student_model import read_student

ROOT = Path(__file__).parents[2]
SMALL = "--batch 8 --per-group 2 --triplets-per-step 40 --steps 4 --warmup 1 --checkpoint-every 2 --precision fp32"


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with photos/, vectors.npy and groups.npy of 20 images."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        write_photo(tmp_path / f"photos/{seed:02d}.png", rng.random(3), seed)
    np.save(tmp_path / "vectors.npy", rng.normal(size=(20, 4)).astype(np.float32))
    np.save(tmp_path / "groups.npy", np.arange(20) % 4)
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    argv = ["distill", "timm:test_vit", str(folder / "photos"), "--out", str(folder / "out"), "--random-weights", "0"]
    return [*argv, *SMALL.split(), *more]


def distill(folder: Path, *more: str) -> None:
    main(command(folder, *more))


def test_the_weights_it_writes_are_a_checkpoint_for_the_same_model(inputs: Path) -> None:
    distill(inputs, "--teacher", str(inputs / "vectors.npy"), "--groups", str(inputs / "groups.npy"))
    start = build("timm:test_vit", pretrained=False).module.state_dict()
    trained = build("timm:test_vit", checkpoint=inputs / "out/weights.safetensors").module.state_dict()
    assert set(trained) == set(start)
    assert not all(torch.equal(trained[name], start[name]) for name in start)
    assert len((inputs / "out/log.jsonl").read_text().splitlines()) == 4
    assert json.loads((inputs / "out/config.json").read_text())["config"]["temperature"] == 100


def write_triplets(file: Path, similarities: np.ndarray) -> list[str]:
    """Random triplets of the 20 photos with these similarities [t, 3]; the option that names them."""
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(20), (len(similarities), 1)), axis=1)[:, :3]
    names = np.array([f"{i:02d}.png" for i in range(20)])
    np.savez(file, filenames=names[rows], similarities=similarities, indices=rows)
    return ["--triplets", str(file)]


def test_judged_triplets_are_read_through_their_gates(inputs: Path) -> None:
    similarities = np.tile(np.float32([3, 1, 0]), (60, 1))
    distill(inputs, *write_triplets(inputs / "train_random.npz", similarities))
    assert (inputs / "out/weights.safetensors").exists()
    turned = write_triplets(inputs / "train_random.npz", similarities[:, ::-1].copy())
    with pytest.raises(SystemExit, match="error"):
        distill(inputs, *turned, "--out", str(inputs / "other"))


def test_a_run_goes_on_with_the_triplets_and_photos_that_it_began_with(inputs: Path) -> None:
    similarities = np.tile(np.float32([3, 1, 0]), (60, 1))
    triplets = write_triplets(inputs / "train_random.npz", similarities)
    distill(inputs, *triplets)
    similarities[-1] = [4, 1, 0]  # a row that the first step does not draw
    write_triplets(inputs / "train_random.npz", similarities)
    with pytest.raises(SystemExit, match=r"another inputs; .* differs in inputs\.similarities\."):
        distill(inputs, *triplets)
    write_photo(inputs / "photos/07.png", (0.5, 0.5, 0.5), 99)
    with pytest.raises(SystemExit, match=r"differs in inputs\.images, inputs\.similarities\."):
        distill(inputs, *triplets)
    with pytest.raises(SystemExit, match=r"differs in inputs\.feed, "):
        distill(inputs, *triplets, "--feed-seed", "1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.ones((19, 4), np.float32)}, "a row for each of the 20 images"),
        ({"groups": np.arange(19)}, "a number for each of the 20 images"),
        ({"vectors": np.full((20, 4), np.nan, np.float32)}, "image 0 is not finite"),
        ({"groups": np.arange(20)}, "0 groups have two or more images"),
    ],
)
def test_what_does_not_fit_the_images_is_named(inputs: Path, change: dict[str, np.ndarray], message: str) -> None:
    for name, array in change.items():
        np.save(inputs / f"{name}.npy", array)
    with pytest.raises(SystemExit, match=message):
        distill(inputs, "--teacher", str(inputs / "vectors.npy"), "--groups", str(inputs / "groups.npy"))


def test_a_photo_that_does_not_decode_is_named_and_neither_or_both_teachers_are_refused(inputs: Path) -> None:
    with pytest.raises(SystemExit, match="either --teacher with --groups, or --triplets"):
        distill(inputs)
    for file in (inputs / "photos").iterdir():
        file.write_bytes(b"harmed")
    with pytest.raises(SystemExit, match=r"photos/\d\d.png"):
        distill(inputs, "--teacher", str(inputs / "vectors.npy"), "--groups", str(inputs / "groups.npy"))


def test_a_readout_makes_the_embedding_as_long_as_the_teachers_vectors(inputs: Path) -> None:
    given = ["--teacher", str(inputs / "vectors.npy"), "--groups", str(inputs / "groups.npy")]
    distill(inputs, *given, "--readout-blocks", "2", "--regression", "1", "--regress", "embedding")
    encoder = build("timm:test_vit", pretrained=False)
    assert read_student(encoder, inputs / "out/weights.safetensors").size == 4
    with pytest.raises(SystemExit, match="--readout-blocks needs the vectors"):
        distill(inputs, given[0], given[1], "--readout-blocks", "2")


def test_a_photo_that_embed_left_out_is_left_out_of_the_student_by_name(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inputs / "photos/05.png").write_bytes(b"harmed")
    features, groups = str(inputs / "e/features.npy"), str(inputs / "k/assignments.npy")
    model = ["embed", "timm:test_vit", str(inputs / "photos"), "--random-weights", "0", "--side", "32"]
    main([*model, "--out", str(inputs / "e"), "--skip-unreadable"])
    main(["cluster", "--features", features, "--out", str(inputs / "k"), "--clusters", "3", "--elbow"])
    distill(inputs, "--teacher", features, "--groups", groups, "--side", "32", "--batch", "6")
    assert (inputs / "out/weights.safetensors").exists()
    assert "1 of 20 images" in (said := capsys.readouterr().err) and "'05.png'" in said


def test_only_photos_that_judged_triplets_name_must_be_there(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("training.distill.distill", lambda *_, **given: seen.update(given))
    listed = inputs / "photos.csv"
    listed.write_text("path\n" + "".join(f"photos/{i:02d}.png\n" for i in [*range(20), 99]))
    triplets = write_triplets(inputs / "train_random.npz", np.tile(np.float32([3, 1, 0]), (60, 1)))
    argv = ["distill", "timm:test_vit", str(listed), "--out", str(inputs / "out"), "--random-weights", "0", *triplets]
    main([*argv, "--batch", "8"])
    assert seen["inputs"]["feed"]["feed"] == "labelled"
    (inputs / "photos/07.png").unlink()
    with pytest.raises(SystemExit, match=r"1 of 20 files do not exist, the first is 'photos/07\.png'"):
        main([*argv, "--batch", "8"])


def write_class_border(folder: Path) -> str:
    """60 triplets by `triplets` on the border of the classes in groups.npy; their file."""
    groups, names = np.load(folder / "groups.npy"), ["--names", str(folder / "photos")]
    np.save(folder / "kinds.npy", np.eye(4, dtype=np.float32)[groups])
    made = ["--features", str(folder / "kinds.npy"), *names, "--groups", str(folder / "groups.npy")]
    main(["triplets", *made, "--root", str(folder / "t"), "--sampling", "class_border", "--triplets", "60"])
    return str(folder / "t/uncertainty_distillation/train_class_border.npz")


def test_class_border_triplets_of_ones_own_classes_are_distilled(inputs: Path) -> None:
    file, classes = write_class_border(inputs), str(inputs / "groups.npy")
    main(["check-triplets", file, "--names", str(inputs / "photos"), "--classes", classes])
    distill(inputs, "--triplets", file, "--classes", classes)
    assert (inputs / "out/weights.safetensors").exists()


def test_classes_that_do_not_fit_the_triplets_or_the_images_are_refused(inputs: Path) -> None:
    file, groups = write_class_border(inputs), str(inputs / "groups.npy")
    for name, array in (("others", np.arange(20) // 10), ("short", np.arange(19)), ("floats", np.ones(20))):
        np.save(inputs / f"{name}.npy", array)
    for given, message in (
        (["--classes", f"{inputs}/others.npy"], "names do not belong to these triplets"),
        (["--classes", f"{inputs}/short.npy"], r"short\.npy is \(19,\); expected a number for each of the 20 images"),
        (["--classes", f"{inputs}/floats.npy"], r"floats\.npy is float64 \(20,\); expected a whole number"),
        ([], "does not begin with a WordNet number.*--classes"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["check-triplets", file, "--names", str(inputs / "photos"), *given])
        with pytest.raises(SystemExit, match=message):
            distill(inputs, "--triplets", file, *given)
    with pytest.raises(SystemExit, match="--classes checks --triplets"):
        distill(inputs, "--teacher", f"{inputs}/vectors.npy", "--groups", groups, "--classes", groups)


KILLED = """
import os, signal, sys
import torch
from training.__main__ import main
save, saved = torch.save, []
def deadly(state, stream):
    saved.append(1)
    if len(saved) == 2:  # in the middle of the second checkpoint
        stream.write(b"PK half"); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)
    save(state, stream)
torch.save = deadly
main(sys.argv[1:])
"""


def test_a_command_that_is_killed_goes_on_to_the_same_bytes(inputs: Path, one_thread: None) -> None:
    out = inputs / "killed"
    given = ["--teacher", str(inputs / "vectors.npy"), "--groups", str(inputs / "groups.npy"), "--side", "32"]
    argv = command(inputs, *given, "--out", str(out))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, *argv], cwd=ROOT, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    log = (out / "log.jsonl").read_text().splitlines()
    assert torch.load(out / "checkpoint.pt")["step"] == 2 and not (out / "weights.safetensors").exists()
    main(argv)
    assert (out / "log.jsonl").read_text().splitlines()[:2] == log[:2]  # with their times: not taken again
    distill(inputs, *given)
    assert (out / "weights.safetensors").read_bytes() == (inputs / "out/weights.safetensors").read_bytes()
