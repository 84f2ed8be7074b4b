"""Files and folders that appear whole or not at all."""

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def sha256_of(file: Path) -> str:
    """Lowercase hex sha256 of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def whole(file: Path) -> Iterator[BinaryIO]:
    """A stream to write `file` with; the file is either as it was before or whole, whatever kills the process."""
    # By chance, not by process: in containers that share a folder every process may be number 1. And not by `tempfile`,
    # whose files nobody else may read.
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    stream = temporary.open("xb")
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target` that becomes it, whole, when the block ends without an error.

    Raises:
        FileExistsError: `target` is there already; nothing is overwritten.
    """
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists; remove it or choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging
        for file in filter(Path.is_file, staging.rglob("*")):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        staging.chmod(0o755)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
