"""Tip-Adapter: what a few labelled photos add to a model of images and text (Zhang et al. 2022).

A cache holds the L2-normalised features F of the shots and their classes, one-hot L. For a photo f, with the
normalised embeddings W of the classes' sentences and the model's own logit scale s (100 for CLIP),

    logits = s f W' + alpha exp(-beta (1 - f F')) L          alpha 1, beta 5.5

Training-free takes the cache as it is. Tip-Adapter-F learns F as the weights of a linear layer that starts there:
AdamW, rate 1e-3, eps 1e-4, cosine to zero, 20 epochs, batches of 256, cross-entropy; L and W stay. Two things differ
from the original: the shots' features are those of the photos as they are, without random crops, since features are
computed once; and alpha and beta are not searched on a validation set, which one shot does not have (gLocal's code
keeps the same two numbers).

Sentences are "a photo of a CLASS.", or the lines of DATA/classification/NAME/templates.txt, each with one {}; the
normalised embeddings of several are averaged and normalised again, as CLIP's authors do. Models without a text tower
take no part.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.evaluation.image_sets import ImageSet, image_sets
from training.evaluation.maps import unit
from training.evaluation.result import NotHere, Plot, Result, Setting
from training.evaluation.subjects import Vectors
from training.evaluation.text_tower import logit_scale, text_vectors
from training.evaluation.transfer import DRAWS, SHOTS, Hits, hit_rows, shot_rows

ALPHA, BETA = 1.0, 5.5
RATE, EPS, EPOCHS, BATCH = 1e-3, 1e-4, 20, 256
TEMPLATES = ("a photo of a {}.",)

Logits = NDArray[np.float32]


def tip_adapter(setting: Setting) -> Result:
    """Zero-shot, training-free and fine-tuned accuracy on every labelled set, mean over draws of the shots."""
    able = tuple(subject for subject in setting.subjects if subject.language)
    if not able:
        raise NotHere("no model has a text tower (open_clip:ARCH/PRETRAINED)")
    sets = image_sets(setting.data, setting.constants.seed)
    if not sets:
        raise NotHere(f"{setting.data} has no images.csv with classes and no classification/")
    names = {subject.name for subject in able}
    pairs = tuple(pair for pair in setting.pairs if set(pair) <= names)
    own, out = replace(setting, subjects=able, differences=pairs), Result()
    if len(able) < len(setting.subjects):
        out.notes.append("models without a text tower are left out.")
    for one in sets:
        scores = {}
        for subject in tqdm(able, desc=f"Tip-Adapter on {one.name}", unit="model"):
            classes = sorted(set(one.label.tolist()))
            texts = class_vectors(partial(text_vectors, subject), classes, templates(setting, one))
            x = unit(own.features.of(subject, one.images)[one.rows])
            scores[subject.name] = _scored(x, one, classes, texts, logit_scale(subject), own.constants.seed)
        out.rows += hit_rows(scores, own, "accuracy with text", one.name)
    settings = dict.fromkeys(row.setting for row in out.rows)
    out.plots += [
        Plot("bars", f"With text: {how}", {"figure": "accuracy with text", "setting": how}) for how in settings
    ]
    return out


def templates(setting: Setting, one: ImageSet) -> tuple[str, ...]:
    """Sentences of a set. Raises ValueError naming a line without its {}."""
    file = setting.data / "classification" / one.name / "templates.txt"
    if not file.is_file():
        return TEMPLATES
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.count("{}") != 1:
            raise ValueError(f"{file}, line {number + 1}: {line!r}; expected one {{}} for the name of the class.")
    return tuple(lines) or TEMPLATES


def class_vectors(embed: Callable[[list[str]], Vectors], classes: list[str], sentences: tuple[str, ...]) -> Vectors:
    """Embeddings [classes, d] of length 1: of each class the mean over sentences, `_` in names read as a blank."""
    lines = [line.format(name.replace("_", " ")) for name in classes for line in sentences]
    each = unit(embed(lines)).reshape(len(classes), len(sentences), -1)
    return unit(each.mean(1))


def _scored(x: Vectors, one: ImageSet, classes: list[str], texts: Vectors, scale: float, seed: int) -> dict[str, Hits]:
    number = {name: i for i, name in enumerate(classes)}
    truth = np.array([number[name] for name in one.label.tolist()])
    learn, test, given, right = x[~one.test], x[one.test], truth[~one.test], truth[one.test]
    text_logits, own_logits = (np.asarray(scale * part @ texts.T, np.float32) for part in (test, learn))
    scores = {"zero-shot": (text_logits.argmax(1) == right).astype(np.float64)}
    for shots in SHOTS:
        free, tuned = [], []
        for draw in range(DRAWS):
            rows = shot_rows(one.label[~one.test], shots, seed + draw)
            onehot = np.eye(len(classes), dtype=np.float32)[given[rows]]
            free.append((text_logits + cache_logits(test, learn[rows], onehot)).argmax(1) == right)
            keys = fine_tuned(learn[rows], given[rows], onehot, own_logits[rows], seed + draw)
            tuned.append((text_logits + cache_logits(test, keys, onehot)).argmax(1) == right)
        name = f"{shots} shot{'s' * (shots > 1)}"
        scores |= {f"{name}, training-free": np.mean(free, axis=0), f"{name}, fine-tuned": np.mean(tuned, axis=0)}
    return scores


def cache_logits(x: Vectors, keys: Vectors, onehot: Logits, alpha: float = ALPHA, beta: float = BETA) -> Logits:
    """Votes of the cache: alpha exp(-beta (1 - x keys')) onehot, [n, classes], of unit vectors x [n, d]."""
    return np.asarray(alpha * np.exp(-beta * (1 - x @ keys.T)) @ onehot, np.float32)


def fine_tuned(x: Vectors, label: NDArray[np.int64], onehot: Logits, text_logits: Logits, seed: int) -> Vectors:
    """The cache's keys [n, d] after training on its own photos, see the module docstring.

    Args:
        x: [n, d] unit features of the shots, where the keys start.
        label: [n] their classes.
        onehot: [n, classes] of the same.
        text_logits: [n, classes] of the shots by their sentences, which stay.
        seed: of the batches.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    features, targets = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(label)
    values, fixed = torch.from_numpy(onehot), torch.from_numpy(np.ascontiguousarray(text_logits, np.float32))
    keys = torch.nn.Parameter(features.clone())
    optimizer = torch.optim.AdamW([keys], lr=RATE, eps=EPS)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x), generator=generator), BATCH):
            affinity = torch.exp(-BETA * (1 - features[rows] @ keys.T))
            loss = torch.nn.functional.cross_entropy(fixed[rows] + ALPHA * affinity @ values, targets[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return np.asarray(keys.detach().numpy(), np.float32)
