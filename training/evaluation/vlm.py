"""A vision-language model as a baseline: the same triplets, asked in words.

The prompt is that of the AligNet paper's supplement ("Evaluating vision-language models on Levels"): the text first,
then the three images; the answer's first "first", "second" or "third" counts. The paper does not say how images were
sent or at what temperature: here as JPEG data URIs in the order of the triplet, temperature 0. Any endpoint that
speaks OpenAI's chat completions will do; Gemini 2.5 Pro reached 61.3 / 61.3 / 89.9 % on Levels' coarse / fine /
boundary triplets in the paper.
"""

import base64
import io
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from contract import triplets
from training.evaluation import intervals
from training.evaluation.concepts import ConceptTriplets, concept_data, vice_triplets
from training.evaluation.result import Constants, Setting
from training.evaluation.subjects import Features, identity_hash
from training.images import Images
from training.stage import claim, write_json

PROMPT = (
    "I will show you three object images presented in sequence. These images show different things. Your task is "
    "to pick one image that is least similar to the other two. If you do not recognize what is shown to you in "
    "one of the images, simply base your judgement on your best guess at what the image might show. Which of "
    'these images is least similar to the others? Please give your answer ("first", "second", or "third") before '
    "explaining."
)
ANSWER = re.compile(r"\b(first|second|third)\b", re.IGNORECASE)
WORDS = ("first", "second", "third")
UNCLEAR = -1
"""Choice of an answer that names no image."""


@dataclass(frozen=True, kw_only=True)
class VlmConfig:
    """How an endpoint is asked.

    Attributes:
        endpoint: base address, to which /chat/completions is added.
        model: the endpoint's name of it.
        triplets: how many are asked.
        seed: of the triplets and photos.
        repetitions: bootstrap samples.
        side: longer side of the images sent, in pixels.
        tokens: of an answer, at most.
        timeout: seconds for one answer.
        attempts: at each triplet, with growing pauses, when the endpoint is busy or not reached.
    """

    endpoint: str
    model: str
    triplets: int = 200
    seed: int = 0
    repetitions: int = 200
    side: int = 384
    tokens: int = 200
    timeout: float = 120.0
    attempts: int = 5

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint is {self.endpoint!r}; expected an address with http:// or https://.")
        for name in ("triplets", "repetitions", "side", "tokens", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more.")


def parse_answer(text: str) -> int:
    """Position of the image that an answer names first, or `UNCLEAR`."""
    found = ANSWER.search(text)
    return UNCLEAR if found is None else WORDS.index(found[1].lower())


def ask_vlm(data: Path, out: Path, config: VlmConfig) -> dict[str, Any]:
    """Ask for every triplet that has no answer yet, and return the figures.

    answers.jsonl       a line a triplet: concepts, photos, answer, choice
    summary.json        agreement with VICE and expected human agreement, with intervals; unclear answers count as wrong

    Args:
        data: folder with concepts, see docs/evaluation.md.
        out: folder to make or to continue.
        config: how to ask.

    Raises:
        ValueError: the endpoint refuses, or `out` belongs to other triplets or another model.
    """
    constants = Constants(seed=config.seed, triplets=2 * config.triplets, repetitions=config.repetitions)
    drawn = vice_triplets(Setting(data, (), Features(out), constants))
    drawn = drawn.select(np.arange(len(drawn.concepts)) < config.triplets)
    images = concept_data(data).photos
    out.mkdir(parents=True, exist_ok=True)
    asked = {"model": config.model, "prompt": PROMPT, "side": config.side, "seed": config.seed}
    claim(out / "identity.json", asked | {"triplets": identity_hash(drawn.photos.tolist())}, ("numpy", "pillow"))
    choices = _ask_all(drawn, images, out / "answers.jsonl", config)
    summary = _summary(drawn, choices, config)
    write_json(out / "summary.json", summary)
    return summary


def _ask_all(drawn: ConceptTriplets, images: Images, file: Path, config: VlmConfig) -> list[int]:
    """Choices of all triplets, those that have none asked for; every answer is on disk before the next is asked."""
    done = list(_answers(file))
    with (
        file.open("a") as stream,
        tqdm(total=len(drawn.photos), initial=len(done), desc=f"ask {config.model}", unit="triplet") as bar,
    ):
        for k in range(len(done), len(drawn.photos)):
            rows = drawn.photos[k].tolist()
            answer = ask([PROMPT, *(picture(images, row, config.side) for row in rows)], config)
            choice = parse_answer(answer)
            photos = [images.names[row] for row in rows]
            line = {"concepts": drawn.concepts[k].tolist(), "photos": photos, "answer": answer, "choice": choice}
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            done.append(choice)
            bar.update()
    return done


def _answers(file: Path) -> Iterator[int]:
    """Choices on disk; a last line that a kill cut short is removed."""
    if not file.exists():
        return
    text = file.read_text()
    complete, _, rest = text.rpartition("\n")
    if rest:
        file.write_text(complete + "\n" * bool(complete))
    for line in complete.splitlines():
        yield int(json.loads(line)["choice"])


def picture(images: Images, row: int, side: int) -> str:
    """A row as a JPEG data URI, its longer side at most so many pixels."""
    with Image.open(io.BytesIO(images.read(row))) as opened:
        small = ImageOps.exif_transpose(opened).convert("RGB")
        small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def ask(parts: list[str], config: VlmConfig) -> str:
    """One answer to texts and pictures (data URIs), in their order.

    Raises:
        ValueError: with what the endpoint said when it refuses, or is not reached again and again.
    """
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith("data:")
        else {"type": "text", "text": part}
        for part in parts
    ]
    message = {"role": "user", "content": content}
    body = {"model": config.model, "messages": [message], "temperature": 0, "max_tokens": config.tokens}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("VLM_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    address = config.endpoint.rstrip("/") + "/chat/completions"
    request = Request(address, json.dumps(body).encode(), headers)  # noqa: S310 - VlmConfig takes http(s) only
    for attempt in range(config.attempts):
        try:
            with urlopen(request, timeout=config.timeout) as reply:  # noqa: S310
                return _text(json.load(reply), address)
        except HTTPError as error:
            said = error.read(500).decode(errors="replace")
            error.close()
            if error.code != 429 and error.code < 500:
                raise ValueError(f"{address} refuses with status {error.code}: {said}") from error
            trouble = f"status {error.code}: {said}"
        except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
            trouble = str(error)
        if attempt + 1 < config.attempts:
            time.sleep(min(60.0, 0.5 * 2**attempt))
    raise ValueError(f"{address} gave no answer in {config.attempts} attempts; the last: {trouble}")


def _text(reply: Any, address: str) -> str:
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{address} answers {json.dumps(reply)[:300]}; expected choices[0].message.content."
        ) from error
    return str(content or "")


def _summary(drawn: ConceptTriplets, choices: list[int], config: VlmConfig) -> dict[str, Any]:
    odd, p = np.array(choices), triplets.odd_probabilities(drawn.vice)
    named = odd != UNCLEAR
    expected = np.where(named, np.take_along_axis(p, np.maximum(odd, 0)[:, None], 1)[:, 0], 0.0)
    scores = {"agreement with VICE": (odd == p.argmax(1)).astype(np.float64), "expected human agreement": expected}
    estimates = intervals.over_concepts(
        drawn.concepts, [intervals.weighted_mean(s) for s in scores.values()], config.repetitions, config.seed
    )
    figures = {name: asdict(e) for name, e in zip(scores, estimates, strict=True)}
    positions = [int((odd == k).sum()) for k in range(3)]
    return {
        "model": config.model,
        "triplets": len(odd),
        "unclear": int((~named).sum()),
        "positions": positions,
    } | figures
