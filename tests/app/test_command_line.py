"""`python -m app`: what it prints, what it exits with, how it stops."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from PIL import Image

from app.__main__ import _serve
from app.service import VERSION, Service
from app.settings import Settings
from tests.toy import encoded, photo

ROOT = Path(__file__).parents[2]
QUICK = ("--drain-delay", "0")
Start = Callable[..., "subprocess.Popen[str]"]


def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=60)


@pytest.fixture
def start(toy_bundle: Path) -> Iterator[Start]:
    """`start(*arguments)`: a process that serves the toy, killed at the end if it still runs."""
    running: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-u", "-m", "app", "--bundle", str(toy_bundle), "--port", "0", *QUICK, *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        running.append(subprocess.Popen(command, cwd=ROOT, **pipes))
        return running[-1]

    yield start_one
    for process in running:
        process.kill()
        process.communicate()


def address(process: "subprocess.Popen[str]") -> str:
    """The address that a starting process prints once it is ready."""
    alarm = threading.Timer(60, process.kill)
    alarm.start()
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"is ready at (http://\S+:\d+)", line):
            alarm.cancel()
            return found[1]
    raise AssertionError("it ended before it was ready")


def asked(url: str, image: bytes) -> int:
    request = urllib.request.Request(url + "/embed", data=image, headers={"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return int(reply.status)


@pytest.mark.parametrize("command", [[], ["bulk"], ["judgments"]])
def test_version_is_the_packages(command: list[str]) -> None:
    done = run(*command, "--version")
    assert (done.returncode, done.stdout) == (0, f"alignet-serve {VERSION}\n")


def test_help_names_the_other_commands_and_the_version() -> None:
    told = run("--help").stdout
    for command in ("alignet-serve bulk ", "alignet-serve judgments ", "--version"):
        assert command in told


def test_help_names_every_setting() -> None:
    done = run("--help", COLUMNS="300")
    assert done.returncode == 0
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in done.stdout
        assert (field.description or "?") in done.stdout


@pytest.mark.parametrize("arguments", [["--max-images", "0"], ["--max-images", "many"], ["--no-such-setting", "1"]])
def test_a_wrong_setting_exits_2_and_says_which(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert re.search(arguments[0].strip("-").replace("-", "[-_]"), done.stderr)
    assert "Traceback" not in done.stderr


def test_a_wrong_variable_exits_2_without_showing_its_value() -> None:
    done = run(ALIGNET_MAX_BATCH="k-3f81c2a9")
    assert done.returncode == 2
    assert "max_batch" in done.stderr
    assert "k-3f81c2a9" not in done.stderr + done.stdout


def test_help_does_not_show_the_keys_of_the_environment() -> None:
    done = run("--help", ALIGNET_API_KEYS="k-3f81c2a9")
    assert "k-3f81c2a9" not in done.stdout + done.stderr


def test_a_bundle_that_cannot_be_served_exits_1_and_says_why(tmp_path: Path) -> None:
    done = run("--bundle", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert f"NotABundle: {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "is ready at" not in done.stdout


def test_sigterm_while_idle_exits_0(start: Start) -> None:
    process = start()
    url = address(process)
    assert asked(url, encoded(photo(0))) == 200
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output
    assert process.returncode == 0


def test_ctrl_c_ends_without_a_traceback(start: Start) -> None:
    process = start()
    address(process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output
    assert process.returncode in (0, 130)


def test_at_the_debug_level_nothing_inside_a_photo_reaches_the_log(start: Start) -> None:
    described = io.BytesIO()
    photo(0).save(described, "TIFF", description="taken at 52.5200 N 13.4050 E")
    assert Image.open(described).tag_v2[270]
    process = start("--log-level", "debug")
    assert asked(address(process), described.getvalue()) == 200
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert "52.5200" not in output


def test_the_ready_line_names_the_port_however_soon_the_bundle_is_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def load(self: Service) -> Any:
        return SimpleNamespace(name="toy")

    async def a_moment(self: uvicorn.Server) -> None:
        await asyncio.sleep(0.2)

    monkeypatch.setattr(Service, "load", load)
    monkeypatch.setattr(uvicorn.Server, "main_loop", a_moment)
    assert _serve(Settings(port=0)) == 0
    port = re.search(r"is ready at http://localhost:(\d+)", capsys.readouterr().out)
    assert port is not None
    assert int(port[1]) > 0


def test_a_decoder_that_hangs_does_not_keep_the_process(toy_bundle: Path) -> None:
    program = """
import os, signal, threading, time, urllib.request
from pathlib import Path
from app import __main__ as command, decoding
from app.settings import Settings
decoding.CLOSE_SECONDS = 0.05
def hang(*_):
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()
decoding.load_sized = hang
def ask(model):
    def post():
        for _ in range(300):
            try:
                urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:%d/embed" % port(), b"x", headers))
            except Exception:
                time.sleep(0.01)
    threading.Thread(target=post, daemon=True).start()
headers = {"Content-Type": "image/png"}
real = command.create_app
command.create_app = lambda settings, on_ready, on_failure: real(settings, on_ready=ask, on_failure=on_failure)
servers = []
def port():
    return servers[0].servers[0].sockets[0].getsockname()[1]
class Kept(command.Server):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        servers.append(self)
command.Server = Kept
code = command._serve(Settings(bundle=Path(os.environ["TOY"]), port=0, drain_seconds=0))
raise SystemExit(code + 7)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"TOY": str(toy_bundle)}, timeout=60, check=False
    )
    assert done.returncode == 1
