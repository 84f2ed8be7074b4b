"""Servers on loopback, and who asks them: what the benchmarks of serving share.

A server runs as a process of its own; the bare loop does the same decoding and inference in this process, without a
server. Clients run on the same machine, and what they take of its CPU is the server's loss.
"""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.engine import cpu_quota, inference_slots, open_engine
from app.settings import STARTER, Settings
from contract.bundle import read_bundle
from contract.pixels import load_pixels

ROOT = Path(__file__).parents[1]
PHOTOS = [file.read_bytes() for file in sorted((ROOT / "docs/photos").glob("*.jpg"))]
IDLE = 2.0
"""Seconds after which a client no longer trusts a quiet connection; the service closes it after 5."""


def request(path: str, body: bytes, media_type: str) -> bytes:
    """The bytes of a POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def embed_json(photo: bytes) -> bytes:
    """The bytes of a POST of one photo to /embed, as JSON."""
    body = json.dumps({"images": [{"image": base64.b64encode(photo).decode()}]})
    return request("/embed", body.encode(), "application/json")


RAW = [request("/embed", photo, "image/jpeg") for photo in PHOTOS]
JSON = [embed_json(photo) for photo in PHOTOS]


class Process:
    """A server's process and those that it starts, ready on a port of loopback.

    Args:
        command: of the server, for the port it is to listen on.
        ready: path that answers 200 once requests are served.
    """

    def __init__(self, command: Callable[[int], list[str]], ready: str) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        started = time.perf_counter()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            command(self.port), cwd=ROOT, stdout=self._log, stderr=self._log, start_new_session=True
        )
        while not self._answers(ready):
            if self.process.poll() is not None or time.perf_counter() - started > 120:
                self._log.seek(0)
                sys.exit(f"{' '.join(command(self.port))} did not start: {self._log.read().decode()[-2000:]}")
            time.sleep(0.005)
        self.start_seconds = time.perf_counter() - started

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5):
                return True
        except OSError:
            return False

    def close(self) -> None:
        """End it, and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            os.killpg(self.process.pid, signal.SIGKILL)
        self._log.close()


class Served(Process):
    """The service, and a connection to ask it one thing at a time."""

    def __init__(self, *options: str) -> None:
        super().__init__(
            lambda port: [sys.executable, "-m", "app", "--port", str(port), "--drain-delay", "0", *options],
            "/health/ready",
        )
        self.connection = socket.create_connection(("127.0.0.1", self.port))

    def ask(self, message: bytes) -> int:
        """The status of one request on the one connection."""
        self.connection.sendall(message)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.connection.recv(65536)
        head, _, rest = data.partition(b"\r\n\r\n")
        body = memoryview(bytearray(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])))
        body[: len(rest)] = rest
        got = len(rest)
        while got < len(body):  # into place: adding pieces up would copy a large reply hundreds of times
            got += self.connection.recv_into(body[got:])
        return int(head[9:12])

    def connect(self) -> None:
        """A new connection for `ask`: the service closes one that says nothing for a while."""
        self.connection.close()
        self.connection = socket.create_connection(("127.0.0.1", self.port))

    @property
    def cpu(self) -> float:
        """Seconds of CPU the process has taken."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> float:
        """Resident MB."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    @property
    def handles_and_threads(self) -> tuple[int, int]:
        """Open file handles, threads."""
        folder = Path(f"/proc/{self.process.pid}")
        return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))

    def close(self) -> None:
        """See `Process`."""
        self.connection.close()
        super().close()


@contextlib.contextmanager
def served(*options: str) -> Iterator[Served]:
    """A ready service, ended with the block."""
    service = Served("--no-access-log", *options)
    try:
        yield service
    finally:
        service.close()


class Bare:
    """The same work without a service: decode threads and one session, in this process."""

    def __init__(self, bundle: Path = STARTER) -> None:
        settings = Settings()
        self.bundle = read_bundle(bundle)
        slots = inference_slots("cpu", settings.inference_slots, settings.inference_threads)
        self.slots = slots.inferences
        self.decoders = settings.decode_threads or min(8, max(1, cpu_quota() // 2))
        self.engine = open_engine(
            self.bundle, device="cpu", slots=slots, max_batch=settings.max_batch, allow_cpu_fallback=False
        )
        self.batch = self.engine.max_batch

    def one(self, photo: bytes) -> None:
        """Decode and embed one photo in this thread."""
        self.engine.embed(load_pixels(photo, self.bundle.manifest.pixels)[None])

    def rate(self, seconds: float) -> float:
        """Images a second, decoding ahead of inference, in full batches, as many side by side as in the service."""
        with ThreadPoolExecutor(self.decoders) as decode, ThreadPoolExecutor(self.slots) as infer:
            start = time.perf_counter()
            done = sum(infer.map(lambda _: self._infer(decode, start + seconds), range(self.slots)))
            elapsed = time.perf_counter() - start
            decode.shutdown(cancel_futures=True)
        return done / elapsed

    def _infer(self, pool: ThreadPoolExecutor, end: float) -> int:
        def decoded(n: int) -> list[Any]:
            return [pool.submit(load_pixels, PHOTOS[i % 4], self.bundle.manifest.pixels) for i in range(n)]

        jobs, n = decoded(4 * self.batch), 0
        while time.perf_counter() < end:
            self.engine.embed(np.stack([job.result() for job in jobs[: self.batch]]))
            jobs = jobs[self.batch :] + decoded(self.batch)
            n += self.batch
        return n


class Reply(NamedTuple):
    """When a request was due and answered, by which status (0: no answer)."""

    due: float
    ended: float
    status: int


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> int:
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    return int(head[9:12])


async def closed_loop(port: int, clients: int, seconds: float, messages: list[bytes] = RAW) -> float:
    """Answers 200 a second to clients that each wait for theirs."""
    good, end = 0, time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal good
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            # Apart, because += would read `good` before it waits.
            status = await _exchange(reader, writer, messages[number % len(messages)])
            good += status == 200
        writer.close()

    await asyncio.gather(*(client(i) for i in range(clients)))
    return good / seconds


async def open_loop(port: int, rate: float, seconds: float) -> list[Reply]:
    """Requests that come at `rate`, Poisson, whether or not others are answered; timed from when they were due."""
    rng, replies, idle = np.random.default_rng(0), list[Reply](), list[Any]()

    async def one(due: float, number: int) -> None:
        try:
            since, pair = idle.pop() if idle else (0.0, None)
            if pair is None or time.perf_counter() - since > IDLE:
                pair = await asyncio.open_connection("127.0.0.1", port)
            status = await asyncio.wait_for(_exchange(*pair, RAW[number % len(RAW)]), 40)
            idle.append((time.perf_counter(), pair))
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            status = 0
        replies.append(Reply(due, time.perf_counter(), status))

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        due, number = start, 0
        while (due := due + rng.exponential(1 / rate)) < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(due, number))
            number += 1
    for _, (_, writer) in idle:
        writer.close()
    return replies
