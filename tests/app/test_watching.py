"""A new version that appears in a served folder is switched to; one that is not whole yet is not."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from contract.bundle import read_bundle
from contract.manifest import MANIFEST
from tests.toy import encoded, photo, write_toy_bundle

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Version 1 of the toy; version 2 stands beside it."""
    write_toy_bundle(tmp_path / "next", 2)
    return write_toy_bundle(tmp_path / "toy", 1)


def fingerprint(bundle: Path) -> str:
    return read_bundle(bundle).manifest.spaces["aligned"].fingerprint


def embed(client: TestClient) -> Any:
    reply = client.post("/embed", content=encoded(photo(0)), headers=PNG)
    assert reply.status_code == 200, reply.text
    return reply.json()["fingerprint"]


def until(client: TestClient, wanted: str) -> set[str]:
    """Ask until the wanted version answers, with no request refused; the versions that answered."""
    end, seen = time.monotonic() + 60, set()
    while wanted not in seen:
        assert time.monotonic() < end, f"only {seen}"
        seen.add(embed(client))
    return seen


def test_a_version_renamed_into_place_is_switched_to_and_no_request_is_refused(serve: Serve, folder: Path) -> None:
    client, old, new = serve(bundle=folder, watch=0.02), fingerprint(folder), fingerprint(folder.parent / "next")
    assert embed(client) == old
    folder.rename(folder.parent / "old")
    (folder.parent / "next").rename(folder)
    assert until(client, new) <= {old, new}
    assert 'alignet_reloads_total{outcome="done"} 1.0' in client.get("/metrics").text


def test_a_version_that_is_copied_file_by_file_is_taken_once_it_is_whole(
    serve: Serve, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, old, source = serve(bundle=folder, watch=0.02), fingerprint(folder), folder.parent / "next"
    new = fingerprint(source)
    names = [MANIFEST, *(file.name for file in source.iterdir() if file.name != MANIFEST)]
    for name in names[:-1]:
        shutil.copy(source / name, folder / name)
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            assert embed(client) == old
    shutil.copy(source / names[-1], folder / names[-1])
    until(client, new)
    said = [record for record in caplog.records if "is not served (yet)" in record.getMessage()]
    assert len(said) == 1
    assert 'alignet_reloads_total{outcome="refused"} 0.0' in client.get("/metrics").text


def test_a_bundle_of_another_name_is_not_taken(serve: Serve, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    client, old = serve(bundle=folder, watch=0.02), fingerprint(folder)
    write_toy_bundle(folder.parent / "stranger", 3, name="stranger")
    folder.rename(folder.parent / "old")
    (folder.parent / "stranger").rename(folder)
    end = time.monotonic() + 30
    while not any("stranger" in record.getMessage() for record in caplog.records):
        assert time.monotonic() < end
        assert embed(client) == old


def test_without_the_setting_nothing_is_looked_at(serve: Serve, folder: Path) -> None:
    client, old = serve(bundle=folder), fingerprint(folder)
    folder.rename(folder.parent / "old")
    (folder.parent / "next").rename(folder)
    time.sleep(0.2)
    assert embed(client) == old
    assert client.app.state.service._watching is None  # type: ignore[attr-defined]


def test_an_app_that_ends_leaves_no_watch_and_no_thread(serve: Serve, folder: Path) -> None:
    from app.main import create_app
    from app.settings import Settings

    with TestClient(create_app(Settings(bundle=folder, watch=0.001))) as client:
        while client.get("/health/ready").status_code != 200:
            time.sleep(0.01)
        time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name == "inference"]
