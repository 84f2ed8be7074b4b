"""Multipart bodies as they arrive, and what is refused of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import forms
from app.forms import FormError, Part, TooManyFiles

TYPE = "multipart/form-data; boundary=b"


def body(*parts: tuple[str, str | None, bytes]) -> bytes:
    out = b""
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        out += f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return out + b"--b--\r\n"


PARTS = st.lists(
    st.tuples(st.sampled_from(["images", "space"]), st.sampled_from([None, "a"]), st.binary(max_size=300)), max_size=20
)


@settings(max_examples=40, deadline=None)
@given(PARTS)
def test_any_parts_come_back_as_they_were(parts: list[tuple[str, str | None, bytes]]) -> None:
    clean = [(name, filename, content.replace(b"--b", b"")) for name, filename, content in parts]
    assert forms.parse(body(*clean), TYPE, 20) == [Part(*part) for part in clean]


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_parse_or_are_a_form_error(content: bytes) -> None:
    for whole in (content, b"--b\r\n" + content + b"\r\n--b--\r\n", body(("a", "b", content))[:-20] + b"--b--"):
        try:
            forms.parse(whole, TYPE, 3)
        except FormError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (body(("a", "b", b"x"))[:-9], "cut short"),
        (b"--b\r\nContent-Type: a\r\n\r\nx\r\n--b--\r\n", '"name"'),
        (b"--b\r\nX: " + b"y" * 9000 + b"\r\n\r\nx\r\n--b--\r\n", "headers|header is broken"),
        (body(*[("a", None, b"x")] * 33), "32 fields"),
        (body(("a", None, b"x" * (2**20 + 1))), "field has more"),
        (b"nothing--b--", "broken"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, says: str) -> None:
    with pytest.raises(FormError, match=says):
        forms.parse(content, TYPE, 3)


def test_files_are_counted_apart_from_fields() -> None:
    parts = [("a", None, b"x")] * 32 + [("a", "f", b"x")] * 3
    assert len(forms.parse(body(*parts), TYPE, 3)) == 35
    with pytest.raises(TooManyFiles, match="3"):
        forms.parse(body(*[("a", "f", b"x")] * 4), TYPE, 3)


def test_a_name_beyond_ascii_is_read_and_a_broken_one_does_no_harm() -> None:
    assert forms.parse(body(("größe", None, b"1")), TYPE, 3)[0].name == "größe"
    broken = body(("a", None, b"1")).replace(b'"a"', b'"\xff"')
    assert forms.parse(broken, TYPE, 3)[0].content == b"1"
