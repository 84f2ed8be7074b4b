"""From a source to a bundle: graph, precisions, parity gate, calibration, manifest."""

import io
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from contract import triplets
from contract.bundle import Bundle, Golden, write_bundle
from contract.graph import GPU_ONLY
from contract.manifest import FORMAT, FORMAT_VERSION, GRAPH_INPUT, GoldenTolerance, Manifest, Space
from contract.pixels import PixelSpec, load_pixels
from contract.triplets import Kernel
from export import parity, triton_parity
from export.graph import export_graph
from export.parity import BATCH, Parity, Vectors
from export.precision import PRECISIONS, Precision, convert, require_known
from export.sources import Source
from training.feeds import random_triplets
from training.images import Images, load_image, require_present

PARITY_PHOTOS = 600
PARITY_TRIPLETS = 5_000
CALIBRATION_PHOTOS = 200

LEAST_PHOTOS = 4 * BATCH
"""Fewer make too few different triplets, and too few to embed alone and in a batch."""

FORCEABLE: tuple[Precision, ...] = ("int8", "int8-weights")

Embed = Callable[[Images, NDArray[np.int64]], Vectors]
Calibrator = Callable[[Embed], dict[str, Any]]
"""Given the exported graph, the `calibration` of its spaces; see `export.calibration`."""


class ParityError(ValueError):
    """No precision that was asked for keeps the judgments of the model; the message holds the report."""


@dataclass(frozen=True, kw_only=True)
class PackageOptions:
    """How to package a source.

    Attributes:
        precisions: that the bundle may have, the most wanted first; each is reported, and float32 besides.
        force: an int8 precision may leave above its limits if none passes; the manifest says so.
        golden_photos: files that become golden images; four drawn patterns if empty.
        parity_photos, calibration_photos: how many, of different photos; the defaults of this module if None.
        triton: a server that runs every precision too; None for no such rows in the report.
    """

    precisions: tuple[Precision, ...]
    force: bool = False
    golden_photos: tuple[Path, ...] = ()
    parity_photos: int | None = None
    calibration_photos: int | None = None
    triton: triton_parity.Server | None = None

    def __post_init__(self) -> None:
        require_known(self.precisions)
        for name in ("parity_photos", "calibration_photos"):
            value = getattr(self, name)
            if value is not None and value < LEAST_PHOTOS:
                raise ValueError(f"{name} is {value}; expected {LEAST_PHOTOS} or more.")


def package(
    source: Source, images: Images, target: Path, options: PackageOptions, calibrator: Calibrator | None = None
) -> tuple[Bundle, str]:
    """Export a source in the first of `precisions` that passes the parity gate.

    Args:
        source: what to export.
        images: its parity and calibration photos are drawn from these.
        target: bundle folder to make.
        options: see there.
        calibrator: fits temperatures; None keeps those of the source.

    Returns:
        the bundle and the parity report as text.

    Raises:
        ValueError: photos are too few, one does not decode (named), torch cannot write the model, or Triton is not to
            be had or refuses it.
        ParityError: no candidate passes.
        FileExistsError: `target` exists.
        OSError: it cannot be written; nothing is left behind.
    """
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists; remove it or choose another folder.")
    if options.triton is not None:
        triton_parity.require_device(options.triton, options.precisions)
        triton_parity.require_live(options.triton)
    golden_images = _golden_images(options.golden_photos)
    pixels, calibration = _sample_pixels(images, source.pixels, options)
    with tempfile.TemporaryDirectory() as scratch:
        measured = _measure(source, pixels, calibration, options, Path(scratch))
        if options.triton is not None:
            measured = _in_triton(measured, source, pixels, golden_images, options.triton, Path(scratch))
        chosen = _choose(measured, options)
        file = Path(scratch) / f"{chosen}.onnx"
        golden = _golden(file, source, golden_images, chosen)
        given = {} if calibrator is None else calibrator(_embedding(file, source, chosen))
        manifest = _manifest(source, golden, measured, chosen, given)
        return write_bundle(target, manifest, file, golden), parity.table(measured.rows)


# --- photos ----------------------------------------------------------------------------------------


def _sample_pixels(
    images: Images, spec: PixelSpec, options: PackageOptions
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(parity, calibration) pixels of different random photos, each uint8 [n, 3, height, width]."""
    first, second = options.parity_photos or PARITY_PHOTOS, options.calibration_photos or CALIBRATION_PHOTOS
    if len(images) < first + second:
        raise ValueError(
            f"{len(images)} photos; the parity report takes {first} and the calibration of int8 {second} others. Give "
            "more photos, or ask for fewer with --parity-photos and --calibration-photos."
        )
    require_present(images, "the photos")
    order = np.random.default_rng(0).permutation(len(images))[: first + second].tolist()
    spec = replace(spec, dtype="uint8")
    loaded = np.stack([load_image(images, row, spec) for row in tqdm(order, desc="parity photos", unit="photo")])
    return loaded[:first], loaded[first:]


def _golden_images(photos: tuple[Path, ...]) -> tuple[bytes, ...]:
    """Golden images in PNG, small enough to ship."""
    images = []
    for photo in photos:
        try:
            image = Image.open(photo).convert("RGB")
        except OSError as error:
            raise ValueError(f"golden photo {photo} does not decode: {error}") from error
        image.thumbnail((200, 200))
        images.append(_png(image))
    return tuple(images) or tuple(_png(_pattern(seed)) for seed in range(4))


def _pattern(seed: int) -> Image.Image:
    """Blurred noise of 200 x 150 pixels: coarse shapes and fine grain, and nobody's photo."""
    rng = np.random.default_rng(seed)
    layers = []
    for cells in (4, 16, 200):
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers.append(np.asarray(grid.resize((200, 150), Image.Resampling.BICUBIC), np.float32))
    return Image.fromarray((layers[0] * 0.6 + layers[1] * 0.3 + layers[2] * 0.1).astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


# --- graphs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """What the parity gate saw: a row for each precision and runtime, and what the rows were measured with."""

    rows: list[Parity]
    reference: Vectors
    index: NDArray[np.int64]
    temperature: float


def _measure(
    source: Source,
    pixels: NDArray[np.uint8],
    calibration: NDArray[np.uint8],
    options: PackageOptions,
    folder: Path,
) -> _Measured:
    """Write float32 and every precision asked for to `folder`, and compare each with torch."""
    spec = source.pixels
    export_graph(source.graph, spec.shape, folder / "fp32.onnx", spec.dtype)
    reference = parity.torch_vectors(source.model, pixels)
    size = reference["aligned"].shape[1]
    if source.dimensions and len(source.dimensions) != size:
        raise ValueError(
            f"{len(source.dimensions)} names of dimensions; {source.name} has {size} in its aligned space."
        )
    index = random_triplets(len(pixels), PARITY_TRIPLETS * 2, np.random.default_rng(0))[:PARITY_TRIPLETS]
    kernel = source.kernel["aligned"]
    temperature = source.temperature.get("aligned") or _spread(reference["aligned"][index], kernel)
    rows = []
    asked = [precision for precision in PRECISIONS if precision in ("fp32", *options.precisions)]
    for precision in tqdm(asked, desc="parity", unit="precision"):
        file = folder / f"{precision}.onnx"
        if precision != "fp32":
            convert(folder / "fp32.onnx", file, precision, parity.taken(calibration, spec))
        runtimes = [parity.onnx_runtime(file, source.model.outputs, spec, precision)]
        if precision in ("fp16", *GPU_ONLY) and (gpu := parity.cuda_runtime(file, source.model.outputs, spec)):
            runtimes.append(gpu)
        rows += [
            parity.compare(runtime, precision, reference, pixels, index, kernel, temperature) for runtime in runtimes
        ]
    return _Measured(rows, reference, index, temperature)


def _in_triton(
    measured: _Measured,
    source: Source,
    pixels: NDArray[np.uint8],
    golden_images: tuple[bytes, ...],
    server: triton_parity.Server,
    folder: Path,
) -> _Measured:
    """The same, with a row of every precision as Triton runs it: the repository that a bundle of it would become."""
    rows = list(measured.rows)
    for row in tqdm(measured.rows, desc="parity in Triton", unit="precision"):
        if row.runtime == parity.CUDA:  # the precision has another row, and Triton runs it once
            continue
        if max(row.one_minus_cosine, row.base_one_minus_cosine or 0) >= parity.BEYOND:
            # No bundle holds vectors that are not finite.
            continue
        file = folder / f"{row.precision}.onnx"
        golden = _golden(file, source, golden_images, row.precision)
        manifest = _manifest(source, golden, measured, row.precision, {})
        bundle = write_bundle(folder / row.precision, replace(manifest, name=triton_parity.unused_name()), file, golden)
        with triton_parity.serving(bundle, server) as runtime:
            kernel, temperature = source.kernel["aligned"], measured.temperature
            rows.append(
                parity.compare(runtime, row.precision, measured.reference, pixels, measured.index, kernel, temperature)
            )
        shutil.rmtree(bundle.path)
    return replace(measured, rows=sorted(rows, key=lambda row: PRECISIONS.index(row.precision)))


def _spread(vectors: NDArray[np.float32], kernel: Kernel) -> float:
    """A temperature for a space that has none yet: similarities then differ by about one, as fitted ones do."""
    spread = float(triplets.pair_similarities(vectors.astype(np.float64), kernel).std())
    if not 0 < spread < np.inf:
        raise ValueError("the model gives the same vector, or none that is finite, for all photos.")
    return spread


def _choose(measured: _Measured, options: PackageOptions) -> Precision:
    if passed := [precision for precision in options.precisions if _passed(measured, precision)]:
        return passed[0]
    finite = {row.precision for row in measured.rows if row.one_minus_cosine < parity.BEYOND}
    forced = [precision for precision in options.precisions if precision in FORCEABLE and precision in finite]
    if options.force and forced:
        return forced[0]
    report = parity.table(measured.rows)
    advice = " An int8 precision leaves anyway with --force." if set(options.precisions) & set(FORCEABLE) else ""
    raise ParityError(f"no precision of {', '.join(options.precisions)} passes the parity gate:\n{report}\n{advice}")


def _passed(measured: _Measured, precision: Precision) -> bool:
    """Whether a precision passed in every runtime that it was measured in."""
    return all(row.passed for row in measured.rows if row.precision == precision)


def _embedding(file: Path, source: Source, precision: Precision) -> Embed:
    """Photos to vectors, by the graph that is exported."""
    session, outputs = parity.open_session(file, precision), list(source.model.outputs)

    def embed(images: Images, rows: NDArray[np.int64]) -> Vectors:
        pieces = []
        with tqdm(total=len(rows), desc="judged photos", unit="photo") as bar:
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH].tolist()
                pixels = np.stack([load_image(images, row, source.pixels) for row in part])
                pieces.append(session.run(outputs, {GRAPH_INPUT: pixels}))
                bar.update(len(part))
        return {name: np.concatenate([piece[i] for piece in pieces]) for i, name in enumerate(outputs)}

    return embed


def _golden(file: Path, source: Source, images: tuple[bytes, ...], precision: Precision) -> Golden:
    """The golden images and what the chosen graph makes of them."""
    pixels = np.stack([load_pixels(image, source.pixels) for image in images])
    outputs = list(source.model.outputs)
    session = parity.open_session(file, precision)
    vectors = dict(zip(outputs, session.run(outputs, {GRAPH_INPUT: pixels}), strict=True))
    return Golden(images=images, pixels=pixels, vectors=vectors)


# --- manifest --------------------------------------------------------------------------------------


def _manifest(
    source: Source, golden: Golden, measured: _Measured, precision: Precision, calibration: dict[str, Any]
) -> Manifest:
    asked = " ".join(dict.fromkeys(row.precision for row in measured.rows))
    more = "" if source.input == "uint8" else f" --input {source.input}"
    return Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=source.name,
        description=source.description,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        alignment=source.alignment,
        license=source.license,
        base_model=source.encoder.base_model,
        training=source.training,
        pixels=source.pixels,
        spaces={name: _space(name, source, golden, calibration) for name in source.model.outputs},
        precision=precision,
        tie_rule="strict",
        figures=source.figures,
        parity={
            "reference": "torch float32",
            "photos": len(measured.reference["aligned"]),
            "triplets": len(measured.index),
            "temperature": measured.temperature,
            "limits": {row.precision: parity.limits(row.precision) for row in measured.rows},
            "forced": not _passed(measured, precision),
            "command": f"{source.command} --out {source.name} --precision {asked}{more}",
            "rows": [asdict(row) for row in measured.rows],
        },
        golden=_tolerance(precision),
        files={},  # filled in by write_bundle
        calibration={
            name: {key: value for key, value in calibration[name].items() if key != "temperature"}
            for name in source.model.outputs
            if name in calibration
        },
    )


def _tolerance(precision: Precision) -> GoldenTolerance:
    """Bounds for other processors and releases of ONNX Runtime and Pillow; on the exporting machine it differs by 0.

    Where the twin gave the golden vectors, none is the exporting machine: a GPU adds up in another order and rounds
    less often in fused operators, and in bfloat16 that alone moves a vector by as much as the precision does.
    """
    cosine = parity.MAX_COSINE[precision] if precision in GPU_ONLY else 1e-4
    return GoldenTolerance(one_minus_cosine=cosine, relative_norm=1e-2, pixel=2)


def _space(name: str, source: Source, golden: Golden, calibration: dict[str, Any]) -> Space:
    """A fitted temperature is the source's own, or that of the calibration; else 1, not fitted."""
    own = source.temperature.get(name)
    fitted = calibration.get(name)
    people = source.calibrated_on if own is not None else f"{fitted['people']}, by likelihood" if fitted else ""
    return Space(
        size=golden.vectors[name].shape[1],
        normalized=False,
        similarity=source.kernel[name],
        temperature=own if own is not None else fitted["temperature"] if fitted else 1.0,
        calibrated=bool(people),
        calibrated_on=people,
        fingerprint="",  # filled in by write_bundle
        dimensions=source.dimensions if name == "aligned" else (),
    )
