"""The commands of `alignet` that keep an index: index, search, migrate, bridge, map."""

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignet_client.client import Client
from alignet_client.errors import NotFound
from alignet_client.retrieval import Embedder, Index, add_photos, open_index
from alignet_client.retrieval.photos import Photo, Refused, Told, contents, embedded
from alignet_client.retrieval.places import PLACES

Answer = tuple[dict[str, Any], list[str]]
"""For --json, and for people."""


def add(
    commands: Any,
    connection: argparse.ArgumentParser,
    shared: argparse.ArgumentParser,
    many: argparse.ArgumentParser,
    positive: Callable[[str], int],
) -> None:
    """Add the parsers; `connection` has --url, --key, --model and --json, `shared` --space too, `many` --batch."""
    place: dict[str, Any] = {"required": True, "metavar": "INDEX"}
    normalize: dict[str, Any] = {"action": "store_true", "help": "scale vectors to length 1: a space of its own"}

    one = commands.add_parser("index", parents=[shared, many], help="photos of a folder into an index")
    one.add_argument("folder", type=Path, help="photos, searched with all folders inside; or one photo")
    one.add_argument("--to", help=f"made if it is not there: {PLACES}", **place)
    one.add_argument("--normalize", **normalize)
    one.set_defaults(run=_index, interrupted="; what was embedded stays in the index, the same command goes on")

    one = commands.add_parser("search", parents=[connection], help="photos of an index most like one")
    one.add_argument("photo", type=Path, help="the one")
    one.add_argument("--in", dest="place", help="which says itself what space to embed in", **place)
    one.add_argument("-k", "--top", type=positive, default=10, metavar="N", help="how many (%(default)s)")
    one.add_argument("--bridge", type=Path, metavar="FILE", help="search across this bridge")
    one.set_defaults(run=_search)

    one = commands.add_parser("migrate", parents=[shared, many], help="re-embed what an index holds into another")
    one.add_argument("folder", type=Path, help="the photos; they are known by content, so they may have been renamed")
    one.add_argument("--from", dest="old", help="the old index", **place)
    one.add_argument("--to", dest="new", help="the new one, of --model and --space", **place)
    one.add_argument("--normalize", **normalize)
    one.add_argument("--switch", type=Path, metavar="STATE", help="when complete, read the new one: writes this file")
    one.add_argument("--without", type=int, default=0, metavar="N", help="switch though N photos are lost")
    kept = "; what was embedded stays in the new index, the same command goes on"
    one.set_defaults(run=_migrate, interrupted=kept)

    one = commands.add_parser("bridge", parents=[connection, many], help="fit a linear map from one space to another")
    one.add_argument("folder", type=Path, help="photos to fit and to measure on")
    one.add_argument("--from", dest="source", required=True, metavar="[MODEL/]SPACE", help="of the vectors you have")
    one.add_argument("--to", dest="target", required=True, metavar="[MODEL/]SPACE", help="that you want")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="NAME.npz")
    one.add_argument("--pairs", type=positive, default=2000, metavar="N", help="photos, at most (%(default)s)")
    one.add_argument("-k", "--top", type=positive, default=10, metavar="N", help="neighbours (%(default)s)")
    one.set_defaults(run=_bridge, interrupted="; no bridge was written")

    one = commands.add_parser("map", parents=[connection], help="an index mapped by a bridge into another")
    one.add_argument("--from", dest="old", help="of the bridge's source", **place)
    one.add_argument("--bridge", type=Path, required=True, metavar="FILE")
    one.add_argument("--to", dest="new", help="made if it is not there", **place)
    one.set_defaults(run=_map, interrupted="; the new index may hold a part, the same command maps all again")


def _index(options: argparse.Namespace) -> Answer:
    with _client(options, options.model) as client:
        embedder = Embedder.of(client, options.space, normalize=options.normalize)
        with closing(open_index(options.to, embedder.space)) as index, _bar("embed") as bar:
            added = add_photos(
                index, embedder, options.folder, batch=options.batch, concurrency=options.concurrency, progress=bar
            )
            count = len(index)
    _say(added.refused)
    lines = [
        f"{added.embedded} photos embedded, {added.known} known, {len(added.refused)} refused; "
        f"{options.to} holds {count}",
        _named(embedder),
    ]
    return asdict(added) | {"count": count, "space": asdict(embedder.space)}, lines


def _search(options: argparse.Namespace) -> Answer:
    with ExitStack() as stack:
        index: Index = stack.enter_context(closing(open_index(options.place, write=False)))
        searched: Any = index
        if options.bridge is not None:
            from alignet_client.migration import Bridge, Bridged

            searched = Bridged(index, Bridge.load(options.bridge))
        space = searched.space
        client = stack.enter_context(_client(options, options.model or space.model))
        try:
            query = Embedder(client, space).embed([options.photo])
        except NotFound as error:
            raise ValueError(
                f"the index holds vectors of {space.model}, which this service has not ({error}); "
                "migrate the index, or search it across a bridge"
            ) from error
        hits = searched.search(query, options.top, space.fingerprint)[0]
    results = [{"similarity": hit.similarity, "sha256": hit.entry.sha256, **hit.entry.payload} for hit in hits]
    lines = [f"{space.similarity:>10}  photo"]
    lines += [
        f"{hit.similarity:10.4f}  {', '.join(hit.entry.payload.get('paths', [hit.entry.sha256]))}" for hit in hits
    ]
    return {"query": str(options.photo), "kernel": space.similarity, "results": results}, lines


def _migrate(options: argparse.Namespace) -> Answer:
    from alignet_client.migration import Dual, reembed

    with ExitStack() as stack:
        client = stack.enter_context(_client(options, options.model))
        embedder = Embedder.of(client, options.space, normalize=options.normalize)
        old = stack.enter_context(closing(open_index(options.old, write=False)))
        new = stack.enter_context(closing(open_index(options.new, embedder.space)))
        with _bar("re-embed") as bar:
            done = reembed(
                old, new, embedder, options.folder, batch=options.batch, concurrency=options.concurrency, progress=bar
            )
        _say(done.refused)
        if options.switch is not None:
            Dual(old, new, options.switch).switch(without=options.without)
    lines = [
        f"{done.embedded} photos embedded, {done.known} done before, of {done.total}; {len(done.missing)} have no "
        "good photo here",
        _named(embedder),
    ]
    if options.switch is not None:
        lines.append(f"{options.switch}: the new index is read from now on")
    return asdict(done) | {"space": asdict(embedder.space), "switched": options.switch is not None}, lines


def _bridge(options: argparse.Namespace) -> Answer:
    from alignet_client.migration import fit

    if options.out.suffix != ".npz":
        raise ValueError(f"{options.out}: expected a name that ends with .npz")
    refused: list[Refused] = []
    photos = sorted(contents(options.folder, refused), key=lambda photo: photo.sha256)
    photos = random.Random(0).sample(photos, min(options.pairs, len(photos)))  # noqa: S311
    with ExitStack() as stack:
        embedders = [_of(stack, options, name) for name in (options.source, options.target)]
        found = [_vectors(photos, embedder, refused, options) for embedder in embedders]
    both = [photo.sha256 for photo in photos if all(photo.sha256 in one for one in found)]
    if not both:
        raise ValueError(f"no photo could be embedded in both spaces; the first: {refused[0]}")
    source, target = ([one[sha256] for sha256 in both] for one in found)
    bridge = fit(source, target, embedders[0].space, embedders[1].space, k=options.top)
    bridge.save(options.out)
    _say(refused)
    cost = bridge.measured
    lines = [
        f"{options.out}: fitted on {bridge.pairs} pairs, penalty {bridge.penalty:g}, "
        f"{cost.explained:.1%} of the variance",
        f"recall@{cost.k} among {cost.photos} held-out photos, against true re-embedding (95 % interval):",
    ]
    for name, meaning in (
        ("documents", "mapped documents, true queries"),
        ("queries", "true documents, mapped queries"),
        ("unchanged", "the old space on both sides"),
    ):
        one = getattr(cost, name)
        lines.append(f"  {one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]  {meaning}")
    answer = {"file": str(options.out), "penalty": bridge.penalty, "pairs": bridge.pairs, "measured": asdict(cost)}
    return answer | {"source": asdict(bridge.source), "target": asdict(bridge.target)}, lines


def _map(options: argparse.Namespace) -> Answer:
    from alignet_client.migration import Bridge, map_documents

    bridge = Bridge.load(options.bridge)
    with (
        closing(open_index(options.old, write=False)) as old,
        closing(open_index(options.new, bridge.space)) as new,
    ):
        count = map_documents(old, bridge, new)
    lines = [f"{count} vectors mapped into {options.new}; search it with --bridge {options.bridge}"]
    return {"mapped": count, "space": asdict(bridge.space)}, lines


def _client(options: argparse.Namespace, model: str | None) -> Client:
    return Client(options.url, options.key, model=model)


def _of(stack: ExitStack, options: argparse.Namespace, name: str) -> Embedder:
    """The embedder of `[MODEL/]SPACE`."""
    model, _, space = name.rpartition("/")
    client = stack.enter_context(_client(options, model or options.model))
    return Embedder.of(client, space)  # type: ignore[arg-type]  # the card says which there are


def _vectors(
    photos: Sequence[Photo], embedder: Embedder, refused: list[Refused], options: argparse.Namespace
) -> dict[str, Any]:
    """Vectors by content."""
    out: dict[str, Any] = {}
    with _bar(f"{embedder.space.model}/{embedder.space.name}") as bar:
        told = bar(len(photos))
        for good, vectors in embedded(
            photos, embedder, refused, batch=options.batch, concurrency=options.concurrency, told=told
        ):
            out |= {photo.sha256: vector for photo, vector in zip(good, vectors, strict=True)}
    return out


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int], Told]]:
    """What to tell how many photos there are; a bar where somebody sees it."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("the command needs tqdm; run: pip install 'alignet-serve[client]'") from error
    with tqdm(desc=what, unit="photo", disable=None) as bar:

        def total(count: int) -> Told:
            bar.reset(count)
            return bar.update  # type: ignore[no-any-return]

        yield total


def _named(embedder: Embedder) -> str:
    space = embedder.space
    return f"model {space.model}, space {space.name}, {space.size} numbers, fingerprint {space.fingerprint}"


def _say(refused: Sequence[Refused]) -> None:
    for one in refused:
        print(f"alignet: refused {one.path}: {one.code}: {one.detail}", file=sys.stderr)  # noqa: T201
