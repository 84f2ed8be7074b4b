"""A live service over the toy bundle, in a process of its own, as clients meet it."""

from collections.abc import Iterator
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
