"""CSV tables, read whole and refused by row."""

import csv
from collections.abc import Sequence
from pathlib import Path


def read_rows(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The named columns of every row; other columns are left out.

    Raises:
        ValueError: a column is missing, or a row is cut short (named; row 0 is the first after the header).
    """
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if missing := sorted(set(columns) - set(reader.fieldnames or ())):
            raise ValueError(f"{file} lacks the columns {missing}; it has {reader.fieldnames}.")
        rows = [{name: row[name] for name in columns} for row in reader]
    for number, row in enumerate(rows):
        if short := [name for name, value in row.items() if value is None]:
            raise ValueError(f"{file}, row {number} is cut short: no {short}.")
    return rows


def to_int(file: Path, number: int, row: dict[str, str], column: str, empty: int | None = None) -> int:
    """One cell as a whole number; `empty` is what an empty cell means, if it may be empty.

    Raises:
        ValueError: naming file, row and column.
    """
    text = row[column].strip()
    if not text and empty is not None:
        return empty
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{file}, row {number}: {column} is {text!r}; expected a whole number.") from None
