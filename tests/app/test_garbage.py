"""The collector rests while large bodies and replies are made, and only then."""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import garbage, judgments
from app.routes import odd_one_out
from tests.toy import SIZE


def test_it_rests_within_the_block_and_works_after_it_even_if_that_fails() -> None:
    with pytest.raises(ZeroDivisionError), garbage.uncollected():
        assert not gc.isenabled()
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_blocks_of_many_threads_leave_it_working() -> None:
    def block(_: int) -> None:
        with garbage.uncollected():
            sum(range(1000))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(block, range(200)))
    assert gc.isenabled()


def test_many_triplets_are_judged_without_it_and_few_with_it(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def judge(*args: Any) -> Any:
        seen.append(gc.isenabled())
        return judgments.judge(*args)

    monkeypatch.setattr(odd_one_out, "judge", judge)
    vectors = [[float(i + j) for j in range(SIZE)] for i in range(3)]
    client = serve(max_triplets=2000)
    for n in (1, 2000):
        reply = client.post("/odd-one-out", json={"vectors": vectors, "triplets": [[0, 1, 2]] * n})
        assert reply.status_code == 200, reply.text
    assert (seen, gc.isenabled()) == ([True, False, False], True)  # many come in blocks
