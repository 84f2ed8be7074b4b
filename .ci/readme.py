"""Do what the README says, as a newcomer would: `make serve`, wait until it is ready, run the examples.

Reads the ```sh blocks and the ```json block after each; a command's answer must have the shape of the
printed one, the same choices, and numbers within 2 %. The curl commands of docs/api.md must succeed.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

READY_SECONDS = 300  # installing included; a fresh machine takes about a minute


def examples(readme: str) -> list[tuple[str, Any]]:
    """(command, printed answer) of every sh block that a json block follows."""
    block = r"((?:(?!```).)*)```"
    blocks = re.findall(rf"```sh\n{block}\s*```json\n{block}", readme, re.DOTALL)
    return [(command.strip(), json.loads(answer)) for command, answer in blocks]


def commands(page: str) -> list[str]:
    """The curl commands of a page's sh blocks, without comments."""
    blocks = re.findall(r"```sh\n((?:(?!```).)*)```", page, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("curl ")]


def same(given: Any, printed: Any, where: str = "answer") -> None:
    """Exit with a message where `given` is not what the README prints."""
    if isinstance(printed, dict) and isinstance(given, dict) and set(printed) == set(given):
        for key in printed:
            same(given[key], printed[key], f"{where}.{key}")
    elif isinstance(printed, list) and isinstance(given, list) and len(printed) == len(given):
        for i, pair in enumerate(zip(given, printed, strict=True)):
            same(*pair, f"{where}[{i}]")
    elif isinstance(printed, float) and isinstance(given, float):
        if not math.isclose(given, printed, rel_tol=0.02, abs_tol=0.002):
            sys.exit(f"README prints {where} = {printed}, the service answers {given}")
    elif given != printed:
        sys.exit(f"README prints {where} = {printed!r}, the service answers {given!r}")


def main() -> None:
    """Run it all; exit 1 where the README does not tell the truth."""
    readme = Path("README.md").read_text()
    if len(readme.splitlines()) > 150:
        sys.exit("README.md has more than 150 lines")
    found = examples(readme)
    if not found or "make serve" not in readme or "make test" not in readme:
        sys.exit("README.md lacks its two commands or an example with its answer")
    start = time.monotonic()
    server = subprocess.Popen(["make", "serve"], start_new_session=True)
    try:
        while not ready():
            if server.poll() is not None or time.monotonic() - start > READY_SECONDS:
                sys.exit("`make serve` did not become ready")
            time.sleep(0.2)
        print(f"README: `make serve` was ready {time.monotonic() - start:.0f} s after it was typed", flush=True)
        for command, printed in found:
            answer = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout
            same(json.loads(answer), printed)
        print(f"README: {len(found)} examples give the printed answers", flush=True)
        asked = commands(Path("docs/api.md").read_text())
        for command in asked:
            subprocess.run(
                command.replace("curl ", "curl --fail ", 1), shell=True, check=True, stdout=subprocess.DEVNULL
            )
        print(f"docs/api.md: {len(asked)} commands succeed", flush=True)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def ready() -> bool:
    """Whether /health/ready answers 200."""
    try:
        with urllib.request.urlopen("http://localhost:8000/health/ready", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    main()
