"""Explanations of the odd one out: maps by occlusion, what a pair shares, and the limits of asking for them."""

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from app import occlusion
from app.embedder import Embedder
from app.engine import OnnxEngine
from app.schemas import OddOneOutReply
from contract.pixels import PixelSpec
from tests.toy import SIDE, SIZE, encoded, write_toy_bundle

Serve = Callable[..., TestClient]
G = occlusion.GRID
NAMES = ("red", "green", "blue", "nothing", "nothing else")


@pytest.fixture(scope="module")
def corner_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its base space has the sums of red, green and blue (0..1) over the four pixels of the upper left corner."""
    pool = np.zeros((3, SIDE, SIDE, SIZE), np.float32)
    for channel in range(3):
        pool[channel, :2, :2, channel] = 1
    target = tmp_path_factory.mktemp("corner") / "bundle"
    return write_toy_bundle(target, pool=pool.reshape(-1, SIZE), dimensions=NAMES)


def picture(corner: tuple[int, int, int], rest: tuple[int, int, int] = (60, 60, 60)) -> NDArray[np.uint8]:
    """[8, 8, 3], which is what the model gets."""
    out = np.full((SIDE, SIDE, 3), rest, np.uint8)
    out[:2, :2] = corner
    return out


PICTURES = [picture((200, 10, 10)), picture((180, 40, 0)), picture((10, 10, 220))]


def asked(pictures: list[NDArray[np.uint8]] = PICTURES, **options: Any) -> dict[str, Any]:
    files = [encoded(Image.fromarray(pixels)) for pixels in pictures]
    items = [{"image": base64.b64encode(file).decode()} for file in files]
    return {"images": items, "space": "base", "explain": True, **options}


@pytest.fixture
def corner(serve: Serve, corner_bundle: Path) -> TestClient:
    return serve(bundle=corner_bundle, min_image_side=SIDE)


def explained(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    reply = client.post("/odd-one-out", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json()["results"][0]["explanation"])


def log_p_odd(corners: NDArray[np.float64], odd: int) -> float:
    """By hand: ln of the softmax of the dot products / 2, of the pair that leaves `odd`."""
    pairs = {2: (0, 1), 1: (0, 2), 0: (1, 2)}
    powers = {left: np.exp(corners[a] @ corners[b] / 2) for left, (a, b) in pairs.items()}
    return float(np.log(powers[odd] / sum(powers.values())))


def test_the_map_peaks_where_the_model_looks_and_is_zero_elsewhere(corner: TestClient) -> None:
    explanation = explained(corner, asked())
    assert explanation["odd_one_out"] == 2
    assert [image["image"] for image in explanation["images"]] == [0, 1, 2]
    for image in explanation["images"]:
        drop = np.array(image["map"])
        assert drop.shape == (G, G)
        assert np.unravel_index(np.abs(drop).argmax(), drop.shape) == (0, 0)
        assert abs(drop[0, 0]) > 0.05
        assert abs(drop[2:, :]).max() < 1e-6
        assert abs(drop[:, 2:]).max() < 1e-6
    # Red of the two that are alike speaks for the answer; so does it that the odd one is blue.
    assert all(np.array(image["map"])[0, 0] > 0 for image in explanation["images"])


def test_the_drop_is_that_of_a_computation_by_hand(corner: TestClient) -> None:
    explanation = explained(corner, asked())
    full = np.stack([pixels[:2, :2].sum((0, 1)) / 255 for pixels in PICTURES])
    assert explanation["log_probability"] == pytest.approx(log_p_odd(full, 2), abs=1e-5)
    for i, pixels in enumerate(PICTURES):
        mean = pixels.astype(np.float64).mean((0, 1)).round()
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (6, 6)):
            covered = pixels.astype(np.float64)
            covered[row : row + 2, column : column + 2] = mean  # of 8 pixels a place has 2, a step apart
            changed = full.copy()
            changed[i] = covered[:2, :2].sum((0, 1)) / 255
            drop = log_p_odd(full, 2) - log_p_odd(changed, 2)
            assert explanation["images"][i]["map"][row][column] == pytest.approx(drop, abs=1e-5)


def test_the_pair_shares_red_and_a_little_green(corner: TestClient) -> None:
    shared = explained(corner, asked())["shared"]
    red, green = (4 * 200 / 255) * (4 * 180 / 255), (4 * 10 / 255) * (4 * 40 / 255)
    assert shared["pair"] == [0, 1]
    assert shared["similarity"] == pytest.approx(red + green, rel=1e-5)
    assert [one["name"] for one in shared["dimensions"]] == ["red", "green"]
    assert shared["dimensions"][0]["product"] == pytest.approx(red, rel=1e-5)
    assert [one["share"] for one in shared["dimensions"]] == pytest.approx(
        [red / (red + green), green / (red + green)], rel=1e-4
    )


def test_a_space_without_names_shares_nothing_that_could_be_said(corner: TestClient) -> None:
    assert explained(corner, asked(space="aligned"))["shared"] is None


def test_boxes_are_in_the_photo_as_it_is_seen(corner: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 80 x 40, seen 40 x 80
    file = encoded(Image.new("RGB", (80, 40), "red"), "JPEG", exif=exif)
    body = asked()
    body["images"][0] = {"image": base64.b64encode(file).decode()}
    (image, *_) = explained(corner, body)["images"]
    boxes = np.array(image["boxes"])
    assert (image["size"], boxes.shape) == ([40, 80], (G, G, 4))
    assert boxes[0, 0].tolist() == [0, 0, 10, 20]
    assert boxes[6, 6].tolist() == [30, 60, 40, 80]
    assert boxes[0, 1].tolist() == [5, 0, 15, 20]


@pytest.mark.parametrize("side", [1, 3, 8, 16, 100, 224, 378])
def test_the_places_cover_all_of_a_side_and_overlap_by_half(side: int) -> None:
    spans = occlusion.spans(side)
    covered = np.zeros(side, int)
    for first, end in spans:
        covered[first:end] += 1
    assert spans.shape == (G, 2)
    assert covered.min() >= 1
    assert spans.min() == 0
    assert spans.max() == side
    if side % (G + 1) == 0:
        assert (np.diff(spans[:, 0]) * 2 == spans[0, 1]).all()


def test_a_cropped_photo_has_its_boxes_in_the_crop() -> None:
    spec = PixelSpec(height=80, width=80, resize="crop", short_side=100, dtype="uint8")
    boxes = occlusion.boxes((400, 200), spec)  # scaled to 200 x 100, of which x 60 to 140 and y 10 to 90 are seen
    assert boxes[0, 0].tolist() == [120, 20, 160, 60]
    assert boxes[6, 6].tolist() == [240, 140, 280, 180]


def test_float_pixels_are_covered_in_their_own_mean() -> None:
    pixels = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    covered = occlusion.cover(pixels, 0)
    assert covered.dtype == np.float32
    np.testing.assert_allclose(covered[:, :2, :2], pixels.mean((1, 2))[:, None, None].repeat(2, 1).repeat(2, 2), 1e-6)
    np.testing.assert_array_equal(covered[:, 2:], pixels[:, 2:])


def test_the_reply_is_as_documented_and_without_explain_as_ever(corner: TestClient) -> None:
    for body in (asked(), asked(explain=False), asked(min_margin=1)):
        reply = corner.post("/odd-one-out", json=body)
        parsed = OddOneOutReply.model_validate_json(reply.content, strict=True)
        assert parsed.model_dump(mode="json", exclude_unset=True) == reply.json()
    plain = corner.post("/odd-one-out", json=asked(explain=False)).json()
    explaining = corner.post("/odd-one-out", json=asked()).json()
    assert "explanation" not in plain["results"][0]
    explaining["results"][0].pop("explanation")
    assert explaining == plain


def test_an_abstention_has_nothing_to_explain(corner: TestClient) -> None:
    (result,) = corner.post("/odd-one-out", json=asked(min_margin=1)).json()["results"]
    assert (result["abstained"], result["explanation"]) == ("margin", None)


def test_a_form_may_ask_too(corner: TestClient) -> None:
    files = [("images", ("x", encoded(Image.fromarray(pixels)))) for pixels in PICTURES]
    reply = corner.post("/odd-one-out", files=files, data={"space": "base", "explain": "true"})
    assert reply.json()["results"][0]["explanation"] == explained(corner, asked())


# --- limits -------------------------------------------------------------------------------------


def refused(client: TestClient, body: dict[str, Any], **headers: str) -> tuple[int, str, str]:
    reply = client.post("/odd-one-out", json=body, headers=headers)
    return reply.status_code, reply.json()["code"], reply.json()["detail"]


def test_vectors_have_no_parts_to_cover(corner: TestClient) -> None:
    status, code, detail = refused(corner, {"vectors": np.eye(3, SIZE).tolist(), "explain": True})
    assert (status, code) == (400, "invalid_request")
    assert "send `images`" in detail


def test_no_more_triplets_than_the_limit(serve: Serve, corner_bundle: Path) -> None:
    two = asked(triplets=[[0, 1, 2], [2, 1, 0]])
    assert refused(serve(bundle=corner_bundle, min_image_side=8), two)[:2] == (413, "too_many_triplets")
    client = serve(bundle=corner_bundle, min_image_side=8, max_explained_triplets=2)
    first, second = client.post("/odd-one-out", json=two).json()["results"]
    assert [image["image"] for image in second["explanation"]["images"]] == [2, 1, 0]
    for i in range(3):
        drops = [result["explanation"]["images"][k]["map"] for result, k in ((first, i), (second, 2 - i))]
        np.testing.assert_allclose(*drops, atol=1e-9)


def test_no_more_explanations_at_once_than_the_limit(serve: Serve, corner_bundle: Path) -> None:
    client = serve(bundle=corner_bundle, min_image_side=8)
    with client.app.state.service.explaining.one():
        assert refused(client, asked())[:2] == (429, "overloaded")
        assert client.post("/odd-one-out", json=asked(explain=False)).status_code == 200
    explained(client, asked())
    lines = client.get("/metrics").text.splitlines()
    assert 'alignet_rejected_total{reason="explain"} 1.0' in lines
    assert "alignet_explanations_total 1.0" in lines
    off = serve(bundle=corner_bundle, min_image_side=8, explain_concurrency=0)
    assert refused(off, asked())[:2] == (400, "invalid_request")


def test_all_pictures_count_at_the_door_and_few_of_them_at_once(corner: TestClient, monkeypatch: Any) -> None:
    admission = corner.app.state.service.models.current.default.embedder.admission
    with admission.admit(256 - 3 - 3 * G * G + 1):
        assert refused(corner, asked())[:2] == (429, "overloaded")
    seen, embedded = [], []
    real = OnnxEngine.embed

    def embed(self: OnnxEngine, pixels: NDArray[Any]) -> Any:
        seen.append(admission.images)
        embedded.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(OnnxEngine, "embed", embed)
    explained(corner, asked())
    assert sum(embedded) == 3 + 3 * G * G
    assert max(seen) <= occlusion.CHUNK
    assert admission.images == 0


def test_a_key_pays_for_every_picture(serve: Serve, corner_bundle: Path) -> None:
    limits = {"api_keys": "secret", "key_images_per_second": 1, "max_images": 3}
    client = serve(bundle=corner_bundle, min_image_side=8, **limits)
    key = {"Authorization": "Bearer secret"}
    assert client.post("/odd-one-out", json=asked(), headers=key).status_code == 200
    reply = client.post("/odd-one-out", json=asked(explain=False), headers=key)
    assert (reply.status_code, reply.json()["code"]) == (429, "rate_limited")
    (bucket,) = client.app.state.service.keys._buckets.values()
    assert 3 * G * G <= bucket.wait() <= 3 * G * G + 3


def test_when_nobody_waits_the_rest_is_not_embedded(corner: TestClient, monkeypatch: Any) -> None:
    asked_for = []
    real = Embedder.embed_altered

    async def slow(self: Embedder, pixels: Any, timings: Any) -> Any:
        asked_for.append(len(pixels))
        await asyncio.sleep(0.2)
        return await real(self, pixels, timings)

    monkeypatch.setattr(Embedder, "embed_altered", slow)
    assert refused(corner, asked(), **{"X-Request-Timeout-Ms": "500"})[:2] == (504, "deadline_exceeded")
    assert 1 <= len(asked_for) < 5
    monkeypatch.setattr(Embedder, "embed_altered", real)
    assert explained(corner, asked())["odd_one_out"] == 2  # its place is free again


def test_an_explanation_has_the_longest_time_unless_it_asks_for_another(
    serve: Serve, corner_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(bundle=corner_bundle, min_image_side=8, request_timeout=0.4, max_request_timeout=30)
    real = Embedder.embed_altered

    async def slow(self: Embedder, pixels: Any, timings: Any) -> Any:
        await asyncio.sleep(0.05)
        return await real(self, pixels, timings)

    monkeypatch.setattr(Embedder, "embed_altered", slow)
    assert explained(client, asked())["odd_one_out"] == 2  # 21 times 0.05 s
    assert refused(client, asked(), **{"X-Request-Timeout-Ms": "400"})[:2] == (504, "deadline_exceeded")
    client = serve(bundle=corner_bundle, min_image_side=8, request_timeout=0.2, max_request_timeout=0.6)
    assert refused(client, asked()) == (504, "deadline_exceeded", "no answer within 0.6 s.")
