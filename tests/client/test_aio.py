"""The asynchronous client against the live service."""

import asyncio
import inspect
from typing import Any

import httpx2
import numpy as np
import pytest

from alignet_client import AsyncClient, BadImage, Client
from tests.toy import encoded, photo

PHOTOS = [encoded(photo(seed)) for seed in range(11)]


def run(live: str, work: Any, **options: Any) -> Any:
    async def inside() -> Any:
        async with AsyncClient(live, **options) as client:
            return await work(client)

    return asyncio.run(inside())


def test_every_method_answers_as_the_ordinary_client(live: str) -> None:
    async def work(client: AsyncClient) -> list[Any]:
        return [
            await client.embed(PHOTOS),
            (await client.embed_each([*PHOTOS, b"bad"], normalize=True)).vectors,
            (await client.similarity(PHOTOS[:3])).matrix,
            await client.odd_one_out(PHOTOS[:3]),
            await client.models(),
            await client.model(),
            await client.aliases(),
            await client.ready(),
        ]

    found = run(live, work)
    with Client(live) as client:
        np.testing.assert_array_equal(found[0], client.embed(PHOTOS))
        np.testing.assert_array_equal(found[1], client.embed(PHOTOS, normalize=True))
        np.testing.assert_array_equal(found[2], client.similarity(PHOTOS[:3]).matrix)
        assert found[3:] == [client.odd_one_out(PHOTOS[:3]), client.models(), client.model(), {}, True]


def test_an_explanation_is_that_of_the_ordinary_client(live: str) -> None:
    found = run(live, lambda client: client.odd_one_out(PHOTOS[:3], explain=True)).results[0]
    with Client(live) as client:
        expected = client.odd_one_out(PHOTOS[:3], explain=True).results[0]
        assert client.odd_one_out(PHOTOS[:3]).results[0].explanation is None
    assert (expected.explanation.maps.shape, expected.explanation.boxes.shape) == ((3, 7, 7), (3, 7, 7, 4))
    np.testing.assert_allclose(found.explanation.maps, expected.explanation.maps, atol=1e-5)
    np.testing.assert_array_equal(found.explanation.boxes, expected.explanation.boxes)
    assert np.abs(expected.explanation.maps).max() > 0.01
    assert (found.explanation.shared, found.explanation.method) == (None, expected.explanation.method)
    odd = expected.probabilities[expected.triplet.index(expected.odd_one_out)]
    assert np.exp(expected.explanation.log_probability) == pytest.approx(odd)


def test_the_two_clients_have_the_same_methods_with_the_same_arguments() -> None:
    ours = {name: method for name, method in inspect.getmembers(Client, inspect.isfunction) if name[0] != "_"}
    for name, method in ours.items():
        if name != "close":
            theirs = inspect.signature(getattr(AsyncClient, name)).parameters
            assert list(theirs.values()) == list(inspect.signature(method).parameters.values()), name


def test_one_bad_image_ends_the_run_with_its_own_error(live: str) -> None:
    with pytest.raises(BadImage) as caught:
        run(live, lambda client: client.embed([*PHOTOS[:9], b"bad", PHOTOS[9]]))
    assert caught.value.index == 9


def test_what_is_no_image_is_said_without_a_group_around_it(live: str) -> None:
    with pytest.raises(TypeError, match="image 5"):
        run(live, lambda client: client.embed([*PHOTOS[:5], 5]))


class Counting(httpx2.AsyncHTTPTransport):
    """The network, counting requests at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.01)
            return await super().handle_async_request(request)
        finally:
            self.now -= 1


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_once_than_asked_for(live: str, concurrency: int) -> None:
    transport = Counting()

    async def work(client: AsyncClient) -> None:
        runs = [client.embed(PHOTOS, batch=1), client.embed(PHOTOS, batch=1)]
        await asyncio.gather(*runs, *(client.models() for _ in range(5)))

    run(live, work, concurrency=concurrency, transport=transport)
    assert transport.most == concurrency


def test_images_are_read_when_their_turn_comes(live: str) -> None:
    taken: list[int] = []
    done: list[int] = []
    ahead: list[int] = []

    def images() -> Any:
        for i in range(40):
            taken.append(i)
            ahead.append(len(taken) - sum(done))
            yield PHOTOS[0]

    run(live, lambda client: client.embed(images(), batch=2, progress=done.append), concurrency=2)
    assert sum(done) == 40
    assert max(ahead) <= 2 * 2 + 2 + 1  # two batches on their way, and one being put together


def test_concurrency_below_one() -> None:
    with pytest.raises(ValueError, match="concurrency is 0"):
        AsyncClient("http://host", concurrency=0)
