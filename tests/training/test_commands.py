"""The command line: every command explains itself, and the list of them is quick."""

import subprocess
import sys
from pkgutil import iter_modules

import pytest

from training import commands
from training.__main__ import main

NAMES = [found.name.replace("_", "-") for found in iter_modules(commands.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself_and_needs_its_inputs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, status in (([name, "--help"], 0), ([name], 2)):
        with pytest.raises(SystemExit) as left:
            main(argv)
        assert left.value.code == status
    said = capsys.readouterr()
    assert f"usage: python -m training {name}" in said.out
    assert "required" in said.err


def test_the_list_of_commands_has_a_line_for_each_and_loads_no_torch() -> None:
    script = (
        "import atexit, sys; from training.__main__ import main;"
        "atexit.register(lambda: print('torch' in sys.modules)); main(['--help'])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "False"
    assert all(f"    {name} " in said or f"    {name}\n" in said for name in NAMES)


def test_no_command_and_an_unknown_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["fly"]):
        with pytest.raises(SystemExit) as left:
            main(argv)
        assert left.value.code == 2
    assert "invalid choice: 'fly'" in capsys.readouterr().err


def test_bad_data_ends_with_a_message_and_no_traceback(tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*none\.npy"):
        main(["cluster", "--features", str(tmp_path / "none.npy"), "--out", str(tmp_path / "out")])
