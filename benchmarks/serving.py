"""What serving costs: the service beside the same decoding and inference without it, in one run.

    python -m benchmarks.serving                       all of it, into docs/serving-figures.md
    python -m benchmarks.serving --seconds 3 --mixed 1000 --only saturation cost

A real `python -m app` over the starter on loopback, and the bare loop in this process: the same photos, the
same decode threads, the same session with the same threads. Where two things are compared they take turns, and
the ratio of each round is taken, so that other work on the machine falls on both. The client runs on the same
machine and its CPU is the service's loss. Needs Linux and matplotlib (the training environment has it).
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from app.engine import cpu_quota, inference_threads, open_engine
from app.settings import STARTER, Settings
from contract import triplets
from contract.bundle import read_bundle
from contract.pixels import load_pixels

ROOT = Path(__file__).parents[1]
PHOTOS = [file.read_bytes() for file in sorted((ROOT / "docs/photos").glob("*.jpg"))]
PAGE = ROOT / "docs/serving-figures.md"
CLIENTS = 8
"""That each wait for their answer: enough to keep the service busy, and few enough to be let in."""
PATIENT = ("--max-wait", "100", "--max-steady-wait", "100")
"""Everyone is let in, where what is measured is how fast they are served."""
IDLE = 2.0
"""Seconds after which a client no longer trusts a quiet connection; the service closes it after 5."""
TURN = 20
"""Requests in a row before the other side has its turn, where single requests are compared."""


class Row(NamedTuple):
    """One line of the table."""

    what: str
    value: str
    aim: str


@dataclass
class Figures:
    """What was measured: rows of the table, and points of the plots."""

    rows: list[Row] = field(default_factory=list)
    points: dict[str, Any] = field(default_factory=dict)


class Reply(NamedTuple):
    """When a request was due and answered, by which status (0: no answer)."""

    due: float
    ended: float
    status: int


def request(path: str, body: bytes, media_type: str) -> bytes:
    """The bytes of a POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


RAW = [request("/embed", photo, "image/jpeg") for photo in PHOTOS]
JSON = [
    request("/embed", json.dumps({"images": [{"image": base64.b64encode(p).decode()}]}).encode(), "application/json")
    for p in PHOTOS
]


class Served:
    """A process of the service, and a connection to ask it one thing at a time."""

    def __init__(self, *options: str) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        command = [sys.executable, "-m", "app", "--port", str(self.port), "--drain-delay", "0", *options]
        started = time.perf_counter()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self.log, stderr=self.log)
        while not self._ready():
            if self.process.poll() is not None or time.perf_counter() - started > 120:
                self.log.seek(0)
                sys.exit(f"the service did not start: {self.log.read().decode()[-1000:]}")
            time.sleep(0.005)
        self.start_seconds = time.perf_counter() - started
        self.connection = socket.create_connection(("127.0.0.1", self.port))

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5):
                return True
        except OSError:
            return False

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
        """End the process."""
        self.connection.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()


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
        self.slots, threads = inference_threads("cpu", settings.inference_slots, settings.inference_threads)
        self.batch = settings.max_batch or 4
        self.decoders = settings.decode_threads or min(8, max(1, cpu_quota() // 2))
        self.engine = open_engine(
            self.bundle, device="cpu", threads=threads, max_batch=self.batch, allow_cpu_fallback=False
        )

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


def saturation(bare: Bare, args: argparse.Namespace, figures: Figures) -> None:
    """Images a second through /embed with `CLIENTS` clients, over the bare loop's."""
    ratios = []
    with served(*PATIENT) as service:
        asyncio.run(closed_loop(service.port, CLIENTS, 1))
        for _ in range(args.rounds):
            alone = bare.rate(args.seconds)
            ratios.append(asyncio.run(closed_loop(service.port, CLIENTS, args.seconds)) / alone)
    figures.points["saturation"] = ratios
    spread = f"{median(ratios):.0%} (rounds {min(ratios):.0%} to {max(ratios):.0%})"
    figures.rows.append(Row("images/s through `/embed` at saturation, of the bare loop's", spread, "90 %"))


def cost(bare: Bare, args: argparse.Namespace, figures: Figures) -> None:
    """CPU time and wall time that the service adds to one request after another."""
    turns = max(2, int(args.seconds))
    cpu: dict[str, list[float]] = {"raw body": [], "JSON": []}
    added = []
    with served() as service:
        for message in RAW + JSON:
            service.ask(message)
        for _ in range(args.rounds):
            for name, messages in (("raw body", RAW), ("JSON", JSON)):
                walls: tuple[list[float], list[float]] = ([], [])
                own = 0.0
                before = service.cpu
                for _ in range(turns):  # short ones, so that both meet the same machine
                    start = time.process_time()
                    walls[0].extend(_each(bare.one, PHOTOS))
                    own += time.process_time() - start
                    walls[1].extend(_each(service.ask, messages))
                used = service.cpu - before
                cpu[name].append((used - own) / (turns * TURN) * 1000)
                if name == "raw body":
                    added.append((median(walls[1]) - median(walls[0])) * 1000)
    for name, aim in (("JSON", "1.0 ms"), ("raw body", "0.5 ms")):
        text = f"{median(cpu[name]):.2f} ms ({min(cpu[name]):.2f} to {max(cpu[name]):.2f})"
        figures.rows.append(Row(f"CPU time of a request beyond decoding and inference, {name}", text, aim))
    figures.rows.append(Row("added latency at one client, median, raw body", f"{median(added):.2f} ms", "2 ms"))


def _each(work: Callable[[Any], Any], items: list[bytes]) -> list[float]:
    """Seconds of each of `TURN` calls."""
    return [_timed(lambda: work(items[i % len(items)])) for i in range(TURN)]  # noqa: B023  # called at once


def slots(_: Bare, args: argparse.Namespace, figures: Figures) -> None:
    """Two inferences side by side against one: images a second at saturation, and the wait of a lonely client."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    waits: dict[int, list[float]] = {1: [], 2: []}
    with served("--inference-slots", "1", *PATIENT) as one, served("--inference-slots", "2", *PATIENT) as two:
        for service in (one, two):
            asyncio.run(closed_loop(service.port, CLIENTS, 1))
        for _ in range(args.rounds):
            for n, service in ((1, one), (2, two)):
                rates[n].append(asyncio.run(closed_loop(service.port, CLIENTS, args.seconds)))
                service.connect()
                waits[n].append(median(_each(service.ask, RAW)))
    for what, found in (("images/s at saturation", rates), ("median wait of one client", waits)):
        ratios = [b / a for a, b in zip(found[1], found[2], strict=True)]
        text = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        figures.rows.append(Row(f"two inferences side by side: {what}, times that of one", text, ""))


def start(_: Bare, args: argparse.Namespace, figures: Figures) -> None:
    """From typing the command to /health/ready."""
    seconds = []
    for _ in range(args.rounds):
        with served() as service:
            seconds.append(service.start_seconds)
    figures.rows.append(Row("start to ready, starter on disk", f"{median(seconds):.1f} s", "3 s"))


def overload(_: Bare, args: argparse.Namespace, figures: Figures) -> None:
    """Open-loop load of 70 % of capacity, then twice capacity, then 70 % again."""
    with served() as service:
        asyncio.run(closed_loop(service.port, CLIENTS, 1))
        capacity = asyncio.run(closed_loop(service.port, CLIENTS, args.seconds))
        calm = asyncio.run(open_loop(service.port, 0.7 * capacity, args.overload / 3))
        idle_memory, peak = service.memory, 0.0

        async def flood() -> list[Reply]:
            nonlocal peak
            load = asyncio.create_task(open_loop(service.port, 2 * capacity, args.overload))
            while not load.done():
                peak = max(peak, service.memory)
                await asyncio.sleep(0.2)
            return await load

        flooded = asyncio.run(flood())
        time.sleep(5)
        after = asyncio.run(open_loop(service.port, 0.7 * capacity, args.overload / 3))
    figures.points["overload"] = [calm, flooded, after]
    before, during, later = (_p99([r for r in part if r.status == 200]) for part in (calm, flooded, after))
    good = [r for r in flooded if r.status == 200]
    goodput = len(good) / (max(r.ended for r in flooded) - min(r.due for r in flooded)) / capacity
    codes = sorted({r.status for r in flooded})
    rows = figures.rows
    rows.append(
        Row(
            "twice capacity: p99 of accepted, times that at 70 %",
            f"{during / before:.1f} ({during * 1000:.0f} ms after {before * 1000:.0f} ms)",
            "2",
        )
    )
    rows.append(Row("twice capacity: goodput, of capacity", f"{goodput:.0%}", "90 %"))
    rows.append(
        Row(
            "twice capacity: p99 of a reject", f"{_p99([r for r in flooded if r.status == 429]) * 1000:.0f} ms", "20 ms"
        )
    )
    rows.append(Row("twice capacity: statuses seen (0: no answer)", ", ".join(map(str, codes)), "200, 429, 503"))
    rows.append(Row("twice capacity: memory at its peak, over before", f"{peak / idle_memory - 1:+.0%}", "+30 %"))
    rows.append(Row("5 s after: p99 at 70 %, times that before", f"{later / before:.1f}", "1"))


def _p99(replies: list[Reply]) -> float:
    return float(np.percentile([r.ended - r.due for r in replies], 99)) if replies else float("nan")


def memory(_: Bare, args: argparse.Namespace, figures: Figures) -> None:
    """Growth over mixed requests, good and bad, after a tenth of them."""
    with served() as service:
        size = read_bundle(STARTER).manifest.spaces["aligned"].size
        vectors = {"vectors": np.random.default_rng(0).normal(size=(20, size)).tolist()}
        mixed = [
            *RAW,
            *JSON,
            request("/embed", PHOTOS[0][:1000], "image/jpeg"),
            request("/embed", b"{", "application/json"),
            request("/similarity", json.dumps(vectors).encode(), "application/json"),
            request("/odd-one-out", json.dumps(vectors | {"triplets": [[0, 1, 2]]}).encode(), "application/json"),
            request("/nowhere", b"", "text/plain"),
        ]
        rng = np.random.default_rng(1)
        codes = set()
        for i in range(args.mixed + args.mixed // 10):
            if i == args.mixed // 10:
                before, counts = service.memory, service.handles_and_threads
            codes.add(service.ask(mixed[rng.integers(len(mixed))]))
        grown, now = service.memory - before, service.handles_and_threads
    rows = figures.rows
    rows.append(Row(f"memory growth over {args.mixed:,} mixed requests", f"{grown:+.0f} MB", "+50 MB"))
    rows.append(Row("the same: file handles and threads, before and after", f"{counts} and {now}", "constant"))
    rows.append(Row("the same: statuses seen", ", ".join(map(str, sorted(codes))), "no 5xx"))


def vectors(_: Bare, args: argparse.Namespace, figures: Figures) -> None:
    """Triplets a second from vectors in one request, over the bare maths."""
    manifest = read_bundle(STARTER).manifest
    space, rng = manifest.spaces["aligned"], np.random.default_rng(0)
    given = rng.normal(size=(1000, space.size)).astype(np.float32)
    asked = np.array([rng.choice(len(given), 3, replace=False) for _ in range(args.triplets)])
    texts = [base64.b64encode(row.tobytes()).decode() for row in given]
    body = json.dumps({"vectors": texts, "triplets": asked.tolist()}).encode()

    def maths() -> None:
        wide = given.astype(np.float64)
        for i in range(0, len(asked), 256):  # as large as the cache likes; the whole at once is slower
            sims = triplets.pair_similarities(wide[asked[i : i + 256]], space.similarity)
            p = triplets.odd_probabilities(sims, space.temperature)
            triplets.odd_one_out(sims, manifest.tie_rule), triplets.entropy(p), triplets.margin(p)

    ratios = []
    with served(
        "--max-triplets", str(args.triplets), "--max-request-timeout", "600", "--request-timeout", "30"
    ) as service:
        message = request("/odd-one-out", body, "application/json")
        for _ in range(args.rounds):
            alone = _timed(maths)
            answers: list[int] = []
            with_service = _timed(lambda: answers.append(service.ask(message)))  # noqa: B023  # called at once
            if answers != [200]:
                sys.exit(f"triplets got {answers}")
            ratios.append(alone / with_service)
    what = f"triplets/s from vectors, {args.triplets:,} in one request, of the bare maths'"
    figures.rows.append(Row(what, f"{median(ratios):.0%}", "30 %"))


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


MEASURES = {
    "saturation": saturation,
    "cost": cost,
    "slots": slots,
    "start": start,
    "overload": overload,
    "memory": memory,
    "vectors": vectors,
}


def page(figures: Figures, args: argparse.Namespace, load: float) -> str:
    """The page of the figures."""
    table = "\n".join(f"| {row.what} | {row.value} | {row.aim} |" for row in figures.rows)
    options = " ".join(
        f"--{k} {' '.join(v) if isinstance(v, list) else v}" for k, v in vars(args).items() if v != list(MEASURES)
    )
    return f"""# What serving costs

Written by `python -m benchmarks.serving {options}` on {time.strftime("%Y-%m-%d")}: {cpu_quota()} CPUs
({platform.machine()}), Python {platform.python_version()}, the starter bundle, four photos of 26 to 65 KB.
Client, service and bare loop share these CPUs. The load average was {load:.1f} when it began; above 1 other work was
running, and then only ratios mean something, with the spread that the rounds show.

| what | measured | aim |
|---|---|---|
{table}

![latency under load, and throughput by round](results/serving.svg)

Left: each request of the overload run by when it was due and how long it took, at 70 % of capacity, at twice
capacity, and at 70 % again. Right: throughput at saturation over the bare loop's, by round.
"""


def plot(figures: Figures, file: Path) -> None:
    """The two panels of the page."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "alignet"
    from matplotlib import pyplot as plt

    shape, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 1))
    parts = figures.points.get("overload", [])
    origin = min((r.due for part in parts for r in part), default=0.0)
    for status, colour in ((200, "tab:blue"), (429, "tab:orange"), (503, "tab:red"), (504, "black"), (0, "magenta")):
        chosen = [r for part in parts for r in part if r.status == status]
        if chosen:
            times, took = [r.due - origin for r in chosen], [(r.ended - r.due) * 1000 for r in chosen]
            left.scatter(times, took, s=3, c=colour, rasterized=True, label=f"{status or 'no answer'} ({len(chosen)})")
    left.set(xlabel="seconds", ylabel="ms from when it was due", yscale="log")
    if parts:
        left.legend(loc="upper right", fontsize=8)
    ratios = figures.points.get("saturation", [])
    right.bar(range(1, len(ratios) + 1), ratios)
    right.axhline(0.9, color="black", lw=0.8)
    right.set(xlabel="round", ylabel="of the bare loop", ylim=(0, 1.2))
    shape.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    shape.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one measurement in a round")
    parser.add_argument(
        "--overload", type=float, default=60.0, help="seconds of twice capacity; a third of it before and after"
    )
    parser.add_argument("--mixed", type=int, default=10_000)
    parser.add_argument("--triplets", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    figures, bare, load = Figures(), Bare(), os.getloadavg()[0]
    for name in args.only:
        before = len(figures.rows)
        MEASURES[name](bare, args, figures)
        for row in figures.rows[before:]:
            print(f"{row.what}: {row.value} (aim {row.aim})", flush=True)
    out = vars(args).pop("out")
    plot(figures, out.parent / "results/serving.svg")
    out.write_text(page(figures, args, load))


if __name__ == "__main__":
    main()
