"""Several bundles in one process: each request gets the one it names, and only what must be shared is."""

import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.engine import OnnxEngine
from app.main import create_app
from app.served import bundle_folders
from app.settings import Settings
from contract.bundle import read_bundle
from tests.toy import encoded, photo, write_toy_bundle

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two bundles, `a` and `b`."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate("ab"):
        write_toy_bundle(folder / name, seed, name)
    return folder


def embed(client: TestClient, model: str | None = None, seed: int = 0) -> Any:
    query = {} if model is None else {"model": model}
    return client.post("/embed", params=query, content=encoded(photo(seed)), headers=PNG)


@pytest.mark.parametrize("several", ["a,b", "."])
def test_a_request_is_answered_by_the_model_it_names_or_the_first(serve: Serve, folder: Path, several: str) -> None:
    client = serve(bundle=",".join(str(folder / name) for name in several.split(",")))
    for name in "ab":
        golden = read_bundle(folder / name).golden
        reply = client.post("/embed", params={"model": name}, content=golden.images[0], headers=PNG).json()
        assert reply["model"] == name
        np.testing.assert_allclose(reply["data"][0]["embedding"], golden.vectors["aligned"][0], rtol=1e-5)
    assert embed(client).json() == embed(client, "a").json() != embed(client, "b").json()
    assert embed(client, "c").json()["code"] == "model_not_found"


def test_every_judging_route_goes_by_the_model(serve: Serve, folder: Path) -> None:
    client = serve(bundle=folder)
    items = [{"image": base64.b64encode(encoded(photo(seed))).decode()} for seed in range(3)]
    for path in ("/odd-one-out", "/similarity"):
        replies = [client.post(path, json={"images": items, "model": name}).json() for name in "ab"]
        assert [reply["model"] for reply in replies] == ["a", "b"]
        assert replies[0]["fingerprint"] != replies[1]["fingerprint"]


def test_the_models_are_listed_each_with_a_card_and_its_memory(serve: Serve, folder: Path) -> None:
    client = serve(bundle=(folder / "b", folder))
    assert [model["name"] for model in client.get("/models").json()["models"]] == ["b", "a"]
    for name in "ab":
        memory = client.get(f"/models/{name}").json()["memory"]
        assert memory["graph_bytes"] == (folder / name / "model.onnx").stat().st_size
        assert memory["resident_bytes"] >= 0
    text = client.get("/metrics").text
    assert text.count("alignet_build_info{") == 2


def test_a_folder_stands_for_its_bundles_once_each_and_leaves_out_what_is_hidden(folder: Path, tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "c")
    (tmp_path / "c").rename(tmp_path / ".c.new")
    assert bundle_folders((folder / "b", folder)) == [folder / "b", folder / "a"]
    assert bundle_folders((tmp_path, tmp_path / "none")) == [tmp_path, tmp_path / "none"]


def test_two_bundles_of_one_name_do_not_start(folder: Path, toy_bundle: Path, tmp_path: Path) -> None:
    failures: list[Exception] = []
    other = write_toy_bundle(tmp_path / "other", 1, "toy")
    with TestClient(create_app(Settings(bundle=(toy_bundle, other)), on_failure=failures.append)) as client:
        while not failures:
            assert client.get("/health/ready").status_code == 503
    assert "'toy'" in str(failures[0])
    assert not [thread for thread in threading.enumerate() if thread.name == "inference"]


def test_a_model_that_is_full_refuses_its_own_requests_only(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(bundle=folder, max_admitted_images=1, decode_threads=2)
    first = client.app.state.service.models.current.default.engine._graph  # type: ignore[attr-defined]
    entered, opened, real = threading.Event(), threading.Event(), OnnxEngine.embed

    def gated(self: Any, pixels: Any) -> Any:
        if self is first:
            entered.set()
            assert opened.wait(30)
        return real(self, pixels)

    monkeypatch.setattr(OnnxEngine, "embed", gated)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(embed, client, "a")
        assert entered.wait(30)
        assert embed(client, "a", seed=1).status_code == 429
        assert embed(client, "b").status_code == 200
        assert "alignet_admitted_images 1.0" in client.get("/metrics").text
        opened.set()
        assert slow.result(30).status_code == 200


def test_one_triton_serves_several_and_a_missing_one_takes_only_itself_away(serve: Serve, folder: Path) -> None:
    pytest.importorskip("tritonclient.grpc")
    from tests.stub_triton import StubTriton

    class Both(StubTriton):
        def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
            return b.ModelConfig(request, context) if request.name == "b" else super().ModelConfig(request, context)

        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            named = request.model_name
            return b.ModelInfer(request, context) if named == "b" else super().ModelInfer(request, context)

    b = StubTriton(folder / "b")
    stub = Both(folder / "a")
    try:
        client = serve(bundle=folder, triton_url=stub.address)
        assert [embed(client, name).json()["model"] for name in "ab"] == ["a", "b"]
        assert embed(client, "a").json()["data"] != embed(client, "b").json()["data"]
        b.config.name = "another"
        until = time.monotonic() + 30
        while embed(client, "b").status_code != 503:
            assert time.monotonic() < until
        assert (embed(client, "a").status_code, client.get("/health/ready").status_code) == (200, 503)
        assert len(client.get("/models").json()["models"]) == 2
    finally:
        stub.stop()
        b.stop()


@pytest.mark.parametrize("flags", [["--bundle", "x,y"], ["--bundle", "x", "--bundle", "y"], ["--bundle", " x , y,"]])
def test_several_bundles_are_given_with_commas_or_by_several_flags(flags: list[str]) -> None:
    assert Settings(_cli_parse_args=flags).bundles == (Path("x"), Path("y"))


def test_a_folder_with_a_comma_in_its_name_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "x,y"
    folder.mkdir()
    assert Settings(bundle=str(folder)).bundles == (folder,)
