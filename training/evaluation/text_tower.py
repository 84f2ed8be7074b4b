"""The text tower of an open_clip model: sentences to vectors beside the image encoder's, and its logits' scale."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluation.subjects import Subject, Vectors
from training.images import optional

BATCH = 64


def text_vectors(subject: Subject, sentences: Sequence[str]) -> Vectors:
    """Embeddings [n, d] of sentences, as the model gives them, not normalised.

    Raises:
        ValueError: the checkpoint has no text tower, or does not fit.
    """
    import torch

    model = _model(subject.language, subject.weights)
    tokenizer = optional("open_clip").get_tokenizer(_arch(subject.language))
    with torch.inference_mode():
        parts = [model.encode_text(tokenizer(list(sentences[i : i + BATCH]))) for i in range(0, len(sentences), BATCH)]
    return np.asarray(torch.cat(parts).float().numpy(), np.float32)


def logit_scale(subject: Subject) -> float:
    """What the model multiplies cosines by before the softmax, 100 for CLIP."""
    return float(_model(subject.language, subject.weights).logit_scale.detach().exp())


def _arch(name: str) -> str:
    return name if name.startswith("hf-hub:") else name.partition("/")[0]


@cache
def _model(name: str, weights: Path | None) -> Any:
    open_clip = optional("open_clip")
    tag = "" if name.startswith("hf-hub:") else name.partition("/")[2]
    if weights is None:
        return open_clip.create_model(_arch(name), pretrained=tag or None).eval()
    model = open_clip.create_model(_arch(name), load_weights=False, pretrained=None)
    try:
        found = open_clip.load_checkpoint(model, str(weights), strict=False)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{weights} does not fit {name}: {str(error)[:300]}") from error
    absent = [key for key in found.missing_keys if not key.startswith("visual.")]
    if absent:
        raise ValueError(f"{weights} has no text tower: {len(absent)} weights of it are missing, as {absent[0]}.")
    return model.eval()
