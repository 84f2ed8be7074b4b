"""The service beside LitServe and BentoML, which serve the same network with the same preprocessing.

    python -m venv rivals && rivals/bin/pip install -e '.[cpu]' litserve bentoml
    python -m benchmarks.rivals --python rivals/bin/python                       the starter
    python -m benchmarks.rivals --python rivals/bin/python --bundle STUDENT      another bundle

Each server decodes with `contract.pixels` and infers in an ONNX Runtime session as `app.engine` opens it; a request is
one photo in JSON, as base64, and its answer the vector as numbers. LitServe runs as its guide has it, in batches,
with one worker of all threads and with one worker a CPU; BentoML as a service with a thread a CPU. Clients each wait
for their answer. Servers take turns, each for `--seconds` at each number of clients, and those that are not asked
are stopped (SIGSTOP), because idle ones poll. The ratio of each round is taken. The service's limits on waiting are
lifted, because LitServe and BentoML let everyone in. What the same decoding and inference give without a server says
how far ahead any server could be.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import platform
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.loopback import PHOTOS, ROOT, Bare, Process, closed_loop, request


class Rival(NamedTuple):
    """A server to be measured: its name, the command that starts it, and the path that says that it is ready."""

    name: str
    command: Callable[[int], list[str]]
    ready: str
    body: Callable[[str], dict[str, Any]]


def rivals(args: argparse.Namespace, threads: int) -> list[Rival]:
    """The service first, then the others."""
    wide = ["--max-wait", "100", "--max-steady-wait", "100", "--request-timeout", "30", "--drain-delay", "0"]
    python = str(args.python.absolute())

    def lit(workers: int, each: int) -> Callable[[int], list[str]]:
        numbers = [str(workers), str(each)]
        return lambda port: [python, "-m", "benchmarks.rival_litserve", str(args.bundle), str(port), *numbers]

    def bento(port: int) -> list[str]:
        settings = [f"BUNDLE={args.bundle}", f"THREADS={threads}", "BENTOML_DO_NOT_TRACK=true"]
        service = "benchmarks.rival_bentoml:Embedding"
        return ["env", *settings, python, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "-p", str(port)]

    def ours(port: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "app",
            "--bundle",
            str(args.bundle),
            "--port",
            str(port),
            "--no-access-log",
            *wide,
        ]

    def body(text: str) -> dict[str, Any]:
        return {"image": text}

    return [
        Rival("AligNet Serve", ours, "/health/ready", lambda text: {"images": [{"image": text}]}),
        Rival("LitServe, 1 worker", lit(1, threads), "/health", body),
        Rival(f"LitServe, {threads} workers", lit(threads, 1), "/health", body),
        Rival("BentoML", bento, "/readyz", body),
    ]


class Running(Process):
    """A rival's processes, stopped but while it is asked."""

    def __init__(self, rival: Rival) -> None:
        super().__init__(rival.command, rival.ready)
        self.rival = rival
        texts = [base64.b64encode(photo).decode() for photo in PHOTOS]
        self.messages = [request("/embed", json.dumps(rival.body(t)).encode(), "application/json") for t in texts]
        with self.awake():
            self.vector = self._vector()

    def _vector(self) -> list[float]:
        """What it says of the first photo, whatever its shape."""
        _, _, body = self.messages[0].partition(b"\r\n\r\n")
        question = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/embed", data=body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(question, timeout=120) as reply:
            answer = json.load(reply)
        vector: list[float] = (answer["data"][0] if "data" in answer else answer)["embedding"]
        return vector

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Runs it within the block, and stops it after."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def rate(self, clients: int, seconds: float) -> float:
        """Images a second to clients that each wait for theirs."""
        with self.awake():
            asyncio.run(closed_loop(self.port, clients, 1.0, self.messages))
            return asyncio.run(closed_loop(self.port, clients, seconds, self.messages))

    def close(self) -> None:
        """See `Process`."""
        with contextlib.suppress(ProcessLookupError):  # it has ended: the others must still be
            os.killpg(self.process.pid, signal.SIGCONT)
        super().close()


def measure(args: argparse.Namespace) -> str:
    """The table of one bundle."""
    import numpy as np
    from tqdm import tqdm

    from app.engine import cpu_quota

    load, servers = os.getloadavg()[0], list[Running]()
    rates: dict[tuple[str, int], list[float]] = {}
    try:
        for rival in rivals(args, cpu_quota()):
            servers.append(Running(rival))
        for server in servers[1:]:
            np.testing.assert_allclose(server.vector, servers[0].vector, rtol=1e-4, atol=1e-5)
        bare, alone = Bare(args.bundle), list[float]()
        turns = [(n, s) for _ in range(args.rounds) for n in args.clients for s in servers]
        for turn, (clients, server) in enumerate(tqdm(turns, unit="turn")):
            if turn % (len(turns) // args.rounds) == 0:
                alone.append(bare.rate(args.seconds))
            rates.setdefault((server.rival.name, clients), []).append(server.rate(clients, args.seconds))
    finally:
        for server in servers:
            server.close()
    ours = servers[0].rival.name
    out = io.StringIO()
    print(f"| {args.name} | " + " | ".join(f"{n} client{'s'[n == 1 :]}" for n in args.clients) + " |", file=out)
    print("|---|" + "---|" * len(args.clients), file=out)
    cells = [f"{median(rates[ours, n]):.1f}" for n in args.clients]
    print(f"| {ours}, images/s | " + " | ".join(cells) + " |", file=out)
    for server in servers[1:]:
        name = server.rival.name
        cells = [_ratios(rates[ours, n], rates[name, n]) for n in args.clients]
        print(f"| times {name} | " + " | ".join(cells) + " |", file=out)
    for server in servers:
        name = server.rival.name
        cells = [_ratios(alone, rates[name, n]) for n in args.clients]
        print(f"| no server at all, times {name} | " + " | ".join(cells) + " |", file=out)
    machine = f"{cpu_quota()} CPUs ({platform.machine()}), load average {load:.1f} at the start"
    print(f"\n{time.strftime('%Y-%m-%d')}, {machine}; {args.rounds} rounds of {args.seconds:g} s.", file=out)
    return out.getvalue()


def _ratios(ours: list[float], theirs: list[float]) -> str:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", type=Path, required=True, help="interpreter of an environment with litserve and bentoml"
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "app/starter")
    parser.add_argument("--name", help="the network's name in the table; the bundle's folder if not given")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one turn, after a second to warm up")
    args = parser.parse_args()
    args.bundle = args.bundle.resolve()
    args.name = args.name or args.bundle.name
    print(measure(args))


if __name__ == "__main__":
    main()
