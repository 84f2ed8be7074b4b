"""Does asking where the model is least sure save choices? Simulated participants, against chance.

    python -m benchmarks.judging draws --data DATA --out OUT
    python -m benchmarks.judging http --data DATA --out OUT --participants 1

Each participant has an embedding of their own: VICE's, with every dimension weighted by a log-normal number. They
answer by its choice probabilities (temperature 1), or, with `--sure`, with its most likely choice. The served space is
the starter's. What is learned from the first N choices is judged on triplets of PHOTOS OF OTHER OBJECTS: how often it
gives the participant's most likely choice.

`draws` asks through the service's own `Chooser`, in this process, and learns a weight for each served dimension, by
penalised likelihood (convex; the penalty by a held-out fifth). It compares the ways of asking, participant by
participant, with the standard error of the mean difference over participants.

`http` answers two studies of a real service, `unsure` (no exploration, no repeats) and `explore` (all by chance), one
trial after the other, exports them with `alignet-serve judgments`, and learns a full transform by `training.probing`
(objective global, started from the served space; four fifths train, one fifth chooses step and penalty). Intervals are
over triplets.
"""

import argparse
import csv
import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from tqdm import tqdm

from app.judging.choosing import Chooser
from app.judging.export import main as judgments
from app.judging.study import Study
from app.settings import STARTER
from contract import triplets
from contract.bundle import read_bundle
from tests.running import free_port, replica, until
from training.folds import Fold
from training.photos import read_photos
from training.probing import ProbeConfig, ProbeData, fit_probe
from training.vice_data import read_triplets

STUDIES = {"unsure": "explore = 0.0\nrepeats = 0.0", "explore": "explore = 1.0\nrepeats = 0.0"}
PENALTIES = (0.001, 0.01, 0.1)
HELD_OUT = 5_000
WAYS = {"chance": 0, "least sure of 10": 10, "least sure of 200": 200}
SHRINKING = (0.3, 3.0, 30.0, 300.0)

Rows = NDArray[np.int64]
Matrix = NDArray[np.float64]


def objects(data: Path, n: int, seed: int) -> tuple[list[Path], Matrix]:
    """2n photos, one each of as many objects, and the participant's vectors [2n, d]."""
    vice = np.load(data / "things/vice_embedding.npy").astype(np.float64)
    rng = np.random.default_rng(seed)
    photos = read_photos(data / "images.csv", len(vice))
    if len(photos.concepts) < 2 * n:
        raise SystemExit(f"{data} has photos of {len(photos.concepts)} objects; expected {2 * n}: fewer --photos.")
    chosen = rng.permutation(photos.concepts)[: 2 * n]
    paths = [photos.root / photos.paths[int(rng.choice(photos.of_concept(c)))] for c in chosen]
    return paths, vice[chosen] * rng.lognormal(0, 1.0, vice.shape[1])


def answer(rng: np.random.Generator, own: Matrix, items: list[int], sure: bool) -> int:
    """Position that the participant chooses, of three of their vectors."""
    p = triplets.odd_probabilities(triplets.pair_similarities(own[items]))
    return int(p.argmax()) if sure else int(rng.choice(3, p=p / p.sum()))


def collect(folder: Path, kind: str, paths: list[Path], own: Matrix, args: argparse.Namespace, seed: int) -> None:
    """One session over HTTP; the participant knows the pictures by their bytes."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for i, path in enumerate(paths):
        shutil.copy(path, photos / f"{i:05d}{path.suffix}")
    text = f'photos = "photos"\nconsent = "A simulated participant agrees."\ntrials = {args.trials}\nseed = {seed}\n'
    (folder / "study.toml").write_text(
        text + f"practice = 0\ncatch = 0.0\nbreak_every = 0\nfixation_ms = 0\n{STUDIES[kind]}\n"
    )
    port, rng = free_port(), np.random.default_rng(seed)
    with replica(port, folder / "log", "--judging", str(folder / "study.toml")) as running:
        until(f"http://127.0.0.1:{port}/health/ready")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/judge", timeout=60) as client:
            while client.get("/study").json()["state"] != "open":
                time.sleep(0.2)
            shown = {file.read_bytes(): file.name for file in (folder / "study-data/shown").glob("*-0.jpg")}
            number = _numbers(photos, shown)
            session = client.post("/session", json={"consent": True}).json()["session"]
            headers = {"X-Judge-Session": session}
            standing = client.get("/trial", headers=headers).json()
            start = time.perf_counter()
            while (trial := standing["trial"]) is not None:
                items = [number[client.get(path.removeprefix("/judge")).content] for path in trial["photos"]]
                odd = answer(rng, own, items, args.sure)
                body = {"trial": trial["trial"], "odd": odd, "rt_ms": 0.0, "input": "key"}
                standing = client.post("/choice", json=body, headers=headers).json()
            rate = standing["done"] / (time.perf_counter() - start)
        print(f"{folder.name}: {standing['done']} choices over HTTP, {rate:.1f} a second", file=sys.stderr)
        running.stop()
    assert judgments([str(folder / "study.toml"), "--out", str(folder / "out")]) == 0


def _numbers(photos: Path, shown: dict[bytes, str]) -> dict[bytes, int]:
    """The number of the photo that each picture is a copy of."""
    number = {hashlib.sha256(f.read_bytes()).hexdigest(): int(f.stem) for f in photos.iterdir()}
    return {content: number[name.removesuffix("-0.jpg")] for content, name in shown.items()}


def vectors(paths: list[Path], log: Path) -> NDArray[np.float32]:
    """The starter's own, [n, d]."""
    port, out = free_port(), []
    with replica(port, log) as running:
        until(f"http://127.0.0.1:{port}/health/ready")
        for start in range(0, len(paths), 16):
            files = [("images", ("photo", path.read_bytes())) for path in paths[start : start + 16]]
            reply = httpx.post(f"http://127.0.0.1:{port}/embed", files=files, timeout=120).raise_for_status()
            out += [item["embedding"] for item in reply.json()["data"]]
        running.stop()
    return np.array(out, np.float32)


def fit(features: NDArray[np.float32], rows: Rows, seed: int) -> Any:
    """The transform of the penalty with the lowest validation loss."""
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = max(1, len(rows) // 5)
    fold = Fold(0, np.arange(len(features)), np.sort(order[cut:]), np.sort(order[:cut]), 0)
    data = ProbeData(features, rows)
    mean, std = data.standardisation()
    served = ((features - mean) / std)[rows[order[cut:]]].astype(np.float64)
    sims = triplets.pair_similarities(served)
    scales = np.logspace(-3, 1, 41)  # of the dot products: the served space, at the temperature that fits best
    losses = [-triplets.pair_log_probabilities(sims * s)[:, 0].mean() for s in scales]
    sigma = float(np.sqrt(scales[int(np.argmin(losses))]))
    common = {"objective": "global", "sigma": sigma, "steps": 300, "batch": 128, "validate_every": 10, "patience": 30}
    fits = [
        fit_probe(data, fold, ProbeConfig(**common, penalty=p, learning_rate=1e-3, bias=False), seed=seed)
        for p in PENALTIES
    ]
    return min(fits, key=lambda fitted: fitted.figures["cross_entropy"]).transform


def agreement(x: NDArray[np.floating[Any]], own: Matrix, rows: Rows) -> NDArray[np.bool_]:
    """Of each triplet, whether the vectors give the participant's most likely choice."""
    wanted = triplets.odd_one_out(triplets.pair_similarities(own[rows]))
    return triplets.odd_one_out(triplets.pair_similarities(x[rows].astype(np.float64))) == wanted


def own_weights(own: Matrix, seed: int) -> Matrix:
    """Another participant over the same photos."""
    return own * np.random.default_rng(seed + 50).lognormal(0, 0.7, own.shape[1])


def asked(chooser: Chooser, n: int, seed: int) -> Rows:
    """The first n triplets of a participant, whatever they answer: the model does not change meanwhile."""
    seen: set[tuple[int, int, int]] = set()
    rows = []
    for number in range(n):
        a, b, c = sorted(chooser.main(np.random.default_rng([seed, number]), Counter(), seen).items)
        seen.add((a, b, c))
        rows.append((a, b, c))
    return np.array(rows)


def products(x: Matrix, rows: Rows, temperature: float) -> Matrix:
    """[t, 3, d]: what each dimension adds to the similarity of each pair."""
    return np.stack([x[rows[:, a]] * x[rows[:, b]] for a, b in triplets.PAIRS], 1) / temperature


def weigh(of: Matrix, pair: Rows, shrink: float) -> Matrix:
    """The weight of each dimension [d]: maximum likelihood of the pairs chosen, drawn towards 1."""

    def loss(w: Matrix) -> tuple[float, Matrix]:
        log_p = triplets.pair_log_probabilities(of @ w)
        slope = np.exp(log_p)
        slope[np.arange(len(pair)), pair] -= 1
        value = -log_p[np.arange(len(pair)), pair].sum() + shrink * ((w - 1) ** 2).sum()
        return float(value), np.einsum("tk,tkd->d", slope, of) + 2 * shrink * (w - 1)

    found = minimize(loss, np.ones(of.shape[2]), jac=True, method="L-BFGS-B", options={"maxiter": 100})
    return np.asarray(found.x)


def weights_of(of: Matrix, pair: Rows) -> Matrix:
    """`weigh` with the penalty that foretells a held-out fifth best, on all of the choices."""
    cut = len(pair) // 5
    scores = []
    for shrink in SHRINKING:
        log_p = triplets.pair_log_probabilities(of[:cut] @ weigh(of[cut:], pair[cut:], shrink))
        scores.append(log_p[np.arange(cut), pair[:cut]].mean())
    return weigh(of, pair, SHRINKING[int(np.argmax(scores))])


def draws(args: argparse.Namespace) -> None:
    """Every way of asking, for every participant: the table of means and paired differences."""
    n, counts = args.photos, [c for c in (100, 200, 400, 800) if c <= args.trials]
    paths, base = objects(args.data, n, 0)
    x = cached_vectors(args.out, paths).astype(np.float64)
    space = read_bundle(STARTER).manifest.spaces["aligned"]
    rng = np.random.default_rng(5)
    test = np.array([rng.choice(n, 3, replace=False) for _ in range(HELD_OUT)]) + n
    found: dict[str, list[list[float]]] = {"served": []} | {way: [] for way in WAYS}
    for seed in tqdm(range(args.participants), unit="participant"):
        own = own_weights(base, seed)
        found["served"].append([float(agreement(x, own, test).mean())] * len(counts))
        for way, candidates in WAYS.items():
            shares = {"explore": float(not candidates), "repeats": 0.0, "candidates": candidates or 1}
            study = Study(photos=Path("photos"), data=Path("data"), consent="x" * 20, **shares)
            rows = asked(Chooser(np.arange(n), x[:n], space, study), counts[-1], seed)
            drawn = np.random.default_rng(seed + 100)
            pair = np.array([2 - answer(drawn, own, row.tolist(), args.sure) for row in rows])
            of = products(x, rows, space.temperature)
            learned = [np.sqrt(np.maximum(weights_of(of[:c], pair[:c]), 0)) for c in counts]
            found[way].append([float(agreement(x * w, own, test).mean()) for w in learned])
    chance = np.array(found["chance"])
    print(f"agreement on photos of other objects, {args.participants} participants; choices:", *counts)
    for way, values in found.items():
        ahead = np.array(values) - chance
        error = ahead.std(0, ddof=1) / len(ahead) ** 0.5
        cells = [
            f"{m:.3f} ({d:+.4f} ± {1.96 * e:.4f})"
            for m, d, e in zip(np.mean(values, 0), ahead.mean(0), error, strict=True)
        ]
        print(f"{way:20s}", "  ".join(cells))


def cached_vectors(out: Path, paths: list[Path]) -> NDArray[np.float32]:
    """The served vectors of these photos, kept in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "vectors.npy").exists():
        np.save(out / "vectors.npy", vectors(paths, out / "log"))
    found: NDArray[np.float32] = np.load(out / "vectors.npy")
    if len(found) != len(paths):
        raise SystemExit(f"{out} has vectors of {len(found)} photos; expected {len(paths)}: choose another --out.")
    return found


def over_http(args: argparse.Namespace) -> None:
    """Two studies of each participant: a line of results for each number of choices."""
    counts = [n for n in (50, 100, 200, 400, 800) if n <= args.trials]
    lines: list[dict[str, Any]] = []
    for seed in range(args.participants):
        paths, own = objects(args.data, args.photos, seed)
        n = args.photos
        home = args.out / f"participant-{seed}"
        x = cached_vectors(home, paths)
        rng = np.random.default_rng(seed)
        test = np.array([rng.choice(n, 3, replace=False) for _ in range(HELD_OUT)]) + n
        served = agreement(x, own, test)
        lines.append({"participant": seed, "study": "none", "choices": 0, "agreement": float(served.mean())})
        print(json.dumps(lines[-1]), flush=True)
        for kind in STUDIES:
            folder = home / kind
            if not (folder / "out/summary.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                collect(folder, kind, paths[:n], own[:n], args, seed)
            rows = read_triplets(folder / "out/triplets.txt", n, odd="last")
            said = [float(row["entropy"]) for row in csv.DictReader((folder / "out/responses.csv").open())]
            for count in counts:
                learned = fit(x[:n], rows[:count], seed)
                right = agreement(learned.apply(x), own, test)
                lines.append(
                    {
                        "participant": seed,
                        "study": kind,
                        "choices": count,
                        "agreement": float(right.mean()),
                        "over_served": float(right.mean() - served.mean()),
                        "half_interval": float(1.96 * right.std() / len(right) ** 0.5),
                        "mean_entropy_asked": float(np.mean(said[:count])),
                    }
                )
                print(json.dumps(lines[-1]), flush=True)
    (args.out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=("draws", "http"))
    parser.add_argument("--data", type=Path, required=True, help="folder with images.csv and things/")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; what is there is not done again")
    parser.add_argument("--photos", type=int, default=80, help="of the study; as many others are held out")
    parser.add_argument("--trials", type=int, default=800)
    parser.add_argument("--participants", type=int, default=12)
    parser.add_argument("--sure", action="store_true", help="the participant always gives the most likely choice")
    args = parser.parse_args()
    (draws if args.how == "draws" else over_http)(args)


if __name__ == "__main__":
    main()
