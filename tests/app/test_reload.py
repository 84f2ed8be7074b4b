"""A new version of a bundle beside the old one: switched whole, without a dropped request, or not at all."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app import service as service_module
from app.engine import OnnxEngine
from app.settings import Settings
from contract.bundle import read_bundle
from tests.toy import encoded, photo, write_toy_bundle

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}
ADMIN = {"Authorization": "Bearer boss"}


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link to version 1 of the toy; version 2 stands beside it."""
    for seed in (1, 2):
        write_toy_bundle(tmp_path / f"version-{seed}", seed)
    (tmp_path / "toy").symlink_to("version-1")
    return tmp_path / "toy"


def point(link: Path, version: str) -> None:
    link.unlink()
    link.symlink_to(version)


def reload(client: TestClient, name: str = "toy", **headers: str) -> Any:
    return client.post(f"/admin/models/{name}/reload", headers=ADMIN | headers)


def embed(client: TestClient) -> Any:
    return client.post("/embed", content=encoded(photo(0)), headers=PNG)


def fingerprint(bundle: Path) -> str:
    return read_bundle(bundle).manifest.spaces["aligned"].fingerprint


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "inference"]


def test_the_new_version_answers_and_nothing_is_left_of_the_old_one(serve: Serve, link: Path) -> None:
    client, before = serve(bundle=link, admin_keys="boss"), len(threads())
    graph = weakref.ref(client.app.state.service.model().engine._graph)  # type: ignore[attr-defined]
    old = embed(client).json()["fingerprint"]
    point(link, "version-2")
    reply = reload(client).json()
    new = fingerprint(link)
    assert reply == {"model": "toy", "fingerprint": new, "previous_fingerprint": old, "changed": True}
    assert embed(client).json()["fingerprint"] == new != old
    text = client.get("/metrics").text
    assert (text.count("alignet_build_info{"), text.count(new)) == (1, 1)
    assert 'alignet_reloads_total{outcome="done"} 1.0' in text
    until = time.monotonic() + 30
    while len(threads()) > before or gc.collect() < 0 or graph() is not None:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_requests_that_have_begun_are_finished_by_the_old_version(
    serve: Serve, link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(bundle=link, admin_keys="boss")
    first = client.app.state.service.model().engine._graph  # type: ignore[attr-defined]
    entered, opened, real = threading.Event(), threading.Event(), OnnxEngine.embed

    def gated(self: Any, pixels: Any) -> Any:
        if self is first:
            entered.set()
            assert opened.wait(30)
        return real(self, pixels)

    monkeypatch.setattr(OnnxEngine, "embed", gated)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(embed, client)
        assert entered.wait(30)
        point(link, "version-2")
        assert reload(client).json()["changed"]
        assert embed(client).json()["fingerprint"] == fingerprint(link)
        opened.set()
        assert slow.result(30).json()["fingerprint"] == fingerprint(link.parent / "version-1")


def test_no_request_is_refused_while_versions_are_switched(serve: Serve, link: Path) -> None:
    client, over, seen = serve(bundle=link, admin_keys="boss"), threading.Event(), set()

    def load() -> set[tuple[int, str]]:
        mine = set()
        while not over.is_set():
            reply = embed(client)
            mine.add((reply.status_code, reply.json().get("fingerprint")))
        return mine

    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(load) for _ in range(3)]
        try:
            for version in ("version-2", "version-1", "version-2"):
                point(link, version)
                assert reload(client).status_code == 200
        finally:
            over.set()
        for job in clients:
            seen |= job.result(30)
    assert seen == {(200, fingerprint(link.parent / f"version-{seed}")) for seed in (1, 2)}


def test_a_bundle_that_cannot_be_served_changes_nothing(serve: Serve, link: Path) -> None:
    client = serve(bundle=link, admin_keys="boss")
    old, before = embed(client).json(), len(threads())
    write_toy_bundle(link.parent / "stranger", 3, "stranger")
    with (link.parent / "version-2" / "model.onnx").open("r+b") as stream:
        stream.write(b"x")
    for bad, error in (("version-2", "FileCorrupt"), ("stranger", "WrongModels"), ("nowhere", "NotABundle")):
        point(link, bad)
        reply = reload(client)
        assert (reply.status_code, reply.json()["code"]) == (409, "reload_refused")
        assert error in reply.json()["detail"]
        assert str(link.parent) not in reply.text
    assert (embed(client).json(), len(threads())) == (old, before)


def test_the_same_bundle_is_not_loaded_again_but_an_unknown_one_is_404(serve: Serve, link: Path) -> None:
    client = serve(bundle=link, admin_keys="boss")
    engine = client.app.state.service.model().engine  # type: ignore[attr-defined]
    assert not reload(client).json()["changed"]
    assert client.app.state.service.model().engine is engine  # type: ignore[attr-defined]
    assert reload(client, "other").json()["code"] == "model_not_found"


def test_the_admin_paths_need_their_own_key_and_do_not_exist_without_one(serve: Serve, toy_bundle: Path) -> None:
    assert reload(serve()).json()["code"] == "route_not_found"
    client = serve(api_keys="guest", admin_keys="boss")
    for key in ("guest", "", "bos"):
        assert reload(client, Authorization=f"Bearer {key}").status_code == 401
    assert client.get("/models", headers=ADMIN).status_code == 401
    assert reload(client).status_code == 200
    with pytest.raises(ValidationError, match="admin"):
        Settings(api_keys="a,b", admin_keys="b")


def test_a_version_that_comes_after_the_end_is_closed(
    serve: Serve, link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, before = serve(bundle=link, admin_keys="boss"), len(threads())
    service = client.app.state.service  # type: ignore[attr-defined]
    real = service._open_version

    async def late(old: Any) -> Any:
        new = await real(old)
        service.draining = True
        return new

    point(link, "version-2")
    monkeypatch.setattr(service, "_open_version", late)
    assert reload(client).json()["code"] == "not_ready"
    service.draining = False
    assert (len(threads()), embed(client).json()["fingerprint"]) == (before, fingerprint(link.parent / "version-1"))


def test_on_triton_the_switch_waits_until_it_serves_the_new_version(
    serve: Serve, link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tritonclient.grpc")
    from tests.stub_triton import StubTriton

    monkeypatch.setattr(service_module, "ENGINE_SECONDS", 1.0)
    stub, new = StubTriton(link), StubTriton(link.parent / "version-2")
    try:
        client = serve(bundle=link, triton_url=stub.address, admin_keys="boss")
        point(link, "version-2")
        assert reload(client).json()["code"] == "reload_refused"
        assert embed(client).json()["fingerprint"] == fingerprint(link.parent / "version-1")
        stub.config, stub.session = new.config, new.session
        assert reload(client).json()["changed"]
        assert embed(client).json()["fingerprint"] == fingerprint(link)
    finally:
        stub.stop()
        new.stop()
