"""POST /similarity: all pairs, or queries against candidates, from images or vectors."""

import base64
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from contract.triplets import Kernel, similarity_matrix
from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
KERNELS = get_args(Kernel)
examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
matrices = st.integers(1, 6).flatmap(lambda n: arrays(np.float32, (n, SIZE), elements=st.floats(-99, 99, width=32)))


def of_images(*seeds: int) -> dict[str, Any]:
    return {"images": [{"image": base64.b64encode(encoded(photo(seed))).decode()} for seed in seeds]}


def compared(client: TestClient, body: dict[str, Any]) -> NDArray[np.float64]:
    reply = client.post("/similarity", json=body)
    assert reply.status_code == 200, reply.text
    matrix = np.array(reply.json()["similarities"])
    assert list(matrix.shape) == reply.json()["shape"]
    return matrix


def embedded(client: TestClient, *seeds: int, space: str = "aligned") -> NDArray[np.float64]:
    headers = {"Accept": "application/octet-stream"}
    reply = client.post("/embed", json=of_images(*seeds) | {"space": space}, headers=headers)
    return np.frombuffer(reply.content, "<f4").reshape(len(seeds), SIZE).astype(np.float64)


@pytest.mark.parametrize("kernel", KERNELS)
@examples
@given(vectors=matrices)
def test_all_pairs_are_the_contracts_similarities(client: TestClient, kernel: Any, vectors: NDArray[Any]) -> None:
    given_ = compared(client, {"vectors": vectors.tolist(), "kernel": kernel})
    wide = vectors.astype(np.float64)
    assert (given_ == similarity_matrix(wide, wide, kernel)).all()


@pytest.mark.parametrize("kernel", KERNELS)
@examples
@given(queries=matrices, candidates=matrices)
def test_queries_against_candidates_are_the_contracts_similarities(
    client: TestClient, kernel: Any, queries: NDArray[Any], candidates: NDArray[Any]
) -> None:
    body = {"queries": {"vectors": queries.tolist()}, "candidates": {"vectors": candidates.tolist()}, "kernel": kernel}
    expected = similarity_matrix(queries.astype(np.float64), candidates.astype(np.float64), kernel)
    assert (compared(client, body) == expected).all()


@pytest.mark.parametrize("space", ["aligned", "base"])
def test_images_vectors_and_both_mixed_give_the_same_similarities(client: TestClient, space: str) -> None:
    rows, columns = embedded(client, 0, 1, space=space), embedded(client, 2, 0, 3, space=space)
    queries = [of_images(0, 1), {"vectors": rows.tolist()}]
    candidates = [of_images(2, 0, 3), {"vectors": columns.tolist()}]
    expected = similarity_matrix(rows, columns, "dot")
    for q in queries:
        for c in candidates:
            assert (compared(client, {"queries": q, "candidates": c, "space": space}) == expected).all()


def test_all_pairs_of_images_are_those_of_their_vectors(client: TestClient) -> None:
    vectors = embedded(client, 0, 1, 2, 1)
    assert (compared(client, of_images(0, 1, 2, 1)) == similarity_matrix(vectors, vectors, "dot")).all()


def test_multipart_files_are_compared_like_json_images(client: TestClient) -> None:
    def files(name: str, *seeds: int) -> list[Any]:
        return [(name, ("photo", encoded(photo(seed)), "image/png")) for seed in seeds]

    pairs = client.post("/similarity", files=files("images", 0, 1, 2), data={"kernel": "cosine"})
    sides = client.post("/similarity", files=[*files("candidates", 2, 3, 4), *files("queries", 0, 1)])
    assert pairs.json() == client.post("/similarity", json=of_images(0, 1, 2) | {"kernel": "cosine"}).json()
    both = {"queries": of_images(0, 1), "candidates": of_images(2, 3, 4)}
    assert sides.json() == client.post("/similarity", json=both).json()


def test_a_photo_on_both_sides_is_embedded_once(client: TestClient) -> None:
    reply = client.post("/similarity", json={"queries": of_images(0, 1), "candidates": of_images(1, 0, 0)})
    assert reply.json()["usage"] == {"images": 5, "unique_images": 2}
    assert "alignet_batch_images_sum 2.0" in client.get("/metrics").text.splitlines()


def test_the_spaces_own_similarity_is_the_default_kernel(client: TestClient) -> None:
    reply = client.post("/similarity", json=of_images(0, 1))
    assert reply.json()["kernel"] == client.get("/models/toy").json()["spaces"]["aligned"]["similarity"] == "dot"
    assert reply.headers["X-Space-Fingerprint"] == reply.json()["fingerprint"]


def test_a_distance_is_one_minus_the_cosine_and_a_dot_product_has_none(client: TestClient) -> None:
    given_ = compared(client, of_images(0, 1) | {"kernel": "cosine", "measure": "distance"})
    x = embedded(client, 0, 1)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(given_, 1 - unit @ unit.T, atol=1e-9)
    assert given_[0, 1] > 0.001 > given_[0, 0]
    reply = client.post("/similarity", json=of_images(0, 1) | {"kernel": "dot", "measure": "distance"})
    assert reply.status_code == 400 and "cosine or pearson" in reply.json()["detail"]


def test_base64_holds_the_float32_rows_of_the_same_matrix(client: TestClient) -> None:
    body = {"queries": of_images(0, 1), "candidates": of_images(2, 3, 4)}
    reply = client.post("/similarity", json=body | {"encoding": "base64"}).json()
    rows = np.frombuffer(base64.b64decode(reply["similarities"]), "<f4").reshape(reply["shape"])
    assert reply["encoding"] == "base64"
    assert (rows == compared(client, body).astype(np.float32)).all()


def test_a_similarity_beyond_float32_never_becomes_infinity_in_base64(client: TestClient) -> None:
    reply = client.post("/similarity", json={"vectors": [[1e30] * SIZE] * 2, "encoding": "base64"})
    if reply.status_code == 200:
        assert np.isfinite(np.frombuffer(base64.b64decode(reply.json()["similarities"]), "<f4")).all()
    else:
        assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")


def test_a_zero_vector_is_similar_to_nothing_instead_of_nan(client: TestClient) -> None:
    for kernel in ("cosine", "pearson"):
        matrix = compared(client, {"vectors": [[0.0] * SIZE, [1, 2, 3, 4, 5]], "kernel": kernel})
        assert matrix[0].tolist() == [0, 0]
        assert matrix[1, 1] == pytest.approx(1)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"images": [], "vectors": []},
        of_images(0) | {"vectors": [[1] * SIZE]},
        {"queries": of_images(0)},
        {"candidates": of_images(0)},
        of_images(0) | {"queries": of_images(0), "candidates": of_images(0)},
        of_images(0) | {"candidates": of_images(0)},
        {"queries": {}, "candidates": of_images(0)},
        {"queries": of_images(0) | {"vectors": [[1] * SIZE]}, "candidates": of_images(0)},
        {"queries": of_images(0) | {"kernel": "dot"}, "candidates": of_images(0)},
        of_images(0) | {"kernel": "euclid"},
    ],
)
def test_a_contradictory_body_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    reply = client.post("/similarity", json=body)
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("names", [["queries"], ["candidates"], ["images", "queries"], ["images", "candidates"], []])
def test_a_contradictory_form_is_refused(client: TestClient, names: list[str]) -> None:
    files = [(name, ("photo", encoded(photo(0)), "image/png")) for name in names]
    reply = client.post("/similarity", files=files or {"x": b""})
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")


def test_a_bad_candidate_has_one_index_whatever_is_wrong_with_it(client: TestClient) -> None:
    def index(text: str) -> int | None:
        body = {"queries": of_images(0, 1), "candidates": {"images": [{"image": text}]}}
        return client.post("/similarity", json=body).json().get("index")

    assert index("no base64!") == index(base64.b64encode(b"no image").decode())
