"""Two real replicas behind the real HAProxy and nginx: one is killed, one is drained and replaced."""

import http.client
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from app.settings import STARTER
from contract.bundle import read_bundle
from tests.running import ROOT, Running, free_port, need, replica, until

PHOTO = (ROOT / "docs/photos/cat.jpg").read_bytes()
CLIENTS = 4


class Sent(NamedTuple):
    """One attempt: when it began and ended, its status (0: the connection broke), and whose vector it got."""

    began: float
    ended: float
    status: int
    fingerprint: str | None


class Load:
    """Clients that post a photo again and again, each waiting for its answer, until the block ends."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sent: list[Sent] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _client(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=40)
        while not self._over.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", "/embed", PHOTO, {"Content-Type": "image/jpeg"})
                reply = connection.getresponse()
                reply.read()
                status, fingerprint = reply.status, reply.getheader("X-Space-Fingerprint")
            except (OSError, http.client.HTTPException):
                connection.close()
                status, fingerprint = 0, None
            self.sent.append(Sent(began, time.monotonic(), status, fingerprint))
        connection.close()

    def wait_for(self, n: int, fingerprint: str | None = None) -> None:
        """Until n more answers came; with a fingerprint, n answers by it."""
        start, end = len(self.sent), time.monotonic() + 90
        while sum(fingerprint in (None, sent.fingerprint) for sent in self.sent[start:]) < n:
            assert time.monotonic() < end, f"{n} more answers did not come; the last were {self.sent[-3:]}"
            time.sleep(0.02)


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """`replicas(port, *arguments)` runs one, ready or soon so; all are killed at the end."""
    running: list[Running] = []

    def start(port: int, *arguments: str) -> Running:
        running.append(replica(port, tmp_path / f"{port}.log", "--drain-delay", "3", "--no-access-log", *arguments))
        return running[-1]

    yield start
    for process in running:
        process.__exit__()


def haproxy(port: int, servers: list[int], tmp_path: Path) -> Running:
    names = {f"ALIGNET_SERVER_{i}": f"127.0.0.1:{server}" for i, server in enumerate(servers, 1)}
    command = [need("haproxy"), "-db", "-f", "deploy/haproxy.cfg"]
    return Running(command, tmp_path / "balancer.log", ALIGNET_BIND=f"127.0.0.1:{port}", **names)


def nginx(port: int, servers: list[int], tmp_path: Path) -> Running:
    text = (ROOT / "deploy/nginx.conf").read_text()
    for written, real in {8000: port, 8001: servers[0], 8002: servers[1]}.items():
        assert f"127.0.0.1:{written}" in text
        text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{real}")
    text = text.replace("/tmp/alignet-nginx", f"{tmp_path}/nginx").replace("/dev/stdout", f"{tmp_path}/access.log")
    (tmp_path / "nginx.conf").write_text(text)
    tmp_path.chmod(0o755)
    command = [need("nginx"), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr", "-g", "daemon off;"]
    return Running(command, tmp_path / "balancer.log")


@pytest.mark.parametrize("balancer", [haproxy, nginx])
def test_a_replica_may_be_killed_and_the_other_replaced_under_load(
    balancer: Callable[..., Running],
    replicas: Callable[..., Running],
    toy_bundle: Path,
    tmp_path: Path,
) -> None:
    port, one, two = free_port(), free_port(), free_port()
    new = read_bundle(toy_bundle).manifest.spaces["aligned"].fingerprint
    with balancer(port, [one, two], tmp_path):
        killed, drained = replicas(one), replicas(two)
        for each in (one, two, port):
            until(f"http://127.0.0.1:{each}/health/ready")
        with Load(port) as load:
            load.wait_for(20)
            killed.stop(signal.SIGKILL)
            at_kill = time.monotonic()
            load.wait_for(20)
            replicas(one, "--bundle", str(toy_bundle))  # the new version, where the old one was
            load.wait_for(5, new)
            before_drain = len(load.sent)
            assert drained.stop(signal.SIGTERM) == 0
            load.wait_for(20, new)
            after_drain = load.sent[before_drain:]
    old = read_bundle(STARTER).manifest.spaces["aligned"].fingerprint
    lost = [sent for sent in load.sent if sent.status != 200]
    # What was inside the killed one, and nothing else: no balancer can send again what has begun to be answered.
    assert all(sent.began <= at_kill <= sent.ended + 0.5 for sent in lost), lost
    assert len(lost) < CLIENTS, f"{len(lost)} of {len(load.sent)} lost, with {CLIENTS} clients"
    assert all(sent.status == 200 for sent in after_drain)
    assert {sent.fingerprint for sent in load.sent if sent.status == 200} == {old, new}
