"""Files that appear whole: whoever else writes them, whatever ends the writer."""

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

import alignet_client.files
import contract.files

Whole = Callable[[Path], AbstractContextManager[BinaryIO]]
both = pytest.mark.parametrize("whole", [contract.files.whole, alignet_client.files.whole], ids=["contract", "client"])


@both
def test_two_writers_with_one_process_number_do_not_meet(whole: Whole, tmp_path: Path) -> None:
    # As in two containers that share a folder: each is process 1 of its own.
    file = tmp_path / "part.jsonl"
    with whole(file) as slow:
        slow.write(b"slow, ")
        with whole(file) as quick:
            quick.write(b"quick")
        assert file.read_bytes() == b"quick"
        slow.write(b"and whole")
        slow.flush()
        assert file.read_bytes() == b"quick"
    assert file.read_bytes() == b"slow, and whole"
    assert list(tmp_path.iterdir()) == [file]


@both
def test_a_writer_that_fails_leaves_what_was_there_and_nothing_else(whole: Whole, tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    file.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), whole(file) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


@both
def test_a_half_written_file_is_found_by_no_pattern_of_results(whole: Whole, tmp_path: Path) -> None:
    with whole(tmp_path / "part-000.jsonl") as stream:
        stream.write(b"half")
        (half,) = tmp_path.iterdir()  # what a killed process leaves
        assert half.name.startswith(".part-000.jsonl.")
        assert not list(tmp_path.glob("part-*")) and not list(tmp_path.rglob("*.jsonl"))


@both
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_others_may_read_what_the_umask_lets_them(whole: Whole, umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with whole(tmp_path / "file") as stream:
            stream.write(b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
