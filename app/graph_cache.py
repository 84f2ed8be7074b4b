"""Graphs that ONNX Runtime has optimised before, in a folder, so that a process starts without doing it again.

An optimised graph belongs to one file, one release of ONNX Runtime, one provider and, as its layouts follow the
instructions that the processor has, one kind of processor; the key is a hash of all four. Its own sha256 stands in
its name: a file that was cut short or changed is not opened. It is a copy: whoever may write to the folder could as
well have written the bundle, and the golden vectors are checked after it as after the bundle's own graph.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from contract.files import sha256_of

log = logging.getLogger("alignet")

SUFFIX = ".onnx"


class GraphCache:
    """The optimised graph of one bundle for one session.

    Args:
        folder: made if it is missing; one that cannot be written to only means no cache.
        model_sha256: of the bundle's graph.
        runtime: release of ONNX Runtime.
        provider: that runs it.
    """

    def __init__(self, folder: Path, *, model_sha256: str, runtime: str, provider: str) -> None:
        made_of = json.dumps([model_sha256, runtime, provider, processor()])
        self._folder = folder
        self._key = hashlib.sha256(made_of.encode()).hexdigest()[:32]

    def find(self) -> Path | None:
        """The graph, whole; None if there is none. One that is not whole is removed."""
        for file in sorted(self._folder.glob(f"{self._key}-*{SUFFIX}")):
            with contextlib.suppress(OSError):
                if file.stem.removeprefix(f"{self._key}-") == sha256_of(file)[:32]:
                    return file
                log.warning("%s is not what was written; it is removed and made again", file)
                file.unlink()
        return None

    @contextlib.contextmanager
    def filling(self) -> Iterator[Path | None]:
        """A path to write the graph to, kept whole after the block; None where the folder takes no files.

        What goes wrong with the cache is logged and no error: the session is there without it.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self._key}.", suffix=SUFFIX, dir=self._folder)
            os.close(handle)
        except OSError as error:
            log.warning("no optimised graph is kept in %s: %s", self._folder, error)
            yield None
            return
        file = Path(name)
        try:
            yield file
            self._keep(file)
        finally:
            file.unlink(missing_ok=True)

    def _keep(self, file: Path) -> None:
        try:
            if file.stat().st_size:  # a provider that compiles its graph writes none
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
                file.replace(self._folder / f"{self._key}-{sha256_of(file)[:32]}{SUFFIX}")
        except OSError as error:
            log.warning("no optimised graph is kept in %s: %s", self._folder, error)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The kind of processor and the instructions it has; processes with the same may share a graph."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.machine()} {features.partition(':')[2].strip()}"
