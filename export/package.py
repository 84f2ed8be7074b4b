"""From a training run to a bundle: graph, precisions, parity gate, manifest."""

import io
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from contract.bundle import (
    FORMAT,
    FORMAT_VERSION,
    GRAPH_INPUT,
    Bundle,
    Golden,
    GoldenTolerance,
    Manifest,
    Space,
    write_bundle,
)
from contract.pixels import PixelSpec, load_pixels
from export import parity
from export.graph import export_graph
from export.parity import Parity
from export.precision import PRECISIONS, Precision, convert
from export.sources import Source, read_source
from training.photos import Photos, read_photos
from training.run import KERNEL, require_inputs
from training.things import read_vice

PARITY_PHOTOS = 600
PARITY_TRIPLETS = 5_000
CALIBRATION_PHOTOS = 200


class ParityError(ValueError):
    """No precision that was asked for keeps the judgments of the model; the message holds the report."""


def package(
    run: Path, data: Path, target: Path, *, precisions: tuple[Precision, ...], golden_photos: tuple[Path, ...]
) -> tuple[Bundle, str]:
    """Export a run in the first of `precisions` that passes the parity gate.

    Args:
        run: a complete run folder of `python -m training run`.
        data: the folder it was trained on; its photos are the parity and calibration images.
        target: bundle folder to make.
        precisions: candidates for the bundle, the most wanted first; all of `PRECISIONS` are reported.
        golden_photos: files that become golden images.

    Returns:
        the bundle and the parity report as text.

    Raises:
        ValueError: the run is not complete or was trained on other data, photos are too few, or a golden
            photo does not decode.
        ParityError: no candidate passes.
        FileExistsError: `target` exists.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; remove it or choose another folder.")
    source = read_source(run)
    require_inputs(data, source.identity["inputs"])
    encoder = source.encoder
    photos = read_photos(data / "images.csv", len(read_vice(data / "things/vice_embedding.npy")))
    pixels, calibration = _sample_pixels(photos, encoder.pixels, source.recipe["seed"])
    with tempfile.TemporaryDirectory() as scratch:
        files = {precision: Path(scratch) / f"{precision}.onnx" for precision in PRECISIONS}
        rows = _measure(source, files, pixels, calibration)
        report = parity.table(rows)
        passed = {row.precision for row in rows if row.passed}
        chosen = next((precision for precision in precisions if precision in passed), None)
        if chosen is None:
            raise ParityError(f"no precision of {', '.join(precisions)} passes the parity gate:\n{report}")
        golden = _golden(files[chosen], source, golden_photos)
        manifest = _manifest(source, golden, rows, chosen)
        return write_bundle(target, manifest, files[chosen], golden), report


def _sample_pixels(photos: Photos, spec: PixelSpec, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """(parity, calibration) pixels of different random photos, each [n, 3, height, width]."""
    if len(photos) < PARITY_PHOTOS + CALIBRATION_PHOTOS:
        wanted = PARITY_PHOTOS + CALIBRATION_PHOTOS
        raise ValueError(f"{len(photos)} photos; the parity report needs {wanted}, some of them to calibrate int8.")
    order = np.random.default_rng(seed).permutation(len(photos))[: PARITY_PHOTOS + CALIBRATION_PHOTOS]
    files = [photos.root / photos.paths[i] for i in order]
    loaded = [load_pixels(file.read_bytes(), spec) for file in tqdm(files, desc="parity photos", unit="photo")]
    return np.stack(loaded[:PARITY_PHOTOS]), np.stack(loaded[PARITY_PHOTOS:])


def _measure(
    source: Source, files: dict[Precision, Path], pixels: NDArray[Any], calibration: NDArray[Any]
) -> list[Parity]:
    """Write every precision and compare each with torch."""
    export_graph(source.model, source.encoder.pixels.shape, files["fp32"])
    reference = parity.torch_vectors(source.model, pixels)
    temperature = source.temperature["aligned"]
    index = np.random.default_rng(0).integers(len(pixels), size=(PARITY_TRIPLETS * 2, 3))
    i, j, k = index.T
    index = index[(i != j) & (j != k) & (i != k)][:PARITY_TRIPLETS]
    rows = []
    for precision in tqdm(PRECISIONS, desc="parity", unit="precision"):
        if precision != "fp32":
            convert(files["fp32"], files[precision], precision, calibration)
        row = parity.compare(files[precision], precision, reference, pixels, index, KERNEL["aligned"], temperature)
        rows.append(row)
    return rows


def _golden(file: Path, source: Source, photos: tuple[Path, ...]) -> Golden:
    """Golden images in PNG, small enough to ship, and what the chosen graph makes of them."""
    images = []
    for photo in photos:
        try:
            image = Image.open(photo).convert("RGB")
        except OSError as error:
            raise ValueError(f"golden photo {photo} does not decode: {error}") from error
        image.thumbnail((200, 200))
        stream = io.BytesIO()
        image.save(stream, "PNG", optimize=True)
        images.append(stream.getvalue())
    pixels = np.stack([load_pixels(image, source.encoder.pixels) for image in images])
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    outputs = source.model.outputs
    vectors = dict(zip(outputs, session.run(list(outputs), {GRAPH_INPUT: pixels}), strict=True))
    return Golden(images=tuple(images), pixels=pixels, vectors=vectors)


def _manifest(source: Source, golden: Golden, rows: list[Parity], precision: Precision) -> Manifest:
    recipe, encoder = source.recipe, source.encoder
    spaces = {
        name: Space(
            size=golden.vectors[name].shape[1],
            normalized=False,
            similarity=KERNEL[name],
            temperature=temperature,
            calibrated=True,
            calibrated_on=(
                "VICE posterior probabilities (4.7 million human choices) of triplets of held-out THINGS concepts, "
                f"{len(recipe['split_seeds'])} splits, by likelihood"
            ),
            fingerprint="",  # filled in by write_bundle
        )
        for name, temperature in source.temperature.items()
    }
    return Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=recipe["name"],
        description=recipe["description"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        alignment=source.alignment,
        license=encoder.base_model.license,
        base_model=encoder.base_model,
        training={**source.identity, "data": _DATA, "command": source.command},
        pixels=encoder.pixels,
        spaces=spaces,
        precision=precision,
        tie_rule="strict",
        figures=source.figures,
        parity={
            "reference": "torch float32",
            "photos": PARITY_PHOTOS,
            "triplets": PARITY_TRIPLETS,
            "command": f"python -m export bundle RUN --data DATA --out {recipe['name']}",
            "rows": [asdict(row) for row in rows],
        },
        # Bounds for other processors and releases of ONNX Runtime and Pillow; on the exporting
        # machine the difference is 0.
        golden=GoldenTolerance(one_minus_cosine=1e-4, relative_norm=1e-2, pixel=2),
        files={},  # filled in by write_bundle
    )


_DATA = [
    {"name": "VICE embedding of THINGS", "source": "Muttenthaler et al. 2022", "license": "VICE release"},
    {"name": "THINGS concepts and odd-one-out responses", "source": "Hebart et al. 2019, 2023", "license": "CC BY 4.0"},
    {"name": "Caltech-101 photos", "source": "Fei-Fei et al. 2004", "license": "CC BY 4.0"},
    {"name": "ImageNet sample photos", "source": "ImageNet", "license": "research use"},
]
