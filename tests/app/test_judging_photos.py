"""The photos of a study: copies as a person sees the photo, and vectors that are kept beside the running service."""

import io
from typing import Any

import pytest
from PIL import Image

from app.judging.photos import copies
from contract.pixels import PixelLimits
from tests.toy import encoded, photo

TURN = 0x0112
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", [1, 6])
def test_a_copy_has_the_shape_of_the_photo_however_its_file_says_to_turn_it(format_: str, turn: int) -> None:
    exif = Image.Exif()
    exif[TURN] = turn
    upright = (400, 200) if turn == 1 else (200, 400)
    shown, part = copies(encoded(photo(0, (400, 200)), format_, exif=exif), PixelLimits())
    assert Image.open(io.BytesIO(shown)).size == upright
    assert Image.open(io.BytesIO(part)).size == tuple(side * 7 // 10 for side in upright)


@pytest.mark.parametrize(
    ("format_", "options"), [("JPEG", {"xmp": XMP}), ("WEBP", {"xmp": XMP}), ("TIFF", {"tiffinfo": {700: XMP}})]
)
def test_what_the_decoder_does_not_turn_is_not_shown_distorted(format_: str, options: dict[str, Any]) -> None:
    content = encoded(photo(0, (400, 200)), format_, **options)
    assert Image.open(io.BytesIO(content)).getexif()[TURN] == 6  # by Pillow, which reads XMP too; our decoder does not
    shown, _ = copies(content, PixelLimits())
    assert Image.open(io.BytesIO(shown)).size == (400, 200)
