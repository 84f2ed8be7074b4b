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
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from app.engine import cpu_quota
from app.settings import STARTER
from benchmarks.loopback import (
    JSON,
    PHOTOS,
    RAW,
    ROOT,
    Bare,
    Reply,
    Served,
    closed_loop,
    embed_json,
    open_loop,
    request,
    served,
)
from contract import triplets
from contract.bundle import read_bundle
from tests.toy import encoded, photo, write_toy_bundle

PAGE = ROOT / "docs/serving-figures.md"
CLIENTS = 8
"""That each wait for their answer: enough to keep the service busy, and few enough to be let in."""
PATIENT = ("--max-wait", "100", "--max-steady-wait", "100")
"""Everyone is let in, where what is measured is how fast they are served."""
TURN = 20
"""Requests in a row before the other side has its turn, where single requests are compared."""
TAIL = 45_000
"""Bytes after the end of a small JPEG, which no decoder reads, so that its request is as long as a photo's."""


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
    """CPU time and wall time that the service adds to one request after another.

    Beside a network, its inferences themselves cost more or less from round to round than the service does, and more in
    the service, whose other work empties caches. Over a network of microseconds the service's own work is left.
    """
    turns = max(2, int(args.seconds))
    with served() as service:
        large = {
            name: _beyond(bare, service, PHOTOS, messages, turns, args.rounds)
            for name, messages in (("JSON", JSON), ("raw body", RAW))
        }
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_toy_bundle(Path(folder) / "bundle")
        photos = [encoded(photo(seed)) + bytes(TAIL) for seed in range(4)]  # as many bytes as a photo has
        with served("--bundle", str(bundle)) as service:
            tiny = {
                name: _beyond(Bare(bundle), service, photos, messages, 10 * turns, args.rounds)
                for name, messages in (
                    ("JSON", [embed_json(photo) for photo in photos]),
                    ("raw body", [request("/embed", photo, "image/jpeg") for photo in photos]),
                )
            }
    for what, found in (("", large), (", over a tiny network", tiny)):
        for name, aim in (("JSON", "1.0 ms"), ("raw body", "0.5 ms")):
            cpu = [one.cpu * 1000 for one in found[name]]
            text = f"{median(cpu):.2f} ms ({min(cpu):.2f} to {max(cpu):.2f})"
            figures.rows.append(Row(f"CPU time of a request beyond decoding and inference, {name}{what}", text, aim))
    added = median(one.wall for one in large["raw body"]) * 1000
    figures.rows.append(Row("added latency at one client, median, raw body", f"{added:.2f} ms", "2 ms"))


class Beyond(NamedTuple):
    """Seconds that a request takes beyond decoding and inference: of CPU, and at the median of the clock."""

    cpu: float
    wall: float


def _beyond(
    bare: Bare, service: Served, photos: list[bytes], messages: list[bytes], turns: int, rounds: int
) -> list[Beyond]:
    """Of each round; the two sides take turns so short that both meet the same machine."""
    found = []
    for message in messages:
        service.ask(message)
        bare.one(photos[0])
    for _ in range(rounds):
        walls: tuple[list[float], list[float]] = ([], [])
        own = 0.0
        before = service.cpu
        for _ in range(turns):
            start = time.process_time()
            walls[0].extend(_each(bare.one, photos))
            own += time.process_time() - start
            walls[1].extend(_each(service.ask, messages))
        used = service.cpu - before
        found.append(Beyond((used - own) / (turns * TURN), median(walls[1]) - median(walls[0])))
    return found


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
