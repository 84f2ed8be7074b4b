"""The real Triton server, from the wheel nvidia-pytriton in an environment of its own (tests/triton-server.txt)."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

VENV = Path(os.environ.get("ALIGNET_TRITON_VENV", Path(__file__).parents[1] / ".venv-triton"))
PYTHON = VENV / "bin" / "python"
START_SECONDS = 60


def missing() -> str:
    """Why the server cannot be started here; empty if it can."""
    if not PYTHON.exists():
        return f"no Triton server in {VENV.name}; run `make .venv-triton/.server`"
    found = site_packages() / "pytriton/tritonserver/bin/tritonserver"
    return "" if found.exists() else f"{VENV.name} lacks nvidia-pytriton"


def site_packages() -> Path:
    """The folder that pip installed into."""
    return next((VENV / "lib").glob("python3.*")) / "site-packages"


class RealTriton:
    """One server process over a repository; `grpc` and `http` are its ports."""

    def __init__(self, repository: Path, scratch: Path, python: Path = PYTHON, **options: str) -> None:
        self.repository, self.python, self.log = repository, python, scratch / "triton.log"
        self.options = options
        self.grpc, self.http = free_port(), free_port()
        self.backends = copy_backends(scratch)

    def start(self, *, wait: bool = True) -> "RealTriton":
        """Start it, and wait until it is ready or has ended."""
        where = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
        library = subprocess.run([self.python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
        libraries = f"{site_packages() / 'nvidia_pytriton.libs'}:{library}"
        path = f"{self.python.parent}:{os.environ['PATH']}"  # the stub finds its packages by the first python3
        arguments = {
            "model-repository": self.repository,
            "backend-directory": self.backends,
            "http-address": "127.0.0.1",
            "grpc-address": "127.0.0.1",
            "http-port": self.http,
            "grpc-port": self.grpc,
            "allow-metrics": "false",
            "exit-timeout-secs": 2,
            **{name.replace("_", "-"): value for name, value in self.options.items()},
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [site_packages() / "pytriton/tritonserver/bin/tritonserver"]
                + [f"--{name}={value}" for name, value in arguments.items()],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"LD_LIBRARY_PATH": libraries, "PATH": path},
            )
        until = time.monotonic() + START_SECONDS
        while wait and self.process.poll() is None and not self.ready():
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)
        return self

    def ready(self) -> bool:
        """Whether the server says so over HTTP."""
        with contextlib.suppress(OSError):
            return bool(
                urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=2).status == 200
            )
        return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(30)


def copy_backends(scratch: Path) -> Path:
    """`backends` in `scratch`: the python backend with the stub of the interpreter's release, copied once."""
    backends, server = scratch / "backends", site_packages() / "pytriton/tritonserver"
    if not backends.exists():
        shutil.copytree(server / "backends", backends)
        release = site_packages().parent.name.removeprefix("python")
        shutil.copy(server / "python_backend_stubs" / release / "triton_python_backend_stub", backends / "python")
    return backends


@contextlib.contextmanager
def running(repository: Path, scratch: Path, python: Path = PYTHON, **options: str) -> Iterator[RealTriton]:
    """A started server, which is ready unless it refused its model; killed in the end.

    Args:
        options: of tritonserver, with underscores for hyphens.
    """
    server = RealTriton(repository, scratch, python, **options).start()
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


def free_port() -> int:
    """A TCP port that nobody has now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def this_python() -> Path:
    """The interpreter that runs the tests."""
    return Path(sys.executable)
