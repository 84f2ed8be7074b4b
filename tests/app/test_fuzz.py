"""Mutated photos of every format through the whole service; `python -m benchmarks.fuzz` sends ten thousand."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from benchmarks.fuzz import FORMATS, WAYS, attack, broken
from contract.bundle import read_bundle
from tests.toy import photo

Serve = Callable[..., TestClient]


@pytest.mark.filterwarnings("ignore")  # as in production, where a decoder's warning is no error
def test_mutated_photos_are_answered_without_a_fault_and_the_golden_vector_stays(
    serve: Serve, toy_bundle: Path
) -> None:
    bundle, photos = read_bundle(toy_bundle), [photo(seed, (96, 80)) for seed in range(3)]
    client = serve(raise_bugs=False)
    found = attack(client, bundle.golden, bundle.manifest.golden, photos, images=200, seed=1, seconds=30.0)
    assert found.faults == []
    assert found.golden == 2
    assert sum(found.outcomes.values()) == 200
    assert {name for name, _ in found.outcomes} == set(FORMATS)
    assert {"ok", "undecodable_image"} <= {outcome for _, outcome in found.outcomes}


def test_a_golden_vector_that_changes_is_a_fault(serve: Serve, toy_bundle: Path) -> None:
    bundle = read_bundle(toy_bundle)
    bundle.golden.vectors["aligned"][0] *= -1
    found = attack(serve(), bundle.golden, bundle.manifest.golden, [photo(0)], images=1, seed=1, seconds=30.0)
    assert found.faults == ["0: the golden image has another vector"]


def test_a_seed_draws_the_same_files_and_every_way_occurs() -> None:
    drawn = [[one for one, _ in zip(broken([photo(0)], seed), range(100), strict=False)] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {way for one in drawn[0] for way in one.way.split("+")} == {way.__name__ for way in WAYS}
