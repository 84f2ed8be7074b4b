"""The models that are compared: what the words MODEL of the command line mean, and their features, computed once.

    [NAME=]FILE.npy               features of the photos of images.csv, in its order
    [NAME=]FOLDER                 of `embed` (features.npy, index.json): the same
    [NAME=]RUN[@SPLIT]            run folder of a teacher recipe: its transform, of all concepts or of one split
    [NAME=]RUN@SPLIT              run folder of a student recipe: the student of one split
    [NAME=]RUN@all                either of them: every complete split, each judged on its own, figures pooled
    [NAME=]RUN@base               the network that the run began with
    [NAME=]RUN@base@DIR[@SPLIT]   its features by the transform DIR/seed-SPLIT.npz, of `align`; SPLIT may be `all`
    [NAME=]RUN[@before]           run folder of `perceptual`, or a weight of `joint`: as aligned, or as it started
    [NAME=]BUNDLE[@SPACE]         a bundle, through ONNX Runtime; the space `aligned` if none is said
    [NAME=]MODEL[@CHECKPOINT]     a name of the table, timm:NAME or open_clip:ARCH/PRETRAINED; local weights of it

A split has concepts that no stage of that model has seen; the evaluation judges those and no others.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.bundle import read_bundle
from contract.files import sha256_of
from contract.manifest import MANIFEST, MODEL, Manifest
from training.align import Transform
from training.embed import EmbedConfig, extract
from training.encoders import Encoder
from training.images import Images, digest_of
from training.perceptual.embedding import HEAD, SHAPE
from training.student_model import READOUT, read_student

Vectors = NDArray[np.float32]
CHECKPOINTS = (".pt", ".pth", ".safetensors")
ALL, BASE = "all", "base"


@dataclass(frozen=True)
class Split:
    """A division of the concepts: share that was held out, and its seed, as `training.run.split_concepts` takes."""

    held_out: float
    seed: int


@dataclass(frozen=True)
class Subject:
    """One model under evaluation.

    Attributes:
        name: in tables and plots.
        identity: what it is made of: names and sha256, for the keys of stored results.
        encoder: builds the network; None where there are features only.
        transform: applied to the features, or None.
        stored: features of some images that exist already: file, and `digest_of` those images (None: not recorded).
        names: of the rows of `stored`, or None where no names.txt lies beside it.
        split: which concepts it has not seen; None if that is not known.
        seen: a sentence where it has seen, or may have seen, concepts that it is judged on; its figures are marked.
        language: open_clip's ARCH/PRETRAINED where a text tower belongs to the image encoder.
        weights: local file that the text tower is read from; None for open_clip's own.
        splits: the model of each split, where the subject is several (`RUN@all`); such a one has nothing else.
    """

    name: str
    identity: dict[str, Any]
    encoder: Callable[[], Encoder] | None = None
    transform: Transform | None = None
    stored: tuple[Path, str | None] | None = None
    names: tuple[str, ...] | None = None
    split: Split | None = None
    seen: str = ""
    language: str = ""
    weights: Path | None = None
    splits: tuple["Subject", ...] = ()

    def of_split(self, seed: int) -> "Subject":
        """The model of one split: itself, where it has none."""
        found = [one for one in self.splits if one.split is not None and one.split.seed == seed]
        return found[0] if found else self


class NoFeatures(ValueError):
    """A features file was given, and a protocol needs features of other images."""


def read_subject(text: str, *, side: int | None = None) -> Subject:
    """The model that a word of the command line names.

    Args:
        text: as the module docstring says.
        side: of the square input in pixels, of MODEL names only; the model's own if None.

    Raises:
        ValueError: no such model, file or folder, or a folder of another kind (named).
    """
    name, _, rest = text.partition("=") if re.match(r"[\w .()+-]+=", text) else ("", "", text)
    place, part = _parted(rest)
    path = Path(place)
    if path.suffix == ".npy":
        return _stored(name or path.stem, path)
    if path.is_dir():
        kinds = {MANIFEST: _bundle, SHAPE: _perceptual, "recipe.json": _run, "index.json": _embedded}
        for file, reader in kinds.items():
            if (path / file).is_file():
                return reader(name or (f"{path.name}@{part}" if part else path.name), path, part)
        raise ValueError(f"{path} is no bundle, run folder or folder of `embed`: it has none of {', '.join(kinds)}.")
    return _named(name or rest, place, Path(part) if part else None, side)


def _parted(text: str) -> tuple[str, str]:
    """(place, part after an @), where what stands before the @ is a place or a checkpoint comes after it."""
    place, at, part = text.rpartition("@")
    if at and Path(part).suffix in CHECKPOINTS:
        return place, part
    cuts = [i for i, letter in enumerate(text) if letter == "@" and Path(text[:i]).is_dir()]
    return (text[: cuts[0]], text[cuts[0] + 1 :]) if cuts else (text, "")


def _stored(name: str, file: Path) -> Subject:
    if not file.is_file():
        raise ValueError(f"no features at {file}.")
    beside = file.with_name("names.txt")
    names = tuple(beside.read_text().splitlines()) if beside.is_file() else None
    digest = None
    for index in (file.with_name("index.json"), file.with_name("identity.json")):
        if index.is_file() and digest is None:
            found = json.loads(index.read_text())
            digest = found.get("images", found.get("photos"))
    return Subject(name, {"features": sha256_of(file)}, stored=(file, digest), names=names)


def _embedded(name: str, folder: Path, part: str) -> Subject:
    if part:
        raise ValueError(f"{folder} is a folder of `embed`; it has no part {part!r}.")
    if not (folder / "features.npy").is_file():
        raise ValueError(f"{folder} has no features.npy; run `embed` with --layout matrix.")
    return _stored(name, folder / "features.npy")


def _run(name: str, folder: Path, part: str) -> Subject:
    stored = json.loads((folder / "recipe.json").read_text())
    if "student" not in stored and "recipe" not in stored:
        raise ValueError(f"{folder}/recipe.json is of no run that can be evaluated: it has {sorted(stored)}.")
    if part == BASE or part.startswith(f"{BASE}@"):
        return _base(name, folder, stored, part.partition("@")[2])
    if part and not part.isdecimal() and part not in ("final", ALL):
        raise ValueError(f"{folder}@{part}: expected the number of a split, as {folder}@0, or base, all or final.")
    if "student" in stored:
        if part == ALL:
            files = folder.glob("split-*/weights.safetensors")
            seeds = [int(file.parent.name.removeprefix("split-")) for file in files]
            return _pooled(name, folder, [_student(name, folder, str(s), stored["student"]) for s in sorted(seeds)])
        return _student(name, folder, part, stored["student"])
    if part == ALL:
        seeds = _seeds(folder / "splits")
        return _pooled(name, folder, [_teacher(name, folder, str(seed), stored["recipe"]) for seed in seeds])
    return _teacher(name, folder, part, stored["recipe"])


def _seeds(folder: Path) -> list[int]:
    """Splits whose transforms lie in a folder, ascending."""
    return sorted(int(file.stem.removeprefix("seed-")) for file in folder.glob("seed-*.npz"))


def _pooled(name: str, folder: Path, splits: Sequence[Subject]) -> Subject:
    if not splits:
        raise ValueError(f"{folder} has no complete split; finish it with `python -m training run`.")
    return Subject(name, {"splits": [one.identity for one in splits]}, splits=tuple(splits))


def _base(name: str, folder: Path, stored: dict[str, Any], rest: str) -> Subject:
    """The network that a run began with, or its features by the transforms of a folder."""
    if "student" in stored:
        recipe = stored["student"]
        file, held_out = folder / "base/features.npy", recipe["teacher"]["held_out"]
        identity: dict[str, Any] = {"model": recipe["model"], "side": recipe["side"]}

        def build_base() -> Encoder:
            from training.models import build

            return build(recipe["model"], side=recipe["side"], pretrained=recipe.get("pretrained", True))

        encoder: Callable[[], Encoder] = build_base
    else:
        recipe = stored["recipe"]
        file, held_out = folder / "features/features.npy", recipe["held_out"]
        identity, encoder = {"encoder": recipe["encoder"]}, _builder(recipe["encoder"], None, None)
    features = _stored(name, file)
    base = replace(features, identity=features.identity | identity, encoder=encoder)
    if not rest:
        return base
    place, _, part = rest.partition("@")
    seeds = _seeds(Path(place)) if part in ("", ALL) else [int(part)] if part.isdecimal() else []
    files = {seed: Path(place) / f"seed-{seed}.npz" for seed in seeds}
    if not files or not all(one.is_file() for one in files.values()):
        raise ValueError(f"{place} has no seed-{part or 'N'}.npz; its splits are {_seeds(Path(place))}.")
    moved = [
        replace(
            base,
            identity=base.identity | {"transform": sha256_of(one)},
            transform=Transform.load(one),
            split=Split(held_out, seed),
        )
        for seed, one in files.items()
    ]
    return _pooled(name, Path(place), moved) if part in ("", ALL) else moved[0]


def _teacher(name: str, folder: Path, part: str, recipe: dict[str, Any]) -> Subject:
    if part == "final":
        raise ValueError(f"{folder} is a teacher's run; its final transform is {folder} without @final.")
    split = int(part) if part else None
    file = folder / (f"splits/seed-{split}.npz" if split is not None else "transform.npz")
    if not file.is_file():
        raise ValueError(f"{folder} has no {file.relative_to(folder)}; is the run complete, and the split its own?")
    features = _stored(name, folder / "features/features.npy")
    return Subject(
        name,
        features.identity | {"transform": sha256_of(file), "encoder": recipe["encoder"]},
        encoder=_builder(recipe["encoder"], None, None),
        transform=Transform.load(file),
        stored=features.stored,
        names=features.names,
        split=None if split is None else Split(recipe["held_out"], split),
        seen=_all_seen(name) if split is None else "",
    )


def _student(name: str, folder: Path, part: str, recipe: dict[str, Any]) -> Subject:
    if not part:
        first = f"{folder}@{recipe['split_seeds'][0]}"
        raise ValueError(f"{folder} holds a student for each split; say which, as {first}, or take {folder}@all.")
    inside = folder / (part if part == "final" else f"split-{int(part)}")
    weights = inside / "weights.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights} is not there; splits of this run are {recipe['split_seeds']}.")

    readout = recipe.get("readout")

    def build_student() -> Encoder:
        from training.models import build

        encoder = build(recipe["model"], side=recipe["side"], pretrained=recipe.get("pretrained", True))
        return read_student(encoder, weights)

    own = {} if readout is None else {"readout weights": sha256_of(inside / "readout.safetensors")}
    features = inside / "features/features.npy"
    stored = _stored(name, features) if features.is_file() else Subject(name, {})
    return Subject(
        name,
        {"model": recipe["model"], "side": recipe["side"], "weights": sha256_of(weights), "readout": readout} | own,
        encoder=build_student,
        stored=stored.stored,
        names=stored.names,
        split=Split(recipe["teacher"]["held_out"], int(part)) if part != "final" else None,
        seen=_all_seen(name) if part == "final" else "",
    )


def _perceptual(name: str, folder: Path, part: str) -> Subject:
    """The embedding of a perceptual or joint alignment; `before` is the one that it started from."""
    if part not in ("", "before"):
        raise ValueError(f"{folder} has no part {part!r}; expected {folder} or {folder}@before.")
    shape = folder / SHAPE

    def build_shape() -> Encoder:
        from training.perceptual.run import read_embedding, read_start

        return read_start(folder) if part else read_embedding(folder)

    files = [shape] if part else [shape, *(folder / f for f in ("weights.safetensors", HEAD) if (folder / f).is_file())]
    if not part and len(files) < 2:
        raise ValueError(f"{folder} has no weights.safetensors; finish it with `python -m training perceptual`.")
    seen = "" if part else f"{name} may have been aligned with photos that it is judged on; see its recipe"
    return Subject(name, {file.name: sha256_of(file) for file in files}, encoder=build_shape, seen=seen)


def _bundle(name: str, folder: Path, part: str) -> Subject:
    manifest = read_bundle(folder).manifest
    space = part or "aligned"
    if space not in manifest.spaces:
        raise ValueError(f"{folder} has the spaces {sorted(manifest.spaces)}; there is no {space!r}.")

    def build_bundle() -> Encoder:
        from training.evaluation.onnx_encoder import bundle_encoder

        return bundle_encoder(read_bundle(folder), space)

    identity = {"bundle": manifest.files[MODEL].sha256, "space": space}
    return Subject(name, identity, encoder=build_bundle, seen=_seen_by_bundle(name, manifest, space))


def _seen_by_bundle(name: str, manifest: Manifest, space: str) -> str:
    """What its manifest says it was trained on: a recipe's export learned from all concepts, hub weights from none."""
    made = manifest.training
    if space == BASE:
        return ""
    if "recipe" in made or "student" in made:
        return _all_seen(name)
    if made.get("inputs") == {}:  # a model of a hub, to which nothing was added
        return ""
    return f"{name} is a bundle whose manifest does not say which concepts it was trained on"


def _all_seen(name: str) -> str:
    return f"{name} was trained on all concepts, those it is judged on too"


def _named(name: str, model: str, checkpoint: Path | None, side: int | None) -> Subject:
    from training.models import MODELS

    library, _, rest = model.partition(":")
    if model not in MODELS and not (library in ("timm", "open_clip") and rest):
        known = ", ".join(MODELS)
        raise ValueError(
            f"{model!r} is no features file, run or bundle that is there, and no model: {known}, timm:NAME or "
            "open_clip:ARCH/PRETRAINED."
        )
    if checkpoint is not None and not checkpoint.is_file():
        raise ValueError(f"no checkpoint at {checkpoint}.")
    identity = {"model": model, "side": side, "checkpoint": None if checkpoint is None else sha256_of(checkpoint)}
    if checkpoint is not None and (readout := _readout(checkpoint)) is not None:
        identity["readout"] = sha256_of(readout)
    language = rest if library == "open_clip" else ""
    return Subject(
        name,
        identity,
        encoder=_builder(model, checkpoint, side),
        language=language,
        weights=checkpoint if language else None,
    )


def _readout(checkpoint: Path) -> Path | None:
    """The readout beside a student's weights, if it has one."""
    beside = checkpoint.with_name(READOUT)
    return beside if beside.is_file() else None


def _builder(model: str, checkpoint: Path | None, side: int | None) -> Callable[[], Encoder]:
    def build_model() -> Encoder:
        from training.models import build

        if checkpoint is not None and _readout(checkpoint) is not None:
            return read_student(build(model, side=side), checkpoint)
        return build(model, checkpoint=checkpoint, side=side)

    return build_model


# --- features -------------------------------------------------------------------------------------


@dataclass
class Features:
    """Features of any images by any subject, kept under `folder` by content and fingerprint."""

    folder: Path
    computing: EmbedConfig = field(default_factory=EmbedConfig)
    _held: dict[tuple[str, str], Vectors] = field(default_factory=dict)

    def of(self, subject: Subject, images: Images) -> Vectors:
        """Features [n, d] of all images, float32.

        Raises:
            NoFeatures: the subject is a file with features of other images.
            ValueError: an image is missing or does not decode, or the file has other rows than there are images.
        """
        digest = digest_of(images)
        key = (identity_hash(subject.identity), digest)
        if key not in self._held:
            raw = self._stored(subject, images, digest)
            if raw is None:
                raw = self._computed(subject, images, digest)
            self._held[key] = raw if subject.transform is None else subject.transform.apply(raw)
        return self._held[key]

    def _stored(self, subject: Subject, images: Images, digest: str) -> Vectors | None:
        """What a file holds; None where another file is needed and there is a network to compute it."""
        if subject.stored is None:
            return None
        file, recorded = subject.stored
        other = recorded is not None and recorded != digest
        other = other or (subject.names is not None and subject.names != tuple(images.names))
        shape = np.load(file, mmap_mode="r", allow_pickle=False).shape
        if other or len(shape) != 2 or shape[0] != len(images):
            if subject.encoder is not None:
                return None
            raise NoFeatures(
                f"{subject.name}: {file} has {shape[0]} rows, of other images than the {len(images)} needed here; "
                "give a model, run or bundle, whose features can be computed."
            )
        features = np.asarray(np.load(file, allow_pickle=False), np.float32)
        finite = np.isfinite(features).all(1)
        if not finite.all():
            raise ValueError(f"{file}, row {int((~finite).argmax())}: a feature is not finite.")
        return features

    def _computed(self, subject: Subject, images: Images, digest: str) -> Vectors:
        assert subject.encoder is not None
        made_of = {k: v for k, v in subject.identity.items() if k not in ("transform", "features")}
        folder = self.folder / f"{identity_hash(made_of)[:12]}-{digest[:12]}"
        if (folder / "index.json").is_file() and (folder / "features.npy").is_file():
            return np.asarray(np.load(folder / "features.npy", allow_pickle=False), np.float32)
        return np.asarray(extract(subject.encoder(), subject.name, images, folder, self.computing), np.float32)


def identity_hash(identity: Any) -> str:
    """sha256 of JSON values, keys in order."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
