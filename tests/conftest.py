"""Fixtures of every room: the toy bundle, a client of a live app over it, the folder of real data."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# ONNX Runtime's official builds report usage to their maker unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from tests.toy import write_toy_bundle

NO_TORCH = importlib.util.find_spec("torch") is None
collect_ignore = ["training", "export"] if NO_TORCH else []


def pytest_report_header() -> str:
    """Say what is left out, so that a bare `pytest` in the serving environment does not pass for everything."""
    return "no torch here: tests/training and tests/export are left out, see `make test-training`" if NO_TORCH else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what needs real data where there is none."""
    if not data_folder().is_dir():
        for item in items:
            if item.get_closest_marker("realdata"):
                item.add_marker(pytest.mark.skip(reason=f"no data folder at {data_folder()}; set ALIGNET_DATA"))


def data_folder() -> Path:
    """Where the real judgments and photos are, if they are."""
    return Path(os.environ.get("ALIGNET_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real judgments and photos."""
    return data_folder()


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole, honest bundle that any engine runs in microseconds."""
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def serve(toy_bundle: Path) -> Iterator[Callable[..., Any]]:
    """`serve(**settings)`: a client of a ready app over the toy bundle, or over another `bundle=`.

    One inference at a time unless told otherwise, so that a test that stops one stops the engine, on any machine.
    """
    from contextlib import ExitStack

    from fastapi.testclient import TestClient

    from app.main import create_app
    from app.settings import Settings

    with ExitStack() as stack:

        def start(*, raise_bugs: bool = True, **settings: Any) -> TestClient:
            one = {} if "triton_url" in settings else {"inference_slots": 1}
            app = create_app(Settings(**{"bundle": toy_bundle, **one, **settings}))
            client = stack.enter_context(TestClient(app, raise_server_exceptions=raise_bugs))
            until = time.monotonic() + 30
            while client.get("/health/ready").status_code != 200:
                assert time.monotonic() < until, "the app never became ready"
                time.sleep(0.01)
            return client

        yield start


@pytest.fixture
def client(serve: Callable[..., Any]) -> Any:
    """A client of a ready app over the toy bundle, with default settings."""
    return serve()
