"""Leaving in steps, and connections that are slow, endless or silent, over real sockets."""

import contextlib
import http.client
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn

from app import server as server_module
from app.engine import OnnxEngine
from app.main import create_app
from app.server import MAX_HEAD_BYTES, UNREAD_BYTES, Protocol, Server
from app.settings import Settings
from tests.toy import encoded, photo

PNG = {"Content-Type": "image/png"}


class Running(NamedTuple):
    server: Server
    port: int
    thread: threading.Thread

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def get(self, path: str) -> tuple[int, dict[str, str]]:
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}

    def terminate(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    @contextlib.contextmanager
    def socket(self) -> Iterator[socket.socket]:
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port), timeout=30)) as plain:
            yield plain


Run = Callable[..., Running]


@pytest.fixture
def run(toy_bundle: Path) -> Iterator[Run]:
    """`run(**settings)`: a ready server on a port of its own."""
    running: list[Running] = []

    def start(**settings: Any) -> Running:
        app = create_app(Settings(bundle=toy_bundle, **settings))
        config = uvicorn.Config(app, http=Protocol, port=0, log_config=None, timeout_graceful_shutdown=10)
        server = Server(config, app.state.service, app.state.service.settings.drain_delay)
        thread = threading.Thread(target=server.run)
        thread.start()
        until = time.monotonic() + 30
        while not (server.started and app.state.service.ready):
            assert time.monotonic() < until
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        running.append(Running(server, port, thread))
        return running[-1]

    yield start
    for one in running:
        one.server.should_exit = True
        one.thread.join(30)
        assert not one.thread.is_alive()


def test_at_sigterm_it_is_not_ready_but_still_serves_until_the_port_closes(run: Run) -> None:
    running = run(drain_delay=600.0)
    assert "connection" not in running.get("/health/ready")[1]
    running.terminate()
    status, headers = running.get("/health/ready")
    assert (status, headers["connection"].lower()) == (503, "close")
    assert int(headers["retry-after"]) >= 1
    assert running.get("/health/live")[0] == 200
    with contextlib.closing(running.connect()) as connection:
        connection.request("POST", "/embed", encoded(photo(0)), PNG)
        assert connection.getresponse().status == 200
    running.server.handle_exit(signal.SIGINT, None)
    running.thread.join(30)
    with pytest.raises(ConnectionRefusedError):
        running.get("/health/ready")


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait(run: Run, again: signal.Signals) -> None:
    running = run(drain_delay=600.0)
    running.terminate()
    running.server.handle_exit(again, None)
    running.thread.join(30)
    assert not running.thread.is_alive()


def test_a_request_in_flight_is_answered_after_the_port_has_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    running, real = run(drain_delay=0.0), OnnxEngine.embed
    entered, opened = threading.Event(), threading.Event()

    def slow(self: Any, pixels: Any) -> Any:
        entered.set()
        assert opened.wait(30)
        return real(self, pixels)

    monkeypatch.setattr(OnnxEngine, "embed", slow)
    with contextlib.closing(running.connect()) as connection:
        connection.request("POST", "/embed", encoded(photo(0)), PNG)
        assert entered.wait(30)
        running.terminate()
        until = time.monotonic() + 30
        with contextlib.suppress(ConnectionError):  # refused, or reset in the moment of closing
            while time.monotonic() < until:
                running.get("/health/ready")
        opened.set()
        assert connection.getresponse().status == 200


def closed_by_server(plain: socket.socket) -> bytes:
    """What comes before the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := plain.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize("sent", [b"", b"GET /health/live HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n"])
def test_a_head_that_does_not_come_closes_the_connection(
    run: Run, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.1)
    running = run()
    with running.socket() as plain:
        plain.sendall(sent)
        assert closed_by_server(plain) == b""
    assert running.get("/health/live")[0] == 200


def test_a_head_that_drips_is_not_given_more_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.2)
    running = run()
    start = time.monotonic()
    with running.socket() as plain, contextlib.suppress(ConnectionError):
        plain.sendall(b"GET / HTTP/1.1\r\n")
        while time.monotonic() < start + 20:
            plain.sendall(b"X: y\r\n")
            time.sleep(0.02)
    assert time.monotonic() < start + 20


def test_empty_lines_between_requests_do_not_keep_a_connection(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.2)
    running = run()
    with running.socket() as plain:
        plain.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert plain.recv(65536).startswith(b"HTTP/1.1 200")
        plain.sendall(b"\r\n")
        assert closed_by_server(plain) in (b"", b"{}", b'{"status":"live"}')


@pytest.mark.parametrize("head", [b"X: " + b"a" * (4 * MAX_HEAD_BYTES), b"X: y\r\n" * (MAX_HEAD_BYTES // 2)])
def test_an_endless_head_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 600)  # by its bytes, not by its time
    running = run()
    with running.socket() as plain:
        with contextlib.suppress(ConnectionError):
            plain.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n" + head)
        assert b"200" not in closed_by_server(plain)
    assert running.get("/health/live")[0] == 200


CHUNKED = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "piece"),
    [(b"0\r\n", b"X: " + b"a" * 8000 + b"\r\n"), (b"0\r\nX: ", b"a" * 8000), (b"1;", b"a" * 8000)],
    ids=["many trailers", "one endless trailer", "an endless chunk extension"],
)
def test_what_is_no_body_after_a_head_is_bounded_like_a_head(run: Run, before: bytes, piece: bytes) -> None:
    running = run(body_timeout=600)
    with running.socket() as plain, contextlib.suppress(ConnectionError):
        plain.sendall(CHUNKED + b"1\r\nx\r\n" + before)
        for _ in range(10_000):  # 80 MB, which the operating system does not hold for us
            plain.sendall(piece)
        raise AssertionError("all of it was taken")
    assert running.get("/health/live")[0] == 200


def test_a_trailer_is_no_header(run: Run) -> None:
    running = run(api_keys="secret")
    with running.socket() as plain:
        plain.sendall(CHUNKED + b"0\r\nAuthorization: Bearer secret\r\n\r\n")
        assert plain.recv(65536).startswith(b"HTTP/1.1 401")
    running = run()
    with running.socket() as plain:
        image = encoded(photo(0))
        chunk = f"{len(image):x}".encode() + b"\r\n" + image + b"\r\n"
        plain.sendall(CHUNKED + chunk + b"0\r\nX-Request-Timeout-Ms: nonsense\r\n\r\n")
        assert plain.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_body_of_tiny_chunks_is_read_however_much_they_weigh(run: Run) -> None:
    running, image = run(), encoded(photo(0, (160, 120)), "BMP")
    with running.socket() as plain:
        plain.sendall(CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in image) + b"0\r\n\r\n")
        assert plain.recv(65536).startswith(b"HTTP/1.1 200")


def test_requests_on_one_connection_are_not_counted_as_one_head(run: Run) -> None:
    running = run()
    with contextlib.closing(running.connect()) as connection:
        for _ in range(5):
            connection.request("GET", "/health/live", headers={"X": "y" * 20_000})
            assert connection.getresponse().read() == b'{"status":"live"}'


def test_a_body_slower_than_a_head_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.1)
    running, image = run(), encoded(photo(0))

    def pieces() -> Iterator[bytes]:
        yield image[:100]
        time.sleep(0.3)
        yield image[100:]

    with contextlib.closing(running.connect()) as connection:
        connection.request("POST", "/embed", pieces(), PNG | {"Content-Length": str(len(image))})
        assert connection.getresponse().status == 200


def test_a_client_whose_body_is_refused_may_finish_it_and_read_why(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.1)
    running = run(max_body_bytes=1024)

    def pieces() -> Iterator[bytes]:
        yield b"x" * 2000
        time.sleep(0.3)
        yield b"x" * 2000

    with contextlib.closing(running.connect()) as connection:
        connection.request("POST", "/embed", pieces(), PNG | {"Content-Length": "4000"})
        assert connection.getresponse().status == 413


VECTORS = b'{"vectors": [' + b"[0.12345678,1,2,3,4]," * 1023 + b"[0.12345678,1,2,3,4]]}"
ALL_PAIRS = b"POST /similarity HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
ALL_PAIRS += b"Content-Length: %d\r\n\r\n" % len(VECTORS) + VECTORS  # 18 MB, more than Linux keeps for a client


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextlib.contextmanager
def unread(running: Running) -> Iterator[tuple[socket.socket, Any, Any]]:
    """A client that has not read the reply to `ALL_PAIRS` yet, its connection at the server, and what is held."""
    budget = running.server.config.app.state.service.body_bytes
    with running.socket() as plain:
        plain.sendall(ALL_PAIRS)
        wait_for(lambda: budget.held > 1_000_000)
        (connection,) = running.server.server_state.connections
        yield plain, connection, budget


def test_a_reply_that_nobody_reads_is_counted_and_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "UNREAD_SECONDS", 1.0)
    running = run()
    with unread(running) as (_, _, budget):
        wait_for(lambda: not running.server.server_state.connections)  # for which a drain waits
        assert budget.held == 0


def test_a_reply_that_is_read_slowly_arrives_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "UNREAD_SECONDS", 600.0)
    received = 0
    with unread(run()) as (plain, connection, budget):
        while (held := budget.held) > 0:
            while connection.transport.get_write_buffer_size() > max(0, held - UNREAD_BYTES):
                received += len(plain.recv(65536))
            connection.loop.call_soon_threadsafe(connection.look)  # as after UNREAD_SECONDS
            wait_for(lambda before=held: budget.held < before)
        connection.loop.call_soon_threadsafe(connection.shutdown)
        received += len(closed_by_server(plain))
    assert received > 18_000_000


def test_a_refused_body_that_never_ends_is_cut_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LINGER_SECONDS", 0.1)
    running = run(max_body_bytes=1024)
    with running.socket() as plain:
        plain.sendall(b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\n")
        assert plain.recv(65536).startswith(b"HTTP/1.1 413")
        plain.sendall(b"x")
        assert b"HTTP/1.1" not in closed_by_server(plain)
