"""Linear segmentation and depth heads on frozen patch tokens (Sundaram et al. 2024, section 4 and appendix).

DATA/segmentation/NAME/{train,test}/images/ and masks/   masks are PNG of class numbers, 255 is not judged
DATA/depth/NAME/{train,test}/images/ and depth/          depth is a float array, NAME.npy [height, width], above 0

Images and masks pair by name without suffix. Tokens are those after the final norm of a ViT of timm or open_clip, of
several branches side by side; a model without patches takes no part, and its differences neither. They are
standardised over the training images: each dimension less its mean, all divided by the one deviation of all values,
so that one learning rate suits every model. The head is one linear layer on them, its output resized to the mask.
Segmentation: soft Jaccard loss, Adam 3e-4, 10 epochs of batches of 16; figure: mean over images of the mean Jaccard
index over the classes in the image or the prediction. Depth: 256 uniform bins up to the largest training depth, their
mean by softmax; loss mean(g^2) + .15 (sum g)^2 / N^2 of g = log(predicted + .001) - log(depth + .001), and the mean
absolute gradient of g; Adam 3e-4, 10 epochs of 128; figure: root mean squared error of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from training.encoders import Encoder, Normalized
from training.evaluation.result import NotHere, Plot, Result, Setting
from training.evaluation.subjects import Subject
from training.evaluation.transfer import hit_rows
from training.images import Images, load_image, read_folder
from training.levels import Levels
from training.perceptual.embedding import Ensemble, Headed

Task = Literal["segmentation", "depth"]
TRUTH = {"segmentation": "masks", "depth": "depth"}
BATCH = {"segmentation": 16, "depth": 128}
EPOCHS, RATE, IGNORED, BINS = 10, 3e-4, 255, 256
CHUNK = 16
"""Images whose tokens are computed at once."""

Head = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Images and, for each, a mask or a depth of its own size."""

    images: Images
    truth: list[Tensor]


def segmentation(setting: Setting) -> Result:
    """Mean Jaccard index of a linear head, image by image."""
    return _run(setting, "segmentation", "Jaccard index", "fraction")


def depth(setting: Setting) -> Result:
    """Error of a linear depth head, image by image."""
    return _run(setting, "depth", "RMSE of depth", "as in the data")


def _run(setting: Setting, task: Task, figure: str, unit: str) -> Result:
    folders = sorted(path for path in (setting.data / task).glob("*") if path.is_dir())
    if not folders:
        raise NotHere(f"{setting.data} has no {task}/")
    out = Result()
    networks = {subject.name: _network(subject) for subject in setting.subjects}
    able = tuple(s for s in setting.subjects if networks[s.name] is not None)
    if not able:
        raise NotHere("no model has patch tokens; a ViT of timm or open_clip has")
    names = {s.name for s in able}
    if without := [s.name for s in setting.subjects if s.name not in names]:
        out.notes.append(f"without patch tokens, and left out: {', '.join(without)}.")
    own = replace(setting, subjects=able, differences=tuple(p for p in setting.pairs if set(p) <= names))
    for folder in folders:
        train, test = (read_part(folder / part, task) for part in ("train", "test"))
        scores = {}
        for subject in able:
            encoder = networks[subject.name]
            assert encoder is not None
            learned, judged = (patch_tokens(encoder, part.images) for part in (train, test))
            predict = fit_head(learned, train.truth, task, setting.constants.seed)
            score = jaccard if task == "segmentation" else depth_error
            values = [score(predict(x[None], t[None])[0], t) for x, t in zip(judged, test.truth, strict=True)]
            scores[subject.name] = {"linear head": np.array(values)}
        out.rows += hit_rows(scores, own, figure, folder.name, unit)
        out.notes.append(f"{folder.name}: {len(train.truth)} images to learn from, {len(test.truth)} tested.")
    out.plots.append(Plot("bars", figure, {"figure": figure}))
    return out


def _network(subject: Subject) -> Encoder | None:
    """The subject's network, if it has patches."""
    if subject.encoder is None or subject.transform is not None:
        return None
    encoder = subject.encoder()
    return encoder if all(has_patches(tower) for tower in _towers(encoder.module)) else None


def has_patches(tower: nn.Module) -> bool:
    """Whether a network's blocks work on patch tokens that a final norm comes after: ViTs of timm and of open_clip.

    Convolutional networks and pyramids answer `forward_intermediates` too, so that says nothing.
    """
    trunk = _trunk(tower)
    # An attention pool of open_clip stands before the final norm, which is then of another width than the tokens.
    own_of_clip = hasattr(trunk, "ln_post") and getattr(trunk, "attn_pool", None) is None
    return (hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "blocks")) or own_of_clip


def patch_grid(tower: nn.Module, pixels: Tensor) -> Tensor:
    """[n, d, rows, columns] patch tokens after the final norm, of uint8 pixels, by a tower that `has_patches`."""
    trunk, x = _trunk(tower), tower.normalized(pixels)  # type: ignore[operator]
    how: dict[str, Any] = {"indices": 1, "output_fmt": "NCHW", "intermediates_only": True}
    if hasattr(trunk, "ln_post"):
        grids = trunk.forward_intermediates(x, normalize_intermediates=True, **how)["image_intermediates"]
    else:
        grids = trunk.forward_intermediates(x, norm=True, **how)
    out: Tensor = grids[0]
    return out


def _trunk(tower: nn.Module) -> Any:
    """The network that has the blocks: open_clip has towers of its own, and wraps some of timm's."""
    backbone = getattr(tower, "backbone", None)
    return getattr(backbone, "trunk", backbone)


def _towers(module: nn.Module) -> list[nn.Module]:
    """The networks with their normalisation; a head is left out, since it reads no patches."""
    if isinstance(module, Headed):
        return _towers(module.inner)
    if isinstance(module, Levels):
        return _towers(module.module)
    if isinstance(module, Ensemble):
        return [tower for branch in module.branches for tower in _towers(branch)]
    inner = getattr(module, "features", module)  # of a readout
    return [inner] if isinstance(inner, Normalized) else [nn.Module()] if not hasattr(inner, "backbone") else [inner]


def read_part(folder: Path, task: Task) -> Part:
    """Images of a folder with their masks or depths.

    Raises:
        ValueError: an image without its mask or depth, or one that is none (named).
    """
    images, truth = read_folder(folder / "images"), []
    suffix = ".png" if task == "segmentation" else ".npy"
    for name in images.names:
        file = (folder / TRUTH[task] / name).with_suffix(suffix)
        if not file.is_file():
            raise ValueError(f"{folder}: {name} has no {TRUTH[task]}/{Path(name).with_suffix(suffix)}.")
        if task == "segmentation":
            array = np.asarray(Image.open(file)).astype(np.int64)
        else:
            array = np.load(file, allow_pickle=False).astype(np.float32)
        if array.ndim != 2 or (task == "depth" and not (np.isfinite(array).all() and (array > 0).all())):
            expected = "class numbers [height, width]" if task == "segmentation" else "[height, width] above 0"
            raise ValueError(f"{file} is {array.dtype} {array.shape}; expected {expected}.")
        truth.append(torch.from_numpy(array))
    return Part(images, truth)


def patch_tokens(encoder: Encoder, images: Images) -> Tensor:
    """[n, d, rows, columns] patch tokens after the final norm, branches side by side.

    Raises:
        ValueError: branches of different grids.
    """
    parts = []
    for start in range(0, len(images), CHUNK):
        rows = range(start, min(start + CHUNK, len(images)))
        pixels = torch.from_numpy(np.stack([load_image(images, row, encoder.pixels) for row in rows]))
        with torch.inference_mode():
            grids = [patch_grid(tower, pixels) for tower in _towers(encoder.module)]
        if len({grid.shape[-2:] for grid in grids}) > 1:
            raise ValueError(f"branches have grids of {[tuple(g.shape[-2:]) for g in grids]}; expected the same.")
        parts.append(torch.cat(grids, 1).float())
    return torch.cat(parts).clone()


def fit_head(tokens: Tensor, truth: list[Tensor], task: Task, seed: int) -> Head:
    """A linear head learned on tokens [n, d, rows, columns], standardised as the module docstring says.

    Returns:
        What maps tokens [1, d, rows, columns] and a mask or depth [height, width] to scores [1, classes, height, width]
        or depths [1, height, width].
    """
    torch.manual_seed(seed)
    if task == "segmentation":
        classes = int(max(int(t[t != IGNORED].max()) for t in truth if (t != IGNORED).any())) + 1
        width, far = classes, 0.0
    else:
        width, far = BINS, float(max(float(t.max()) for t in truth))
    mean, std = tokens.mean((0, 2, 3), keepdim=True), tokens.std() + 1e-6
    linear = nn.Conv2d(tokens.shape[1], width, 1)
    bins = torch.linspace(far / BINS, far, BINS)[None, :, None, None] if task == "depth" else None

    def predict(x: Tensor, like: Tensor) -> Tensor:
        out = nn.functional.interpolate(
            linear((x - mean) / std), size=like.shape[-2:], mode="bilinear", align_corners=False
        )
        return out if bins is None else (out.softmax(1) * bins).sum(1)

    optimiser = torch.optim.Adam(linear.parameters(), lr=RATE)
    for epoch in range(EPOCHS):
        order = np.random.default_rng([seed, epoch]).permutation(len(truth))
        for start in range(0, len(order), BATCH[task]):
            chosen = order[start : start + BATCH[task]].tolist()
            losses = [_loss(task, predict(tokens[i : i + 1], truth[i])[0], truth[i]) for i in chosen]
            optimiser.zero_grad()
            torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    linear.requires_grad_(False)
    return predict


def _loss(task: Task, predicted: Tensor, truth: Tensor) -> Tensor:
    if task == "depth":
        g = torch.log(predicted + 1e-3) - torch.log(truth + 1e-3)
        gradients = g.diff(dim=0).abs().mean() + g.diff(dim=1).abs().mean()
        return (g**2).mean() + 0.15 * g.sum() ** 2 / g.numel() ** 2 + gradients
    judged = truth != IGNORED
    p = predicted.softmax(0)[:, judged]
    wanted = nn.functional.one_hot(truth[judged], predicted.shape[0]).T.float()
    both, either = (p * wanted).sum(1), (p + wanted - p * wanted).sum(1)
    there = wanted.sum(1) > 0
    return (1 - both / (either + 1e-6))[there].mean() if there.any() else predicted.sum() * 0


def jaccard(predicted: Tensor, truth: Tensor) -> float:
    """Mean over the classes that are in an image or its prediction, [classes, height, width] and [height, width]."""
    judged = truth != IGNORED
    mine, theirs = predicted.argmax(0)[judged], truth[judged]
    found = torch.unique(torch.cat([mine, theirs])).tolist()
    shares = [((mine == c) & (theirs == c)).sum().item() / ((mine == c) | (theirs == c)).sum().item() for c in found]
    return float(np.mean(shares)) if shares else 1.0


def depth_error(predicted: Tensor, truth: Tensor) -> float:
    """Root mean squared error of [height, width]."""
    return float(((predicted - truth) ** 2).mean().sqrt())
