"""The command line: `alignet`, or `python -m alignet_client`. Tables for people; --json for programs."""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from alignet_client import duplicates, files, indexing
from alignet_client.aio import AsyncClient
from alignet_client.client import Client
from alignet_client.errors import AligNetError
from alignet_client.results import Embeddings

_BLOCK = 1000
"""Candidates compared in one request, if the service takes as many."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if done, 1 if it cannot be, 2 for wrong arguments, 130 if interrupted."""
    options = parser().parse_args(arguments)
    try:
        answer, lines = options.run(options)
    except (AligNetError, OSError, ValueError, ImportError) as error:
        print(f"alignet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"alignet: interrupted{options.interrupted}", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join(lines))
    return 0


Answer = tuple[dict[str, Any], list[str]]
"""For --json, and for people."""


def _embed(options: argparse.Namespace) -> Answer:
    files.require(options.out)
    found = files.photos([options.folder])
    rows: dict[int, files.Row] = {}
    result = _vectors(_read(found, options.folder, rows), len(found), options)
    if not len(result.vectors):
        raise ValueError(f"no photo could be embedded; the first: {result.faults[0]}")
    with _client(options) as client:
        card = client.model(result.model).spaces[result.space]
    space = {
        "model": result.model,
        "space": result.space,
        "fingerprint": result.fingerprint,
        "size": result.vectors.shape[1],
        "normalized": result.normalized,
        "similarity": card.similarity,
    }
    written = files.write(options.out, [rows[i] for i in result.indices.tolist()], result.vectors, space)
    answer = {"embedded": len(result.vectors), "files": [str(file) for file in written], **space}
    lines = [
        f"{len(result.vectors)} of {len(found)} photos embedded: {', '.join(answer['files'])}",
        f"model {result.model}, space {result.space}, {space['size']} numbers, fingerprint {result.fingerprint}",
    ]
    return answer | {"refused": _refused(result, found)}, lines


def _odd(options: argparse.Namespace) -> Answer:
    with _client(options) as client:
        reply = client.odd_one_out(
            options.images, space=options.space, min_margin=options.min_margin, max_entropy=options.max_entropy
        )
    result = reply.results[0]
    odd = None if result.odd_one_out is None else options.images[result.odd_one_out]
    lines = ["     p(odd)  image"]
    for i, image in enumerate(options.images):
        mark = "odd" if i == result.odd_one_out else ""
        lines.append(f"{mark:>3}  {result.probabilities[i]:6.3f}  {image}")
    calibrated = "" if reply.calibrated else ", temperature not fitted to people"
    abstained = f", no answer: {result.abstained}" if result.abstained else ""
    lines.append(
        f"entropy {result.entropy_normalized:.3f} of 1, margin {result.margin:.3f}{abstained} "
        f"(model {reply.model}, space {reply.space}{calibrated})"
    )
    answer = {**vars(result), "odd_one_out": odd, "position": result.odd_one_out, "images": list(options.images)}
    del answer["explanation"]  # not asked for
    return answer | {"model": reply.model, "space": reply.space, "fingerprint": reply.fingerprint}, lines


def _similar(options: argparse.Namespace) -> Answer:
    query = options.query
    others = [file for file in files.photos(options.photos) if file.resolve() != query.resolve()]
    found = [query, *others]
    result = _vectors(found, len(found), options)
    if not len(result.indices) or result.indices[0] != 0:
        raise next(fault for fault in result.faults if fault.index == 0)
    rows: list[np.ndarray[Any, Any]] = []
    kernel = ""
    with _client(options) as client:
        most = min(_BLOCK, int(client.model(result.model).limits["max_vectors"]) - 1)
        for start in range(1, len(result.vectors), most):
            reply = client.similarity(
                queries=result.vectors[:1],
                candidates=result.vectors[start : start + most],
                kernel=options.kernel,
                space=options.space,
                expect_fingerprint=result.fingerprint,
            )
            rows.append(reply.matrix[0])
            kernel = reply.kernel
    if not rows:
        raise ValueError("there is no photo to compare with")
    values = np.concatenate(rows)
    best = np.argsort(-values, kind="stable")[: options.top]
    ranked = [(float(values[i]), str(found[result.indices[i + 1]])) for i in best]
    lines = [f"{kernel:>10}  photo", *(f"{value:10.4f}  {path}" for value, path in ranked)]
    results = [{"photo": path, "similarity": value} for value, path in ranked]
    answer = {"query": str(query), "kernel": kernel, "fingerprint": result.fingerprint, "results": results}
    return answer | {"refused": _refused(result, found)}, lines


def _dedupe(options: argparse.Namespace) -> Answer:
    found = files.photos(options.photos)
    options.normalize = True
    result = _vectors(found, len(found), options)
    groups = []
    for group in duplicates.groups(result.vectors, options.threshold):
        cosines = result.vectors[group] @ result.vectors[group[0]]
        photos = [str(found[result.indices[i]]) for i in group]
        groups.append([{"photo": p, "cosine_with_first": float(c)} for p, c in zip(photos, cosines, strict=True)])
    lines = []
    for members in groups:
        lines += [*(f"{one['cosine_with_first']:.4f}  {one['photo']}" for one in members), ""]
    extra = sum(len(members) - 1 for members in groups)
    lines.append(f"{len(groups)} groups, {extra} photos more than one of each, of {len(result.vectors)}")
    answer = {"threshold": options.threshold, "fingerprint": result.fingerprint, "groups": groups}
    return answer | {"refused": _refused(result, found)}, lines


def _models(options: argparse.Namespace) -> Answer:
    with _client(options) as client:
        cards = [client.model(summary.name) for summary in client.models()]
    lines = []
    for card in cards:
        lines.append(f"{card.name}: {card.description}")
        lines += [
            f"  {name}: {space.size} numbers, {space.similarity}, fingerprint {space.fingerprint}"
            for name, space in card.spaces.items()
        ]
    return {"models": [card.raw for card in cards]}, lines


def _client(options: argparse.Namespace) -> Client:
    return Client(options.url, options.key, model=options.model)


def _vectors(images: Iterable[Path | bytes], total: int, options: argparse.Namespace) -> Embeddings:
    """Embed with a progress bar where somebody sees it."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("the command needs tqdm; run: pip install 'alignet-serve[client]'") from error

    async def run(done: Any) -> Embeddings:
        async with AsyncClient(
            options.url, options.key, model=options.model, concurrency=options.concurrency
        ) as client:
            return await client.embed_each(
                images, space=options.space, normalize=options.normalize, batch=options.batch, progress=done
            )

    with tqdm(total=total, unit="photo", disable=None) as bar:
        return asyncio.run(run(bar.update))


def _read(found: Sequence[Path], folder: Path, rows: dict[int, files.Row]) -> Iterator[Path | bytes]:
    """The content of each photo, noting its row; of an unreadable one the path, which then is the client's fault."""
    for index, file in enumerate(found):
        try:
            content = file.read_bytes()
            rows[index] = files.row(file, file.relative_to(folder).as_posix() if file != folder else file.name, content)
        except OSError:
            yield file
        else:
            yield content


def _refused(result: Embeddings, found: Sequence[Path]) -> list[dict[str, Any]]:
    """The photos without a vector, which are said on standard error too."""
    refused = [{"photo": str(found[f.index or 0]), "code": f.code, "detail": f.detail} for f in result.faults]
    for one in refused:
        print(f"alignet: refused {one['photo']}: {one['code']}: {one['detail']}", file=sys.stderr)
    return refused


def parser() -> argparse.ArgumentParser:
    """All that `alignet` takes; shells complete and the reference is written from it."""
    parser = argparse.ArgumentParser(prog="alignet", description="Ask a running AligNet Serve about photos.")
    parser.add_argument("--version", action="version", version=f"alignet {version('alignet-serve')}")
    parser.set_defaults(interrupted="")  # most commands write nothing
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    connection = _connection()
    shared = argparse.ArgumentParser(add_help=False, parents=[connection])
    shared.add_argument("--space", choices=("aligned", "base"), default="aligned", help="default: %(default)s")
    many = argparse.ArgumentParser(add_help=False)
    many.add_argument("--batch", type=_positive, default=16, metavar="N", help="photos of one request (%(default)s)")
    many.add_argument("--concurrency", type=_positive, default=2, metavar="N", help="requests at once (%(default)s)")

    one = commands.add_parser("embed", parents=[shared, many], help="photos of a folder to a file of vectors")
    one.add_argument("folder", type=Path, help="photos, searched with all folders inside; or one photo")
    one.add_argument("--out", type=Path, required=True, help="NAME.parquet, or NAME.npy with .jsonl beside it")
    one.add_argument("--normalize", action="store_true", help="scale vectors to length 1: a space of its own")
    one.set_defaults(run=_embed, interrupted="; no vectors were written")

    one = commands.add_parser("odd", parents=[shared], help="which of three photos is the odd one")
    one.add_argument("images", type=str, nargs=3, metavar="IMAGE", help="a file, or a URL if the service fetches it")
    one.add_argument("--min-margin", type=float, help="no answer where the first leads by less")
    one.add_argument("--max-entropy", type=float, help="no answer where the normalised entropy is above")
    one.set_defaults(run=_odd)

    one = commands.add_parser("similar", parents=[shared, many], help="photos most like one")
    one.add_argument("query", type=Path, help="the one")
    one.add_argument("photos", type=Path, nargs="+", help="files or folders")
    one.add_argument("--top", type=_positive, default=10, metavar="N", help="how many (%(default)s)")
    one.add_argument("--kernel", choices=("dot", "cosine", "pearson"), help="default: the space's own")
    one.set_defaults(run=_similar, normalize=False)

    one = commands.add_parser("dedupe", parents=[shared, many], help="groups of photos that show nearly the same")
    one.add_argument("photos", type=Path, nargs="+", help="files or folders")
    one.add_argument("--threshold", type=_cosine, default=0.9, help="least cosine of a pair (%(default)s)")
    one.set_defaults(run=_dedupe)

    one = commands.add_parser("models", parents=[shared], help="what is served")
    one.set_defaults(run=_models)

    indexing.add(commands, connection, shared, many, _positive)
    return parser


def _connection() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--url", help="of the service; default: ALIGNET_URL, or http://localhost:8000")
    parser.add_argument("--key", help="API key; default: ALIGNET_KEY, which other users of the machine do not see")
    parser.add_argument("--model", help="default: the one served")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number above 0")
    return int(text)


def _cosine(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 2.0
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number from -1 to 1")
    return value


def program() -> None:
    """The console script."""
    raise SystemExit(main())


if __name__ == "__main__":
    program()
