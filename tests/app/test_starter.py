"""The bundle that ships inside the package, as a newcomer meets it."""

import base64
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.settings import STARTER
from contract.bundle import read_bundle

PHOTOS = Path(__file__).parents[2] / "docs" / "photos"
Serve = Callable[..., TestClient]


def test_the_starter_is_small_sound_and_says_what_it_was_measured_at() -> None:
    manifest = read_bundle(STARTER).manifest
    assert sum(file.stat().st_size for file in STARTER.iterdir()) <= 15_000_000
    assert all(space.calibrated for space in manifest.spaces.values())
    figures = {(f.space, f.name): f for f in manifest.figures}
    name = "agreement with VICE's most likely choice"
    before, after = figures["base", name], figures["aligned", name]
    assert before.high is not None and after.low is not None and before.high < after.low
    assert all(f.command and f.n for f in manifest.figures)


def test_two_animals_and_a_rocket_give_the_rocket(serve: Serve) -> None:
    files = [("images", (PHOTOS / f"{name}.jpg").read_bytes()) for name in ("cat", "raccoon", "rocket")]
    result = serve(bundle=STARTER).post("/odd-one-out", files=files).json()["results"][0]
    assert result["odd_one_out"] == 2
    assert 0.4 < result["probabilities"][2] < 0.9


def test_a_vector_is_the_same_alone_and_in_any_batch_bit_for_bit(serve: Serve) -> None:
    client = serve(bundle=STARTER, max_batch=4)
    items = [{"image": base64.b64encode(file.read_bytes()).decode()} for file in sorted(PHOTOS.iterdir())]
    headers = {"Accept": "application/octet-stream"}

    def rows(images: list[dict[str, str]]) -> list[bytes]:
        content = client.post("/embed", json={"images": images}, headers=headers).content
        return [row.tobytes() for row in np.frombuffer(content, "<f4").reshape(len(images), -1)]

    assert rows(items) == [row for item in items for row in rows([item])] == rows(items[::-1])[::-1]


@pytest.mark.realdata
def test_photos_of_two_animals_and_a_vehicle_give_the_vehicle(serve: Serve, realdata: Path) -> None:
    with (realdata / "things/concepts.csv").open(newline="") as stream:
        kinds = {row["things_index"]: row["categories"] for row in csv.DictReader(stream)}
    with (realdata / "images.csv").open(newline="") as stream:
        rows = [
            (kinds.get(row["things_index"], ""), row["things_index"], row["path"]) for row in csv.DictReader(stream)
        ]
    animals, vehicles = ([(c, p) for kind, c, p in rows if want in kind.split(";")] for want in ("animal", "vehicle"))
    client, rng, hits, n = serve(bundle=STARTER), np.random.default_rng(0), 0, 150
    for _ in range(n):
        first, second = (animals[i] for i in rng.choice(len(animals), 2, replace=False))
        chosen = [first, second, vehicles[rng.integers(len(vehicles))]]
        files = [("images", (realdata / path).read_bytes()) for _, path in chosen]
        hits += client.post("/odd-one-out", files=files).json()["results"][0]["odd_one_out"] == 2
    assert hits / n > 0.65, f"the vehicle is odd in {hits} of {n} triplets"
