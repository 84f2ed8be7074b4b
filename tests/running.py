"""Real processes on loopback for the tests: replicas of the service, and the servers around them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def need(program: str) -> str:
    """The path of a program of the system; without it the test is skipped, and says so."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed; Debian has it")
    return found


def get(url: str) -> tuple[int, str]:
    """(status, body) of a GET; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return int(reply.status), reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def until(url: str, status: int = 200, seconds: float = 60) -> str:
    """The body of `url` once it answers with `status`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, body = get(url)
        if found == status:
            return body
        time.sleep(0.05)
    raise AssertionError(f"{url} did not answer {status} within {seconds:g} s; it said {found} {body[:200]}")


class Running:
    """A process with its output in a file, killed when the block ends if it still runs."""

    def __init__(self, command: list[str], log: Path, **variables: str) -> None:
        self.log = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | variables, stdout=stream, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(30)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(by)
        return self.process.wait(60)


def replica(port: int, log: Path, *arguments: str) -> Running:
    """`python -m app` on this port; wait for its /health/ready before use."""
    return Running([sys.executable, "-m", "app", "--port", str(port), *arguments], log)
