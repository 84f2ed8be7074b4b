"""The tiny: an encoder of three small convolutions, and a data folder whose colours say what people would choose."""

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from contract.manifest import BaseModel
from contract.pixels import PixelSpec
from training.align import AlignConfig
from training.encoders import Encoder
from training.models import Model
from training.photos import Photos
from training.recipe import Recipe
from training.timm_models import TimmFeatures

CONCEPTS = 24
"""Even concepts are animals, odd ones vehicles; each has two photos, the first four have six."""

TINY = Recipe(
    name="tiny",
    description="nothing real",
    encoder="tiny",
    align=AlignConfig(
        power=0.5,
        components=8,
        penalty=0.01,
        steps=20,
        learning_rate=0.01,
        triplets=300,
        noise=0.1,
        residuals=1.0,
    ),
    held_out=0.5,
    split_seeds=(0, 1),
    draws=2,
    bootstrap=5,
    seed=0,
)


VIT_WIDTH = 12


class Convolutions(nn.Module):
    """uint8 [n, 3, 8, 8] to 64 non-negative numbers; fixed random weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        sizes = (3, 16, 64, 64)
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(sizes))
        for parameter in self.parameters():
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5 if fan_in > 1 else 0.1, generator=generator)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float() / 255
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.mean((2, 3))


def tiny_encoder() -> Encoder:
    spec = PixelSpec(height=8, width=8, resize="squash", dtype="uint8")
    base_model = BaseModel(name="tiny", source="tests/training/tiny.py", license="Apache-2.0")
    return Encoder(Convolutions().eval().requires_grad_(False), spec, 64, base_model)


def tiny_vit(seed: int = 0) -> Encoder:
    """A ViT of three blocks with a class token and random weights."""
    import timm

    torch.manual_seed(seed)
    backbone = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=VIT_WIDTH, depth=3, num_heads=2, num_classes=0
    )
    pixels = PixelSpec(height=8, width=8, resize="squash", dtype="uint8", mean=(0.5,) * 3, std=(0.5,) * 3)
    module = TimmFeatures(backbone, pixels, "cls").eval().requires_grad_(False)
    return Encoder(module, pixels, VIT_WIDTH, BaseModel(name="tiny ViT", source="test", license="none"))


def tiny_clip(folder: Path) -> str:
    """Name for `training.models.build` of two small towers in open_clip's registry, 32 x 32 pixels to 24 values."""
    import open_clip

    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    (folder / "tiny-clip.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    return "open_clip:tiny-clip"


TINY_MODEL = Model(
    source=lambda side: tiny_encoder(), output="pooled", size=64, side=8, license="Apache-2.0", cite="this file"
)
"""For `MODELS`, so that recipes can name the tiny encoder."""


def write_photo(file: Path, colour: Sequence[float] | NDArray[Any], seed: int) -> None:
    """A 16 x 16 PNG of one colour, 0..1, with grain that no two seeds share."""
    grain = np.random.default_rng(seed).normal(0, 0.06, (16, 16, 3))
    pixels = np.clip((np.asarray(colour) + grain) * 255, 0, 255).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def write_photos(folder: Path, n: int) -> Photos:
    """`n` photos of different colours, without concepts."""
    for seed in range(n):
        write_photo(folder / f"{seed}.png", np.random.default_rng(seed).random(3), seed)
    empty = ("",) * n
    return Photos(folder, tuple(f"{i}.png" for i in range(n)), empty, empty, np.full(n, -1, np.int64))


def write_bapps(folder: Path, judged: Mapping[str, Sequence[float]]) -> Path:
    """A tree in the layout of BAPPS: shares of people who chose p1, by `SPLIT/KIND`."""
    for place, shares in judged.items():
        for i, share in enumerate(shares):
            for number, part in enumerate(("ref", "p0", "p1")):
                write_photo(folder / place / part / f"{i:06d}.png", np.random.default_rng([i, number]).random(3), i)
            (folder / place / "judge").mkdir(parents=True, exist_ok=True)
            np.save(folder / place / f"judge/{i:06d}.npy", np.array([share], np.float32))
    return folder


def write_rows(file: Path, rows: Sequence[Sequence[Any]]) -> Path:
    """A CSV file; the first row is its header."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return file


def write_tiny_data(folder: Path, repainted: Sequence[int] = ()) -> Path:
    """Everything that `training.run` reads: the colour of a photo is the VICE row of its concept.

    The photos of the concepts in `repainted` have other colours; nothing else changes.
    """
    rng = np.random.default_rng(0)
    vice = rng.random((CONCEPTS, 3)) * [1.0, 0.4, 1.0]
    vice[0::2, 2], vice[1::2, 0] = 0.05, 0.05  # animals are red, vehicles blue
    rows: list[list[Any]] = [["path", "dataset", "label", "wordnet_id", "things_index"]]
    for concept in range(CONCEPTS):
        for i in range(6 if concept < 4 else 2):
            path, dataset = f"images/{concept}-{i}.png", "caltech101" if i % 2 == 0 or concept < 8 else "imagenet"
            seed = 100 * concept + i
            shade = np.random.default_rng(seed)
            colour = shade.random(3) if concept in repainted else vice[concept] * shade.uniform(0.8, 1.2)
            write_photo(folder / path, colour, seed)
            rows.append([path, dataset, f"class {concept}", "", concept])
    for i in range(4):
        write_photo(folder / f"images/none-{i}.png", np.random.default_rng(i).random(3), seed=9000 + i)
        rows.append([f"images/none-{i}.png", "imagenet", "nothing", "", ""])
    write_rows(folder / "images.csv", rows)
    kinds: list[list[Any]] = [
        ["things_index", "categories"],
        *([c, "thing; vehicle" if c % 2 else "animal"] for c in range(CONCEPTS)),
    ]
    write_rows(folder / "things/concepts.csv", kinds)
    np.save(folder / "things/vice_embedding.npy", (4 * vice).astype(np.float32))
    responses = [[0, 2, 1, 2], [1, 2, 0, 0], [2, 1, 0, 0], [5, 7, 4, 2], [4, 7, 5, 0]]
    header = ["concept_0", "concept_1", "concept_2", "odd_position"]
    write_rows(folder / "things/human_test_responses.csv", [header, *responses])
    return folder
