"""From a training run to a bundle: graph, precisions, parity gate, manifest."""

import io
import json
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
    Figure,
    Golden,
    GoldenTolerance,
    Manifest,
    Space,
    write_bundle,
)
from contract.pixels import PixelSpec, load_pixels
from export import parity
from export.graph import OUTPUTS, AlignedModel, export_graph
from export.parity import Parity
from export.precision import PRECISIONS, Precision, convert
from training.align import Transform
from training.encoders import ENCODERS, Encoder
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
    identity, figures = _read_run(run)
    require_inputs(data, identity["inputs"])
    recipe = identity["recipe"]
    encoder = ENCODERS[recipe["encoder"]]()
    model = AlignedModel(encoder, Transform.load(run / "transform.npz")).eval()
    photos = read_photos(data / "images.csv", len(read_vice(data / "things/vice_embedding.npy")))
    pixels, calibration = _sample_pixels(photos, encoder.pixels, recipe["seed"])
    with tempfile.TemporaryDirectory() as scratch:
        files = {precision: Path(scratch) / f"{precision}.onnx" for precision in PRECISIONS}
        rows = _measure(model, encoder, files, pixels, calibration, figures["temperature"]["aligned"])
        report = parity.table(rows)
        passed = {row.precision for row in rows if row.passed}
        chosen = next((precision for precision in precisions if precision in passed), None)
        if chosen is None:
            raise ParityError(f"no precision of {', '.join(precisions)} passes the parity gate:\n{report}")
        golden = _golden(files[chosen], encoder.pixels, golden_photos)
        manifest = _manifest(identity, figures, encoder, golden, rows, chosen)
        return write_bundle(target, manifest, files[chosen], golden), report


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    for name in ("recipe.json", "transform.npz", "figures.json"):
        if not (run / name).is_file():
            raise ValueError(f"{run} lacks {name}; finish it with `python -m training run` first.")
    return json.loads((run / "recipe.json").read_text()), json.loads((run / "figures.json").read_text())


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
    model: AlignedModel,
    encoder: Encoder,
    files: dict[Precision, Path],
    pixels: NDArray[Any],
    calibration: NDArray[Any],
    temperature: float,
) -> list[Parity]:
    """Write every precision and compare each with torch."""
    export_graph(model, encoder.pixels.shape, files["fp32"])
    reference = parity.torch_vectors(model, pixels)
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


def _golden(file: Path, spec: PixelSpec, photos: tuple[Path, ...]) -> Golden:
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
    pixels = np.stack([load_pixels(image, spec) for image in images])
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    vectors = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {GRAPH_INPUT: pixels}), strict=True))
    return Golden(images=tuple(images), pixels=pixels, vectors=vectors)


def _manifest(
    identity: dict[str, Any],
    figures: dict[str, Any],
    encoder: Encoder,
    golden: Golden,
    rows: list[Parity],
    precision: Precision,
) -> Manifest:
    recipe = identity["recipe"]
    command = f"python -m training run {recipe['name']} --data DATA --out RUN"
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
        for name, temperature in figures["temperature"].items()
    }
    return Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=recipe["name"],
        description=recipe["description"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        alignment="semantic: human odd-one-out choices (AligNet, uncertainty distillation)",
        license=encoder.base_model.license,
        base_model=encoder.base_model,
        training={**identity, "data": _DATA, "command": command},
        pixels=encoder.pixels,
        spaces=spaces,
        precision=precision,
        tie_rule="strict",
        figures=[Figure(**figure, command=command) for figure in figures["figures"]],
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
