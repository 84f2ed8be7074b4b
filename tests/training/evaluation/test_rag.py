"""Retrieval-augmented answers behind a local stub: what is shown, what is understood, and going on after a failure."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.evaluation.image_sets import image_sets
from training.evaluation.rag import ask_nearest
from training.evaluation.subjects import Subject
from training.evaluation.vlm import VlmConfig

CLASSES = ("red", "green", "blue")


class Stub(ThreadingHTTPServer):
    """Says what the first example is said to show: a classifier of the nearest labelled photo."""

    daemon_threads = True
    asked: list[list[dict[str, Any]]]
    fails_after: int


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        self.server.asked.append(content)
        down = len(self.server.asked) > self.server.fails_after
        message = {"content": content[0]["text"].removeprefix("This photo shows: ").upper()}
        reply = json.dumps({"choices": [{"message": message}]}).encode()
        self.send_response(400 if down else 200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub(("127.0.0.1", 0), Handler) as server:
        server.asked, server.fails_after = [], 10**6
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten photos of each of three colours."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(CLASSES):
        for i in range(10):
            pixels = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            file = tmp_path / f"data/classification/colours/{name}/{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return tmp_path / "data"


def subjects(data: Path, folder: Path) -> list[Subject]:
    """One that knows the classes, and one that knows nothing."""
    (one,) = image_sets(data, 0)
    number = np.unique(one.label, return_inverse=True)[1]
    knows, blind = np.zeros((len(one.images), 3), np.float32), np.random.default_rng(1).random((len(one.images), 3))
    knows[one.rows, number] = 1
    out = []
    for name, x in (("blind", blind), ("knows", knows)):
        np.save(folder / f"{name}.npy", x.astype(np.float32))
        out.append(Subject(name, {"name": name}, stored=(folder / f"{name}.npy", None)))
    return out


def config(stub: Stub, **more: Any) -> VlmConfig:
    return VlmConfig(endpoint=f"http://127.0.0.1:{stub.server_port}/v1", model="stub", attempts=1, **more)


def test_examples_come_nearest_first_with_their_names_and_the_photo_last(
    data: Path, tmp_path: Path, stub: Stub
) -> None:
    figures = ask_nearest(subjects(data, tmp_path), data, tmp_path / "out", config(stub))
    assert figures["colours"]["knows"]["value"] == 1.0 and figures["colours"]["blind"]["value"] < 0.8
    difference = figures["colours"]["knows - blind"]["value"]
    assert difference == pytest.approx(1 - figures["colours"]["blind"]["value"])
    assert figures["colours"]["unclear"] == {"blind": 0, "knows": 0}
    kinds = [part["type"] for part in stub.asked[0]]
    assert kinds == ["text", "image_url"] * 3 + ["text", "image_url"]
    assert all(name in stub.asked[0][-2]["text"] for name in CLASSES)
    assert figures == json.loads((tmp_path / "out/nearest.json").read_text())


def test_an_interrupted_asking_asks_only_for_what_has_no_answer(data: Path, tmp_path: Path, stub: Stub) -> None:
    stub.fails_after = 9
    with pytest.raises(ValueError, match="refuses with status 400"):
        ask_nearest(subjects(data, tmp_path), data, tmp_path / "out", config(stub))
    with (tmp_path / "out/colours.jsonl").open("a") as stream:
        stream.write('{"model": "kn')  # a kill in the middle of a line
    stub.asked.clear()
    stub.fails_after = 10**6
    ask_nearest(subjects(data, tmp_path), data, tmp_path / "out", config(stub))
    assert len(stub.asked) == 2 * 15 - 9
    with pytest.raises(ValueError, match="identity"):
        ask_nearest(subjects(data, tmp_path), data, tmp_path / "out", config(stub, seed=1))
