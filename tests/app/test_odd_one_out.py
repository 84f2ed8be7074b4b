"""POST /odd-one-out: the contract's judgment of every triplet, whatever else is asked with it."""

import base64
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from app.schemas import Judgment
from contract import triplets
from tests.toy import SIZE, encoded, photo

Serve = Callable[..., TestClient]
examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = st.floats(-50, 50, width=32)
three_vectors = arrays(np.float32, (3, SIZE), elements=numbers)
VECTORS = [[1.0, 0, 0, 0, 2], [1, 0.5, 0, 0, 2], [0, 0, 3, 1, 0]]


def as_json(*images: bytes, **options: Any) -> dict[str, Any]:
    return {"images": [{"image": base64.b64encode(image).decode()} for image in images], **options}


def judged(client: TestClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    reply = client.post("/odd-one-out", json=body)
    assert reply.status_code == 200, reply.text
    return list(reply.json()["results"])


def refused(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    reply = client.post("/odd-one-out", content=orjson.dumps(body), headers={"Content-Type": "application/json"})
    assert reply.status_code == reply.json()["status"], reply.text
    return dict(reply.json())


def embedded(client: TestClient, images: list[bytes], space: str = "aligned") -> NDArray[np.float64]:
    headers = {"Accept": "application/octet-stream"}
    reply = client.post("/embed", json=as_json(*images, space=space), headers=headers)
    return np.frombuffer(reply.content, "<f4").reshape(len(images), SIZE).astype(np.float64)


@pytest.mark.parametrize("space", ["aligned", "base"])
def test_the_judgment_is_the_contracts_on_the_embedded_vectors(client: TestClient, space: str) -> None:
    images = [encoded(photo(seed)) for seed in range(3)]
    sims = triplets.pair_similarities(embedded(client, images, space), "dot")
    p = triplets.odd_probabilities(sims, 2.0)
    (result,) = judged(client, as_json(*images, space=space))
    assert result == {
        "triplet": [0, 1, 2],
        "odd_one_out": int(triplets.odd_one_out(sims)),
        "abstained": None,
        "probabilities": p.tolist(),
        "similarities": sims.tolist(),
        "entropy": float(triplets.entropy(p)),
        "entropy_normalized": float(triplets.normalized_entropy(p)),
        "margin": float(triplets.margin(p)),
    }


def test_the_reply_states_model_space_kernel_and_temperature(client: TestClient) -> None:
    reply = client.post("/odd-one-out", json={"vectors": VECTORS})
    stated = {key: value for key, value in reply.json().items() if key != "results"}
    card = client.get("/models/toy").json()["spaces"]["aligned"]
    assert stated == {
        "model": "toy",
        "space": "aligned",
        "fingerprint": card["fingerprint"],
        "usage": {"images": 0, "unique_images": 0},
        "similarity": "dot",
        "temperature": 2.0,
        "calibrated": True,
        "tie_rule": "strict",
    }
    assert reply.headers["X-Space-Fingerprint"] == card["fingerprint"]


def test_every_judgment_is_as_the_schema_says(client: TestClient) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, SIZE)).tolist()
    body = {"vectors": vectors, "triplets": [[0, 1, 2], [3, 1, 0]], "min_margin": 0.5}
    for result in client.post("/odd-one-out", json=body).json()["results"]:
        assert Judgment.model_validate(result).model_dump(mode="json", exclude_unset=True) == result


def test_images_and_their_vectors_are_judged_alike(client: TestClient) -> None:
    images = [encoded(photo(seed)) for seed in range(5)]
    asked = {"triplets": [list(t) for t in combinations(range(5), 3)]}
    rows = embedded(client, images)
    as_text = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
    from_images = judged(client, as_json(*images, **asked))
    assert judged(client, {"vectors": rows.tolist(), **asked}) == from_images
    assert judged(client, {"vectors": as_text, **asked}) == from_images


def test_json_and_multipart_are_judged_alike(client: TestClient) -> None:
    images = [encoded(photo(seed)) for seed in range(4)]
    asked = [[3, 1, 0], [0, 2, 3]]
    files = [("images", ("photo", image, "image/png")) for image in images]
    data = {"triplets": str(asked), "min_margin": "0.2", "space": "base"}
    form = client.post("/odd-one-out", files=files, data=data)
    json = client.post("/odd-one-out", json=as_json(*images, triplets=asked, min_margin=0.2, space="base"))
    assert form.json() == json.json()
    assert [result["triplet"] for result in json.json()["results"]] == asked


@examples
@given(vectors=three_vectors, order=st.permutations(range(3)))
def test_permuting_the_vectors_permutes_the_answer(
    client: TestClient, vectors: NDArray[np.float32], order: list[int]
) -> None:
    (plain,) = judged(client, {"vectors": vectors.tolist()})
    (moved,) = judged(client, {"vectors": vectors[order].tolist()})
    assert moved["abstained"] == plain["abstained"]
    if plain["odd_one_out"] is not None:
        assert order[moved["odd_one_out"]] == plain["odd_one_out"]
    assert moved["probabilities"] == pytest.approx([plain["probabilities"][i] for i in order], abs=1e-12)


@examples
@given(seeds=st.lists(st.integers(0, 40), min_size=3, max_size=3, unique=True), order=st.permutations(range(3)))
def test_permuting_the_images_permutes_the_answer(client: TestClient, seeds: list[int], order: list[int]) -> None:
    images = [encoded(photo(seed)) for seed in seeds]
    (plain,) = judged(client, as_json(*images))
    (moved,) = judged(client, as_json(*(images[i] for i in order)))
    assert order[moved["odd_one_out"]] == plain["odd_one_out"]


@examples
@given(vectors=three_vectors, order=st.permutations(range(3)))
def test_permuting_a_triplet_permutes_its_probabilities_not_its_answer(
    client: TestClient, vectors: NDArray[np.float32], order: list[int]
) -> None:
    plain, moved = judged(client, {"vectors": vectors.tolist(), "triplets": [[0, 1, 2], order]})
    assert moved["odd_one_out"] == plain["odd_one_out"]
    assert moved["probabilities"] == pytest.approx([plain["probabilities"][i] for i in order], abs=1e-12)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(vectors=arrays(np.float32, (6, SIZE), elements=numbers))
def test_each_of_many_triplets_equals_itself_asked_alone_bit_for_bit(
    client: TestClient, vectors: NDArray[np.float32]
) -> None:
    rows, asked = vectors.tolist(), list(combinations(range(6), 3))
    together = judged(client, {"vectors": rows, "triplets": asked})
    for triplet, result in zip(asked, together, strict=True):
        (alone,) = judged(client, {"vectors": [rows[i] for i in triplet]})
        odd = None if alone["odd_one_out"] is None else triplet[alone["odd_one_out"]]
        assert result == alone | {"triplet": list(triplet), "odd_one_out": odd}


def test_triplets_across_blocks_are_judged_as_the_contract_judges_them_at_once(client: TestClient) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, SIZE))
    asked = np.array([rng.choice(30, 3, replace=False) for _ in range(600)])  # more than two blocks of 256
    results = judged(client, {"vectors": vectors.tolist(), "triplets": asked.tolist()})
    sims = triplets.pair_similarities(vectors[asked])
    assert [result["similarities"] for result in results] == sims.tolist()
    position = triplets.odd_one_out(sims)
    assert [result["odd_one_out"] for result in results] == asked[np.arange(600), position].tolist()


def test_three_identical_images_are_a_tie_without_an_odd_one(client: TestClient) -> None:
    reply = client.post("/odd-one-out", json=as_json(*[encoded(photo(0))] * 3))
    (result,) = reply.json()["results"]
    assert (result["abstained"], result["odd_one_out"], result["margin"]) == ("tie", None, 0)
    assert result["probabilities"] == pytest.approx([1 / 3] * 3)
    assert reply.json()["usage"] == {"images": 3, "unique_images": 1}


@examples
@given(vectors=three_vectors, threshold=st.floats(0, 1))
def test_min_margin_abstains_exactly_where_the_lead_is_smaller(
    client: TestClient, vectors: NDArray[np.float32], threshold: float
) -> None:
    (free,) = judged(client, {"vectors": vectors.tolist()})
    (bound,) = judged(client, {"vectors": vectors.tolist(), "min_margin": threshold})
    if free["abstained"] == "tie":
        assert bound == free
    else:
        expected = "margin" if free["margin"] < threshold else None
        assert bound["abstained"] == expected
        assert bound["odd_one_out"] == (None if expected else free["odd_one_out"])
    assert bound["probabilities"] == free["probabilities"]


@examples
@given(vectors=arrays(np.float32, (3, SIZE), elements=st.floats(-1, 1, width=32)), threshold=st.floats(0, 1))
def test_max_entropy_abstains_exactly_where_the_answer_is_less_certain(
    client: TestClient, vectors: NDArray[np.float32], threshold: float
) -> None:
    (free,) = judged(client, {"vectors": vectors.tolist()})
    (bound,) = judged(client, {"vectors": vectors.tolist(), "max_entropy": threshold})
    uncertain = free["entropy_normalized"] > threshold
    assert bound["abstained"] == (free["abstained"] or ("entropy" if uncertain else None))
    assert (bound["odd_one_out"] is None) == (bound["abstained"] is not None)


def test_a_threshold_exactly_met_still_answers_and_the_next_float_abstains(client: TestClient) -> None:
    (free,) = judged(client, {"vectors": VECTORS})
    lead, share = free["margin"], free["entropy_normalized"]
    for option, met, missed in (
        ("min_margin", lead, np.nextafter(lead, 1)),
        ("max_entropy", share, np.nextafter(share, 0)),
    ):
        assert judged(client, {"vectors": VECTORS, option: met})[0]["abstained"] is None
        assert judged(client, {"vectors": VECTORS, option: float(missed)})[0]["abstained"] == option.split("_")[1]


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ([[0, 1, 2], [0, 1, 3]], 1),
        ([[0, 1, -1]], 0),
        ([[0, 1, 2], [0, 1, 2], [2, 2, 1]], 2),
        ([[0, 1, 2**63]], 0),
        ([[0, 1, 2], [0, 1, 2.0]], 1),
        ([[0, 1, 2], [0, True, 2]], 1),
        ([[0, 1, "2"]], 0),
        ([[0, 1, None]], 0),
        ([[0, 1]], 0),
        ([[0, 1, 2, 0]], 0),
        ([[0, 1, 2], 7], 1),
        ([[0, 1, 2], [[0], 1, 2]], 1),
        ([[0, 1, 2], {"0": 1}], 1),
    ],
)
def test_a_wrong_triplet_is_named_by_its_index(client: TestClient, asked: list[Any], index: int) -> None:
    problem = refused(client, {"vectors": VECTORS, "triplets": asked})
    assert (problem["code"], problem["index"]) == ("invalid_request", index)


@pytest.mark.parametrize("way", ["images", "vectors", "multipart"])
def test_triplets_may_be_left_out_with_exactly_three_only(client: TestClient, way: str) -> None:
    images = [encoded(photo(seed)) for seed in range(4)]
    for n, status in ((2, 400), (3, 200), (4, 400)):
        if way == "multipart":
            reply = client.post("/odd-one-out", files=[("images", ("a", image, "image/png")) for image in images[:n]])
        else:
            body = as_json(*images[:n]) if way == "images" else {"vectors": [*VECTORS, VECTORS[0]][:n]}
            reply = client.post("/odd-one-out", json=body)
        assert reply.status_code == status
        assert status == 200 or reply.json()["code"] == "invalid_request"


@pytest.mark.parametrize("text", ["", "[[0,1,2]", "{}", "7", "[]", '"[[0,1,2]]"', "[[0,1,2.0]]", "[[0,1,9]]"])
def test_the_form_field_triplets_is_checked_like_json(client: TestClient, text: str) -> None:
    files = [("images", ("a", encoded(photo(seed)), "image/png")) for seed in range(3)]
    reply = client.post("/odd-one-out", files=files, data={"triplets": text})
    assert reply.status_code == 400
    assert reply.json()["code"] in ("invalid_json", "invalid_request")


@pytest.mark.parametrize(
    "bad",
    [
        [1.0] * (SIZE - 1),
        [1.0] * (SIZE + 1),
        [],
        [1e39] * SIZE,
        [-1e300, 0, 0, 0, 0],
        [None] * SIZE,
        ["1"] * SIZE,
        [True] * SIZE,
        [True, 1.5, 0, 0, 0],
        [False, 1, 0, 0, 0],
        [[1.0] * SIZE],
        [[1.0], 2, 3, 4, 5],
        [{"x": 1}, 2, 3, 4, 5],
        {"0": 1.0},
        None,
        7,
        True,
        "not base64!",
        base64.b64encode(b"\0" * (4 * SIZE - 1)).decode(),
        base64.b64encode(np.ones(SIZE + 1, "<f4").tobytes()).decode(),
        base64.b64encode(np.full(SIZE, np.nan, "<f4").tobytes()).decode(),
        base64.b64encode(np.full(SIZE, np.inf, "<f4").tobytes()).decode(),
    ],
)
def test_a_wrong_vector_is_named_by_its_index(client: TestClient, bad: Any) -> None:
    problem = refused(client, {"vectors": [*VECTORS[:2], bad]})
    assert (problem["status"], problem["code"], problem.get("index")) == (400, "invalid_request", 2)


def test_a_signalling_nan_in_base64_is_refused_without_a_warning(client: TestClient) -> None:
    bits = np.full(SIZE, 0x7FA00000, "<u4").tobytes()
    problem = refused(client, {"vectors": [*VECTORS[:2], base64.b64encode(bits).decode()]})
    assert (problem["code"], problem["index"]) == ("invalid_request", 2)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "nan", "1" * 400])
def test_a_number_that_is_not_finite_is_refused_as_a_literal_too(client: TestClient, literal: str) -> None:
    body = f'{{"vectors": [[1,2,3,4,5], [1,2,3,4,5], [1,2,3,4,{literal}]]}}'
    reply = client.post("/odd-one-out", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["code"] in ("invalid_json", "invalid_request")


def test_the_largest_float32_values_give_finite_judgments(client: TestClient) -> None:
    most = float(np.finfo(np.float32).max)
    (result,) = judged(client, {"vectors": [[most] * SIZE, [-most] * SIZE, [most, 0, 0, 0, 0]]})
    assert result["odd_one_out"] == 1
    assert np.isfinite([*result["probabilities"], *result["similarities"], result["entropy"], result["margin"]]).all()


@pytest.mark.parametrize("both", [{}, {"images": [{"image": "AAAA"}], "vectors": VECTORS}, {"images": []}])
def test_a_body_gives_either_images_or_vectors(client: TestClient, both: dict[str, Any]) -> None:
    assert refused(client, both)["code"] == "invalid_request"


def test_abstentions_and_entropies_are_counted(client: TestClient) -> None:
    judged(client, {"vectors": [[1.0] * SIZE] * 3})
    judged(client, {"vectors": VECTORS, "min_margin": 1.0})
    lines = client.get("/metrics").text.splitlines()
    assert 'alignet_abstentions_total{reason="tie"} 1.0' in lines
    assert 'alignet_abstentions_total{reason="margin"} 1.0' in lines
    assert "alignet_triplet_entropy_nats_count 2.0" in lines
