"""`python -m training embed`, as a process that is killed and as two processes of torchrun."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import write_photo
from training.__main__ import main

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def photos_in(folder: Path, n: int) -> Path:
    for seed in range(n):
        write_photo(folder / f"{'ab'[seed % 2]}/{seed:04d}.png", np.random.default_rng(seed).random(3), seed)
    return folder


def command(images: Path, out: Path, *more: str) -> list[str]:
    wanted = ["embed", "timm:test_vit", str(images), "--out", str(out), "--random-weights", "0"]
    return [*wanted, "--shard", "4", "--batch", "4", *more]


def test_a_command_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, one_thread: None) -> None:
    images, out = photos_in(tmp_path / "photos", 400), tmp_path / "out"
    argv = command(images, out, "--side", "224")
    process = subprocess.Popen([sys.executable, "-m", "training", *argv], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("shards/*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9  # it was killed before it was done
    left = {file.name: file.read_bytes() for file in out.glob("shards/*.npy")}
    assert 3 <= len(left) < 100 and not (out / "index.json").exists()
    main(argv)
    main(command(images, tmp_path / "unharmed", "--side", "224"))
    for name in ("features.npy", "names.txt", "groups.npy", "index.json"):
        assert (out / name).read_bytes() == (tmp_path / "unharmed" / name).read_bytes()
    features = np.load(out / "features.npy", mmap_mode="r")
    assert features.shape == (400, 64) and len(np.unique(features, axis=0)) == 400


def test_two_ranks_write_the_bytes_of_one(tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]) -> None:
    images = photos_in(tmp_path / "photos", 30)
    (images / "a/0006.png").write_bytes(b"harmed")
    main(command(images, tmp_path / "one", "--skip-unreadable"))
    assert json.loads(capsys.readouterr().out)["skipped"] == 1
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "training",
    ]
    done = subprocess.run(
        [*torchrun, *command(images, tmp_path / "two", "--skip-unreadable")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 29  # one rank reports
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "two").iterdir())
    for name in set(names) - {"identity.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_features_go_on_to_clusters_and_triplets(tmp_path: Path) -> None:
    images, out = photos_in(tmp_path / "photos", 40), tmp_path / "out"
    main(command(images, out))
    features = ["--features", str(out / "features.npy")]
    main(["cluster", *features, "--out", str(tmp_path / "k"), "--clusters", "4", "--elbow", "3", "4"])
    named = ["--names", str(out / "names.txt"), "--groups", str(out / "groups.npy"), "--root", str(tmp_path / "t")]
    main(
        [
            "triplets",
            *features,
            *named,
            "--triplets",
            "50",
            "--sampling",
            "class_border",
            "--transform",
            "untransformed",
        ]
    )
    files = list((tmp_path / "t").rglob("*.npz"))
    with np.load(files[0], allow_pickle=False) as triplets:
        assert triplets["filenames"].shape == (50, 3)


def test_another_feature_point_of_the_same_weights_is_not_taken_for_the_first(tmp_path: Path) -> None:
    images, out = photos_in(tmp_path / "photos", 3), tmp_path / "out"
    main(command(images, out))
    with pytest.raises(SystemExit, match="was made with another output"):
        main(command(images, out, "--output", "pooled"))
    main(command(images, tmp_path / "pooled", "--output", "pooled"))
    cls, pooled = (np.load(folder / "features.npy") for folder in (out, tmp_path / "pooled"))
    assert np.abs(cls - pooled).max() > 0.01


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--checkpoint", "x.pt"], "exclude each other"),
        (["--batch", "0"], "batch is 0"),
        (["--output", "map"], "no attention pool"),
    ],
)
def test_bad_options_end_with_a_message(tmp_path: Path, more: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        main(command(photos_in(tmp_path / "photos", 1), tmp_path / "out", *more))
