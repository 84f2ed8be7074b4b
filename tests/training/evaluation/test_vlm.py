"""A vision-language model behind a local stub: what is sent, what is understood, and going on after a failure."""

import base64
import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from tests.training.tiny import write_tiny_data
from training.__main__ import main
from training.evaluation.vlm import PROMPT, parse_answer


class Stub(ThreadingHTTPServer):
    """Answers by colour: the image whose red and blue differ most in sign from the others is the odd one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.statuses: list[int] = []  # of the next replies; 200 when it is empty
        self.answer = ""


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == 200:
            self.server.asked.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
        message = {"content": self.server.answer or by_colour(body)}
        reply = json.dumps({"choices": [{"message": message}]} if status == 200 else {"error": "busy"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


def by_colour(body: dict[str, Any]) -> str:
    red = []
    for part in body["messages"][0]["content"][1:]:
        data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        r, _, b = Image.open(io.BytesIO(data)).convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
        red.append(r > b)
    odd = next((k for k in range(3) if red.count(red[k]) == 1), 0)
    return f"**{('First', 'Second', 'Third')[odd]}**. The first and the second image..."


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(tmp_path: Path, stub: Stub, triplets: int = 40, *more: str) -> dict[str, Any]:
    if not (tmp_path / "data").exists():
        write_tiny_data(tmp_path / "data")
    where = [
        "--endpoint",
        f"http://127.0.0.1:{stub.server_port}/v1/",
        "--model",
        "stub",
        "--out",
        str(tmp_path / "out"),
    ]
    counts = ["--triplets", str(triplets), "--repetitions", "5"]
    main(["ask-vlm", *where, "--data", str(tmp_path / "data"), *counts, *more])
    found: dict[str, Any] = json.loads((tmp_path / "out/summary.json").read_text())
    return found


@pytest.mark.parametrize(
    ("answer", "choice"),
    [("Second.", 1), ("**third** image, because the first...", 2), ("FIRST", 0), ("thirdly", -1), ("", -1)],
)
def test_the_first_word_that_names_an_image_counts(answer: str, choice: int) -> None:
    assert parse_answer(answer) == choice


def test_the_paper_prompt_and_three_images_are_sent_and_judged(
    tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_API_KEY", "secret")
    summary = ask(tmp_path, stub)
    content = stub.asked[0]["messages"][0]["content"]
    assert content[0] == {"type": "text", "text": PROMPT} and len(content) == 4
    assert set(stub.keys) == {"Bearer secret"}
    assert (summary["triplets"], summary["unclear"], sum(summary["positions"])) == (40, 0, 40)
    assert summary["agreement with VICE"]["value"] > 0.5  # colour is what people see here
    assert "secret" not in (tmp_path / "out/identity.json").read_text()


def test_only_what_has_no_answer_is_asked_again(tmp_path: Path, stub: Stub) -> None:
    first = ask(tmp_path, stub, 10)
    file = tmp_path / "out/answers.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:6]) + lines[6][:20])  # killed while it wrote the seventh
    stub.asked.clear()
    assert ask(tmp_path, stub, 10) == first
    assert len(stub.asked) == 4


def test_a_busy_endpoint_is_asked_again_and_one_that_refuses_is_not(tmp_path: Path, stub: Stub) -> None:
    stub.statuses = [429, 503]
    assert ask(tmp_path, stub, 2)["triplets"] == 2
    (tmp_path / "out/answers.jsonl").unlink()
    stub.statuses = [401]
    with pytest.raises(SystemExit, match="refuses with status 401"):
        ask(tmp_path, stub, 2)
    stub.statuses = [500] * 9
    with pytest.raises(SystemExit, match=r"no answer in 1 attempts; the last: status 500"):
        ask(tmp_path, stub, 2, "--attempts", "1")


def test_answers_that_name_no_image_are_counted_and_wrong(tmp_path: Path, stub: Stub) -> None:
    stub.answer = "I cannot tell."
    summary = ask(tmp_path, stub, 5)
    assert (summary["unclear"], summary["agreement with VICE"]["value"]) == (5, 0)


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    argv = ["ask-vlm", "--endpoint", "file:///x", "--model", "m", "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    with pytest.raises(SystemExit, match="expected an address"):
        main(argv)
