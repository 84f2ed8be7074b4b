"""The client against the live service."""

import io
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from alignet_client import (
    BadImage,
    BadRequest,
    Client,
    NotFound,
    SpaceMismatch,
    TooLarge,
    Unauthorized,
    UnexpectedReply,
)
from tests.toy import encoded, photo

PHOTOS = [encoded(photo(seed)) for seed in range(10)]


@pytest.fixture
def client(live: str) -> Any:
    with Client(live) as client:
        yield client


def raw(live: str, **options: Any) -> Any:
    """The vectors of the first three photos as the service itself gives them."""
    files = [("images", (str(i), data, "image/png")) for i, data in enumerate(PHOTOS[:3])]
    reply = httpx2.post(f"{live}/embed", files=files, data=options).json()
    return reply["fingerprint"], np.array([item["embedding"] for item in reply["data"]], np.float32)


@pytest.mark.parametrize(("space", "normalize"), [("aligned", False), ("aligned", True), ("base", False)])
def test_vectors_are_those_of_the_service(client: Client, live: str, space: Any, normalize: bool) -> None:
    fingerprint, expected = raw(live, space=space, normalize=str(normalize).lower())
    found = client.embed(PHOTOS[:3], space=space, normalize=normalize)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    each = client.embed_each(PHOTOS[:3], space=space, normalize=normalize)
    np.testing.assert_array_equal(each.vectors, expected)
    assert (each.fingerprint, each.model, each.space, each.normalized) == (fingerprint, "toy", space, normalize)


def test_more_images_than_one_request_takes_come_back_in_order_with_progress(client: Client) -> None:
    alone = np.concatenate([client.embed([image]) for image in PHOTOS])
    told: list[int] = []
    np.testing.assert_array_equal(client.embed(iter(PHOTOS), progress=told.append), alone)
    assert told == [4, 4, 2]
    np.testing.assert_array_equal(client.embed(PHOTOS, batch=3, progress=told.append), alone)
    assert told[3:] == [3, 3, 3, 1]


def test_a_photo_is_the_same_as_a_path_bytes_a_pil_image_or_an_array(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PHOTOS[0])
    pixels = np.asarray(photo(0))
    given = [path, str(path), PHOTOS[0], Image.open(path), photo(0), pixels]
    vectors = client.embed(given)
    assert len({row.tobytes() for row in vectors}) == 1
    assert (client.embed(np.stack([pixels, pixels])) == vectors[:2]).all()


def test_an_opened_photo_keeps_its_orientation_and_a_cmyk_one_its_colours(client: Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(photo(0), exif=exif)
    cmyk = encoded(photo(1).convert("CMYK"), "TIFF")
    for file in (turned, cmyk):
        vectors = client.embed([file, Image.open(io.BytesIO(file))])
        np.testing.assert_array_equal(vectors[0], vectors[1])
    assert (client.embed([turned]) != client.embed([PHOTOS[0]])).any()


def test_what_is_no_image_is_said_before_anything_is_sent(client: Client) -> None:
    for wrong in (3, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)):
        with pytest.raises(TypeError, match="image 1"):
            client.embed([PHOTOS[0], wrong])  # type: ignore[list-item]
    for single in ("a.png", b"", Path("a"), photo(0), np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(TypeError, match="several images"):
            client.embed(single)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no images"):
        client.embed([])
    with pytest.raises(FileNotFoundError, match="missing"):
        client.embed([PHOTOS[0], "missing.png"])


def test_a_bad_image_is_named_by_its_place_among_all(client: Client, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(BadImage, match=r"unsupported_image_format: image 6.*bad\.jpg") as caught:
        client.embed([*PHOTOS[:6], bad, PHOTOS[7]])
    assert (caught.value.index, caught.value.status, caught.value.image) == (6, 415, str(bad))


def test_good_images_get_vectors_and_each_bad_one_is_named(client: Client, tmp_path: Path) -> None:
    images = [PHOTOS[0], b"no image", tmp_path / "gone.jpg", PHOTOS[1], PHOTOS[2], PHOTOS[0][:200], PHOTOS[3]]
    result = client.embed_each(images)
    assert result.indices.tolist() == [0, 3, 4, 6]
    np.testing.assert_array_equal(result.vectors, client.embed([PHOTOS[i] for i in range(4)]))
    named = [(fault.index, fault.code) for fault in result.faults]
    assert named == [(1, "unsupported_image_format"), (2, "unreadable_file"), (5, "undecodable_image")]
    assert "image 5" in result.faults[2].detail
    assert result.faults[1].image == str(tmp_path / "gone.jpg")


def test_without_any_good_image_there_are_faults_only(client: Client) -> None:
    result = client.embed_each([b"no image"] * 5)
    assert (len(result.vectors), [fault.index for fault in result.faults]) == (0, [0, 1, 2, 3, 4])


def test_an_image_over_the_limit_is_not_sent(serve: Any) -> None:
    transport = serve(max_image_bytes=3000)._transport
    large = encoded(photo(0, (400, 300)), "BMP")
    with Client("http://testserver", transport=transport) as client:
        with pytest.raises(TooLarge, match="image 1 has 360054 bytes; the service takes at most 3000"):
            client.embed([PHOTOS[0], large])
        result = client.embed_each([large, PHOTOS[0]])
    assert [(fault.index, fault.code) for fault in result.faults] == [(0, "image_too_large")]
    assert len(result.vectors) == 1


def test_large_images_are_spread_over_requests_that_fit(serve: Any) -> None:
    transport = serve(max_body_bytes=400_000, max_held_bytes=2_000_000)._transport
    images = [encoded(photo(seed, (200, 150)), "BMP") for seed in range(8)]  # 90 kB each
    told: list[int] = []
    with Client("http://testserver", transport=transport) as client:
        assert client.embed(images, progress=told.append).shape == (8, 5)
    assert told == [3, 3, 2]


def test_another_space_than_expected_is_refused(client: Client) -> None:
    fingerprint = client.model().spaces["aligned"].fingerprint
    client.embed(PHOTOS[:1], expect_fingerprint=fingerprint)
    with pytest.raises(SpaceMismatch) as caught:
        client.embed(PHOTOS[:1], normalize=True, expect_fingerprint=fingerprint)
    assert caught.value.code == "space_mismatch"


def test_the_odd_one_of_three_images_is_that_of_their_vectors(client: Client) -> None:
    by_images = client.odd_one_out(PHOTOS[:3])
    by_vectors = client.odd_one_out(vectors=client.embed(PHOTOS[:3]))
    assert by_images == by_vectors
    (result,) = by_images.results
    assert result.odd_one_out == int(np.argmax(result.probabilities))
    assert sum(result.probabilities) == pytest.approx(1)
    assert by_images.calibrated


def test_many_triplets_and_thresholds(client: Client) -> None:
    reply = client.odd_one_out(PHOTOS[:4], triplets=np.array([[0, 1, 2], [3, 1, 0]]))
    assert [result.triplet for result in reply.results] == [(0, 1, 2), (3, 1, 0)]
    small = client.embed(PHOTOS[:4]) / 1000  # so alike that no answer is sure
    reply = client.odd_one_out(vectors=small, triplets=[(0, 1, 2), (3, 1, 0)], min_margin=1.0)
    assert {(result.odd_one_out, result.abstained) for result in reply.results} == {(None, "margin")}
    with pytest.raises(BadRequest) as caught:
        client.odd_one_out(PHOTOS[:4], triplets=[[0, 1, 2], [0, 1, 9]])
    assert (caught.value.code, caught.value.index) == ("invalid_request", 1)


def test_similarities_of_images_vectors_and_both(client: Client) -> None:
    vectors = client.embed(PHOTOS[:4])
    every = client.similarity(PHOTOS[:4])
    np.testing.assert_allclose(every.matrix, vectors @ vectors.T, rtol=1e-4)
    assert every.kernel == "dot"
    for queries in (PHOTOS[:1], vectors[:1]):
        for candidates in (PHOTOS[1:4], vectors[1:]):
            reply = client.similarity(queries=queries, candidates=candidates)
            np.testing.assert_allclose(reply.matrix, every.matrix[:1, 1:], rtol=1e-5)
    cosine = client.similarity(vectors=vectors, kernel="cosine")
    np.testing.assert_allclose(np.diag(cosine.matrix), 1, rtol=1e-6)


def test_wrong_combinations_of_arguments(client: Client) -> None:
    for arguments in ({}, {"images": PHOTOS[:3], "vectors": np.ones((3, 5))}, {"queries": PHOTOS[:1]}):
        with pytest.raises(ValueError, match="expected"):
            client.similarity(**arguments)
    with pytest.raises(ValueError, match="either"):
        client.odd_one_out()
    with pytest.raises(ValueError, match="vector 1"):
        client.odd_one_out(vectors=[[1.0], [float("nan")], [2.0]])
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        client.similarity(vectors=[1.0, 2.0])


def test_models_and_their_card(client: Client, live: str) -> None:
    (summary,) = client.models()
    card = client.model()
    assert (summary.name, card.name, card.limits["max_images"]) == ("toy", "toy", 4)
    assert card.spaces["aligned"].size == 5
    assert card.raw["tie_rule"] == "strict"
    with pytest.raises(NotFound) as caught:
        client.model("an/other")
    assert caught.value.request_id
    with Client(live, model="other") as other, pytest.raises(NotFound):
        other.embed(PHOTOS[:1])
    with Client(live, model="toy") as same:
        assert same.ready()


def test_aliases_are_those_of_the_service(serve: Any, client: Client) -> None:
    assert client.aliases() == {}
    transport = serve(aliases="best=toy:2;next=toy:1")._transport
    with Client("http://testserver", transport=transport) as named:
        assert named.aliases() == {"best": {"toy": 2.0}, "next": {"toy": 1.0}}
        assert [summary.name for summary in named.models()] == ["toy"]


def test_a_key_is_sent_and_its_lack_is_said(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = serve(api_keys="secret")._transport
    with Client("http://testserver", transport=transport) as client, pytest.raises(Unauthorized, match="Bearer KEY"):
        client.models()
    with Client("http://testserver", "secret", transport=transport) as client:
        assert client.embed(PHOTOS[:2]).shape == (2, 5)
    monkeypatch.setenv("ALIGNET_KEY", "secret")
    monkeypatch.setenv("ALIGNET_URL", "http://testserver")
    with Client(transport=transport) as client:
        assert client.models()


def test_urls_are_for_the_service_to_fetch(client: Client) -> None:
    # This service fetches none, so its refusal shows that the URL, not a file of that name, reached it.
    with pytest.raises(BadRequest, match="URLs are not fetched"):
        client.embed([PHOTOS[0], "https://images.example.org/a.jpg"])
    with pytest.raises(BadRequest, match="URLs are not fetched"):
        client.similarity(queries=PHOTOS[:1], candidates=["https://images.example.org/a.jpg"])
    result = client.embed_each([PHOTOS[0], "https://images.example.org/a.jpg"])
    assert (len(result.vectors), result.faults[0].image) == (1, "https://images.example.org/a.jpg")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "/path"])
def test_what_is_no_url_of_a_service(url: str) -> None:
    with pytest.raises(ValueError, match="no URL of a service"):
        Client(url)


def test_somebody_else_at_the_url(live: str) -> None:
    page = httpx2.MockTransport(lambda request: httpx2.Response(200, text="<html>hello</html>"))
    other = httpx2.MockTransport(lambda request: httpx2.Response(200, json={"models": [{"id": "gpt"}]}))
    for transport in (page, other):
        with Client("http://other", transport=transport) as client, pytest.raises(UnexpectedReply, match="URL"):
            client.models()
    with Client(live + "/wrong") as client, pytest.raises(NotFound):
        client.models()


def test_without_a_key_a_client_names_itself_so_that_an_alias_keeps_it_with_one_model() -> None:
    seen: list[tuple[str | None, str | None]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append((request.headers.get("x-client-key"), request.headers.get("authorization")))
        return httpx2.Response(200, json={"models": []})

    transport = httpx2.MockTransport(answer)
    first, second, keyed = (Client("http://stub", key, transport=transport) for key in ("", "", "secret"))
    for client in (first, first, second, keyed):
        client.models()
    assert seen[0] == seen[1] != seen[2]
    assert seen[3] == (None, "Bearer secret")
