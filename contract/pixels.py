"""Pixels: encoded image bytes to the tensor a bundle's graph asks for.

Preprocessing decides an embedding as much as weights do (two resizings of one photo can differ
by cosine 0.94), so it is declared in the bundle (`PixelSpec`), hashed into the space fingerprint,
and done here, by training, export and serving alike. In order:

1. open, by an allow-list of formats, and check the size BEFORE any pixel is decoded;
2. decode the first frame; 16-bit gray keeps its high byte, as Pillow does for 16-bit colour;
3. turn by the EXIF orientation (the EXIF tag only: XMP is ignored, as browsers do);
4. convert to RGB, laying transparent images on the declared background;
5. resize, and crop the centre where the spec says so, bit for bit as torchvision does; a photo
   more elongated than 8 : 1 is sampled only inside the crop (the same positions, within rounding),
   so that a 16384 x 16 strip never becomes 266,240 pixels wide;
6. leave as uint8, or map 0..255 to the value range and subtract mean, divide by std.

Embedded colour profiles are ignored, as the training pipelines of vision models do.
"""

import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from contract.headers import HeaderFault, Metered, check_directory, check_headers

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow decoders that may be tried; every other one stays shut."""

ELONGATED = 8
"""Aspect ratio above which `crop` samples inside the crop only. Part of the format: never change it."""

MAX_RUN_LENGTH_PIXELS = 1_000_000
"""Of a BMP in run lengths. Pillow decodes these in Python, pixel by pixel: 25 million of 20 kB took 5 seconds."""

ImageFault = Literal[
    "image_too_large",
    "too_many_pixels",
    "side_too_long",
    "side_too_short",
    "unsupported_image_format",
    "undecodable_image",
]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_ORIENTATION_TAG = 0x0112
_TILE_TAGS = (322, 323)  # TileWidth, TileLength
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Resize = Literal["squash", "crop"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Orientation = Literal["exif", "ignore"]
PixelType = Literal["uint8", "float32"]


class ImageError(ValueError):
    """One image that cannot be used. `fault` names the kind, `limit` the bound it broke, if any."""

    def __init__(self, fault: ImageFault, message: str, limit: int | None = None) -> None:
        super().__init__(message)
        self.fault: ImageFault = fault
        self.limit = limit


@dataclass(frozen=True, kw_only=True)
class PixelLimits:
    """What one encoded image may be. Checked before decoding; pixels and sides as stored in the file."""

    max_bytes: int = 10 * 2**20
    max_pixels: int = 25_000_000
    min_side: int = 16
    max_side: int = 16_384


@dataclass(frozen=True, kw_only=True)
class PixelSpec:
    """How a bundle wants its pixels. See the module docstring for the order of the steps.

    Attributes:
        height, width: of the tensor, in pixels.
        resize: `squash` scales both sides to fit, changing the aspect ratio (AligNet's way);
            `crop` scales the short side to `short_side`, then takes the centre.
        short_side: pixels, with `crop` only; rounding follows torchvision's Resize + CenterCrop.
        resample: Pillow's filter, antialiased when scaling down.
        orientation: `exif` turns the photo as its EXIF tag says; `ignore` does not.
        color: always RGB in this format version.
        background: RGB 0..255 laid under transparent pixels.
        dtype: `float32` is normalised here; `uint8` leaves that to the graph.
        value_range: what 0 and 255 become before mean and std, e.g. (0, 1) or (0, 255).
        mean, std: per RGB channel, in units of the value range.
    """

    height: int
    width: int
    resize: Resize
    short_side: int | None = None
    resample: Resample = "bicubic"
    orientation: Orientation = "exif"
    color: Literal["RGB"] = "RGB"
    background: tuple[int, int, int] = (255, 255, 255)
    dtype: PixelType = "float32"
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"pixels.{name} is {getattr(self, name)!r}; expected one of {get_args(kind)}.")
        for name in ("height", "width", "short_side"):
            value = getattr(self, name)
            if type(value) is not int and not (name == "short_side" and value is None):
                raise ValueError(f"pixels.{name} is {value!r}; expected a whole number.")
        for name in ("height", "width"):
            if not 0 < getattr(self, name) <= 4096:
                raise ValueError(f"pixels.{name} is {getattr(self, name)}; expected 1 to 4096.")
        if (self.resize == "crop") != (self.short_side is not None):
            raise ValueError(
                f"pixels.short_side is {self.short_side}; expected a number with `crop` and none with `squash`."
            )
        if self.short_side is not None and self.short_side < max(self.height, self.width):
            raise ValueError(
                f"pixels.short_side is {self.short_side}, smaller than the {self.height} x {self.width} crop."
            )
        if not _holds(self.background, 3, int) or not all(0 <= v <= 255 for v in self.background):
            raise ValueError(f"pixels.background is {self.background}; expected three integers 0..255.")
        for name, count in (("value_range", 2), ("mean", 3), ("std", 3)):
            value = getattr(self, name)
            if not _holds(value, count, float, int):
                raise ValueError(f"pixels.{name} is {value}; expected {count} finite numbers.")
            # One spelling of each number, so that equal specs have equal fingerprints.
            object.__setattr__(self, name, tuple(float(v) for v in value))
        if not all(v > 0 for v in self.std):
            raise ValueError(f"pixels.std is {self.std}; expected numbers above 0.")
        if self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"pixels.value_range is {self.value_range}; expected low < high.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, height, width): one image of the tensor, channels first."""
        return (3, self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """The spec as the manifest stores it, lists for tuples."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Read the manifest's `pixels`. Raises ValueError naming an unknown, missing or wrong field."""
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(fields) - known):
            raise ValueError(f"pixels has unknown fields {unknown}; known are {sorted(known)}.")
        if missing := sorted(known - set(fields)):
            raise ValueError(f"pixels lacks {missing}.")
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"pixels holds a value of the wrong type: {error}.") from error


def _holds(value: Any, count: int, *kinds: type) -> bool:
    """Whether `value` is a tuple of `count` numbers of these types, each finite and of float's size."""
    if not isinstance(value, tuple) or len(value) != count or not all(type(v) in kinds for v in value):
        return False
    return all(abs(v) <= sys.float_info.max for v in value)


_CHOICES: dict[str, Any] = {
    "resize": Resize,
    "resample": Resample,
    "orientation": Orientation,
    "color": Literal["RGB"],
    "dtype": PixelType,
}


def load_pixels(data: bytes, spec: PixelSpec, limits: PixelLimits | None = None) -> NDArray[Any]:
    """Encoded image bytes to one tensor [3, height, width] of the spec's dtype.

    Raises:
        ImageError: too many bytes or pixels, a side out of range, a format not in `FORMATS`, or
            bytes that do not decode. Nothing else, whatever the bytes are.
    """
    return load_sized(data, spec, limits)[0]


def load_sized(data: bytes, spec: PixelSpec, limits: PixelLimits | None = None) -> tuple[NDArray[Any], tuple[int, int]]:
    """As `load_pixels`, and (width, height) of the photo after its orientation, which `shown_box` wants."""
    limits = limits or PixelLimits()
    if len(data) > limits.max_bytes:
        raise ImageError(
            "image_too_large", f"image has {len(data)} bytes; at most {limits.max_bytes}.", limits.max_bytes
        )
    image = _open(data, limits)
    try:
        rgb = _to_rgb(image, spec)
        return _to_tensor(rgb, spec), rgb.size
    except ImageError:
        raise
    except HeaderFault as error:
        raise _too_slow(error) from error
    except Exception as error:  # Pillow's decoders raise a dozen types on hostile bytes; all mean the same.
        raise _undecodable(error) from error


def _undecodable(error: Exception) -> ImageError:
    return ImageError("undecodable_image", f"image does not decode: {type(error).__name__}. Is the file whole?")


def _too_slow(error: HeaderFault) -> ImageError:
    return ImageError("undecodable_image", str(error), error.limit)


def _open(data: bytes, limits: PixelLimits) -> Image.Image:
    """Open lazily (header only) and refuse by size. See `load_pixels`."""
    if not data:
        raise ImageError("undecodable_image", "image has 0 bytes.")
    try:
        check_headers(data)
        image = Image.open(Metered(data), formats=FORMATS)
    except HeaderFault as error:
        raise _too_slow(error) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "unsupported_image_format", f"bytes are none of {', '.join(FORMATS)}, or the header is broken."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own ceiling (179 million pixels) lies above any limit an operator can set here.
        raise _too_many_pixels("more than Pillow opens", limits) from error
    except Exception as error:
        raise _undecodable(error) from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(f"{width} x {height}", limits)
    if image.format == "TIFF":
        # A tile may be larger than the picture, and is decoded whole.
        tile_width, tile_height = (image.tag_v2.get(tag, 0) for tag in _TILE_TAGS)  # type: ignore[attr-defined]
        if not isinstance(tile_width, int) or not isinstance(tile_height, int):
            raise ImageError("undecodable_image", "the TIFF's tile size is no number.")
        if tile_width * tile_height > limits.max_pixels:
            raise _too_many_pixels(f"tiles of {tile_width} x {tile_height}", limits)
    if image.tile and image.tile[0].codec_name == "bmp_rle" and width * height > MAX_RUN_LENGTH_PIXELS:
        message = f"BMP in run lengths has {width} x {height} pixels; at most {MAX_RUN_LENGTH_PIXELS}. Save it as PNG."
        raise ImageError("too_many_pixels", message, MAX_RUN_LENGTH_PIXELS)
    if max(width, height) > limits.max_side:
        message = f"image is {width} x {height} pixels; no side may be longer than {limits.max_side}."
        raise ImageError("side_too_long", message, limits.max_side)
    if min(width, height) < limits.min_side:
        message = f"image is {width} x {height} pixels; no side may be shorter than {limits.min_side}."
        raise ImageError("side_too_short", message, limits.min_side)
    return image


def _too_many_pixels(given: str, limits: PixelLimits) -> ImageError:
    message = f"image has {given} pixels; at most {limits.max_pixels} in all."
    return ImageError("too_many_pixels", message, limits.max_pixels)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none, or the EXIF block is broken (the photo is still good)."""
    exif, block = Image.Exif(), image.info.get("exif") or b""
    try:
        check_directory(block)
        exif.load(block)
        value = exif.get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSE else 1


def _to_rgb(image: Image.Image, spec: PixelSpec) -> Image.Image:
    """Decode the first frame, turn it, and make it RGB."""
    orientation = 1
    if image.format == "TIFF":
        # Pillow itself turns TIFF while loading, by XMP too; there is no flag, so take the tag away first.
        orientation = image.tag_v2.pop(_ORIENTATION_TAG, 1)  # type: ignore[attr-defined]
        image.getexif().pop(_ORIENTATION_TAG, None)
    image.load()
    if image.format == "TIFF":
        image._size = image.im.size
    else:
        orientation = _orientation(image)
    if spec.orientation == "exif" and orientation in _TRANSPOSE:
        image = image.transpose(_TRANSPOSE[orientation])
    if image.mode.startswith("I;16"):
        high_byte = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        image = Image.fromarray(high_byte)
    elif image.mode in ("I", "F", "LAB"):
        raise ImageError(
            "unsupported_image_format",
            f"pixels of mode {image.mode} have no agreed value range; save the image as 8 or 16 bits a channel.",
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, spec.background)
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(width, height) of a photo scaled to its short side; torchvision truncates the long side."""
    width, height = size
    scaled_w = int(short_side * max(width, height) / height) if width > height else short_side
    scaled_h = int(short_side * max(width, height) / width) if height > width else short_side
    return scaled_w, scaled_h


def _crop_corner(scaled: tuple[int, int], spec: PixelSpec) -> tuple[int, int]:
    """(left, top) of the crop in the scaled photo; torchvision rounds half to even."""
    return round((scaled[0] - spec.width) / 2), round((scaled[1] - spec.height) / 2)


def shown_box(size: tuple[int, int], spec: PixelSpec) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what a tensor of `spec` shows, in pixels of the upright photo of `size`.

    Args:
        size: (width, height) of the photo after its orientation.
        spec: `squash` shows all of it, `crop` the centre.
    """
    width, height = size
    if spec.short_side is None:
        return 0.0, 0.0, float(width), float(height)
    scaled_w, scaled_h = _scaled(size, spec.short_side)
    left, top = _crop_corner((scaled_w, scaled_h), spec)
    per_x, per_y = width / scaled_w, height / scaled_h
    right, bottom = min((left + spec.width) * per_x, width), min((top + spec.height) * per_y, height)
    return left * per_x, top * per_y, right, bottom


def _resized(rgb: Image.Image, spec: PixelSpec) -> Image.Image:
    """RGB of any size to (spec.width, spec.height), step 5 of the module docstring."""
    filter_ = _RESAMPLING[spec.resample]
    if spec.short_side is None:
        return rgb.resize((spec.width, spec.height), filter_)
    scaled = _scaled(rgb.size, spec.short_side)
    if max(scaled) <= ELONGATED * spec.short_side:
        left, top = _crop_corner(scaled, spec)
        return rgb.resize(scaled, filter_).crop((left, top, left + spec.width, top + spec.height))
    return rgb.resize((spec.width, spec.height), filter_, box=shown_box(rgb.size, spec))


def _to_tensor(rgb: Image.Image, spec: PixelSpec) -> NDArray[Any]:
    """RGB image of any size to [3, height, width]."""
    pixels = np.asarray(_resized(rgb, spec)).transpose(2, 0, 1)  # [height, width, 3] -> [3, height, width]
    return normalize(pixels, spec) if spec.dtype == "float32" else np.ascontiguousarray(pixels)


def normalize(pixels: NDArray[np.uint8], spec: PixelSpec) -> NDArray[np.float32]:
    """uint8 [..., 3, height, width] to float32: value range, then (x - mean) / std per channel."""
    low, high = spec.value_range
    scale = np.array([(high - low) / 255 / s for s in spec.std], np.float32)[:, None, None]
    shift = np.array([(low - m) / s for m, s in zip(spec.mean, spec.std, strict=True)], np.float32)[:, None, None]
    return np.ascontiguousarray(pixels * scale + shift, dtype=np.float32)
