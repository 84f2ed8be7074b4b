"""A multipart body that arrived whole: its text fields and its files. Pure work for a worker thread."""

from dataclasses import dataclass, field
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

MAX_FIELDS = 32
"""Text fields of one body."""
MAX_FIELD_BYTES = 2**20
MAX_HEADER_BYTES = 8192
"""Of one part: browsers and curl write two or three short lines."""


class FormError(ValueError):
    """A body that is no whole multipart form, or is larger than one may be. The message says what is wrong."""


class TooManyFiles(FormError):
    """More files than allowed."""


class Part(NamedTuple):
    """One field or file; `filename` is None for a field."""

    name: str
    filename: str | None
    content: bytes


@dataclass
class _Parts:
    """What the parser's callbacks collect. Nothing touches the disk: a photo must never lie there."""

    max_files: int
    parts: list[Part] = field(default_factory=list)
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _header_bytes: int = 0
    _disposition: bytes | None = None
    _name: str = ""
    _filename: str | None = None
    _content: list[bytes] = field(default_factory=list)
    _size: int = 0
    _files: int = 0

    def on_part_begin(self) -> None:
        self._disposition, self._header_bytes = None, 0
        self._content, self._size = [], 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += self._counted(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def _counted(self, piece: bytes) -> bytes:
        self._header_bytes += len(piece)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise FormError(f"the headers of a part have more than {MAX_HEADER_BYTES} bytes")
        return piece

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise FormError('a part has no Content-Disposition with a "name"')
        self._name = options[b"name"].decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._filename = None if filename is None else filename.decode("utf-8", "replace")
        self._files += filename is not None
        if self._files > self.max_files:
            raise TooManyFiles(f"more than {self.max_files} files")
        if len(self.parts) - self._files >= MAX_FIELDS:
            raise FormError(f"more than {MAX_FIELDS} fields")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._filename is None and self._size > MAX_FIELD_BYTES:
            raise FormError(f"a field has more than {MAX_FIELD_BYTES} bytes")
        self._content.append(data[start:end])

    def on_part_end(self) -> None:
        self.parts.append(Part(self._name, self._filename, b"".join(self._content)))
        self._content = []


def parse(content: bytes, content_type: str, max_files: int) -> list[Part]:
    """The parts in order.

    Raises:
        FormError: the body is cut short or broken, or a bound of this module is passed.
        TooManyFiles: more than `max_files`.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if b"--" + boundary + b"--" not in content:
        raise FormError("it has no closing boundary; it was cut short")
    found = _Parts(max_files)
    callbacks = {name: getattr(found, name) for name in dir(found) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]  # a dict of just these callbacks
        parser.write(content)
        parser.finalize()
    except FormParserError as error:
        raise FormError("a boundary or header is broken") from error
    return found.parts
