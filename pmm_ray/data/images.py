"""Reading photos and label masks of any usual kind, and writing masks that every other tool opens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pmm_ray.data.dataset import IGNORE
from pmm_ray.data.palette import Colour, voc_palette
from pmm_ray.data.problems import shown
from pmm_ray.errors import UserError
from pmm_ray.files import atomic_path, readable
from pmm_ray.places import StorageError, place

MAX_PIXELS = 80_000_000
"""A larger image is refused: a small file can hold one that fills the memory."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
IMAGE_KINDS = ", ".join(sorted(IMAGE_SUFFIXES))
UNREAD_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
)
"""Of photos that cannot be read: the user is told so, which no other file is worth."""
UNREAD = "files are not read: convert them to JPEG or PNG"

MAX_ASPECT = 20
"""A photo whose sides differ by more is not resized by its short side: its long one would fill the memory."""

LABEL_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif"})

# Named, so that no exotic decoder (EPS runs Ghostscript) ever sees a file. JPEG includes MPO, which some phones write.
_IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF")
_LABEL_FORMATS = ("PNG", "BMP", "DIB", "TIFF", "GIF")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)


class ImageError(UserError, ValueError):
    """An image or mask that cannot be used: one line with the file and what to do."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """A photo as (H, W, 3) uint8 RGB, upright.

    The EXIF orientation is applied; grey, palette, CMYK and other modes become RGB; transparency is laid on white;
    16-bit grey is scaled from 0..65535 to 0..255. Of several frames the first is read. The array is the caller's own.

    Raises:
        ImageError: the file is missing, is no image, is cut off, or has more than `MAX_PIXELS`.
    """
    with _opened(path, _IMAGE_FORMATS) as image:
        image.load()
        rgb, turn = _rgb(image), _UPRIGHT.get(_orientation(image))
        return np.array(rgb if turn is None else rgb.transpose(turn), np.uint8)


def read_resizable(path: str | Path) -> NDArray[np.uint8]:
    """As `read_image`, for what is to be resized by its short side.

    Raises:
        ImageError: also where one side is more than `MAX_ASPECT` times the other.
    """
    image = read_image(path)
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(
            f"{shown(path)}: {width} x {height} pixels (width x height), too narrow to be resized by the short side: "
            "crop it or take it off the list"
        )
    return image


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of what `read_image` gives, without decoding the pixels where the format allows.

    Raises:
        ImageError: as `read_image`, except that a cut-off file may pass.
    """
    with _opened(path, _IMAGE_FORMATS) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _QUARTER_TURNS else (height, width)


def read_label(path: str | Path, *, num_classes: int | None = None) -> NDArray[np.uint8]:
    """A label mask as (H, W) uint8 ids, from a palette image (its indices) or a grey one (its values).

    Raises:
        ImageError: missing, broken or too large; lossy (JPEG); in colour; or with an id above 255, or one that is
            neither below `num_classes` (C + 1, with the background) nor 255.
    """
    mask = _ids(path)
    if num_classes is not None:
        held = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        strange = held[(held >= num_classes) & (held != IGNORE)]
        if strange.size:
            raise ImageError(
                f"{shown(path)}: the mask holds id {strange[0]}; its ids must be 0..{num_classes - 1} or {IGNORE}: "
                "correct the mask, or name its class in data.classes"
            )
    return mask


def _ids(path: str | Path) -> NDArray[np.uint8]:
    with _opened(path, _LABEL_FORMATS) as image:
        image.load()
        if image.mode in ("P", "L", "1"):
            return np.array(image, np.uint8)
        if image.mode.startswith("I"):
            ids = np.array(image)
            if ids.min() < 0 or ids.max() > 255:
                raise ImageError(f"{shown(path)}: mask ids go up to {ids.max()}; they must be 0..255")
            return ids.astype(np.uint8)
        raise ImageError(f"{shown(path)}: a mask must be a palette or grey image of ids, this one is {image.mode}")


def write_label(path: Path, mask: NDArray[np.uint8], palette: Sequence[Colour]) -> None:
    """Write ids (H, W) uint8 as a palette PNG, atomically. Ids beyond `palette` (such as 255) have VOC's colours."""
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise ValueError(f"a mask is (H, W) uint8, got {mask.shape} {mask.dtype}")
    image = Image.fromarray(mask)
    image.putpalette(_flat_palette(tuple(palette)))
    with atomic_path(path) as temporary:
        # level 1: a mask's few long runs gain little from a longer search
        image.save(temporary, format="PNG", compress_level=1)


@cache
def _flat_palette(palette: tuple[Colour, ...]) -> bytes:
    """256 colours as R, G, B, R, G, B, ..."""
    return bytes(channel for colour in (*palette, *voc_palette()[len(palette) :]) for channel in colour)


def check_same_size(mask: NDArray[np.uint8], size: tuple[int, int], *, path: str | Path) -> None:
    """Raise ImageError unless the mask (H, W) read from `path` has the image's `size` (H, W)."""
    if mask.shape != size:
        found, wanted = (f"{width} x {height}" for height, width in (mask.shape, size))
        raise ImageError(
            f"{shown(path)}: the mask is {found} pixels (width x height), its image {wanted}: "
            "bring the mask to the image's size, keeping its ids"
        )


@contextmanager
def _opened(path: str | Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """An open image of acceptable size; whatever goes wrong with it inside the block is an ImageError."""
    try:
        source = readable(place(path))
        # By a name Pillow maps a plain TIFF into memory, and scrambles one that is to be turned.
        with (
            source.open("rb") if isinstance(source, Path) else source as file,
            Image.open(file, formats=formats) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except (ImageError, StorageError):
        raise
    except FileNotFoundError:
        raise ImageError(f"{shown(path)}: no such file: restore it or take it off the list") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{shown(path)}: more than {MAX_PIXELS // 10**6} million pixels: make it smaller") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{shown(path)}: not a {_kinds(formats)} image: replace it or take it off the list") from None
    except Exception as error:  # a decoder fed with a broken file raises almost anything
        why = shown(error) if str(error) else type(error).__name__
        raise ImageError(f"{shown(path)}: cannot be decoded ({why}): replace it or take it off the list") from error


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation 1..8, of which 1 needs no turn. Damaged EXIF is no reason to refuse a photo: 1."""
    if image.format == "TIFF":  # turns itself upright while loading, and gives its size so from the start
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _kinds(formats: tuple[str, ...]) -> str:
    return ", ".join(name for name in formats if name != "DIB")


def _rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as mode RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.array(image)
        return Image.fromarray(_eight_bits(grey)).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        ground = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(ground, opaque).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey values (H, W) of more than 8 bits, or floats, as uint8.

    16-bit files use 0..65535 whatever their largest value. For 32-bit ones the range is the smallest usual one that
    holds the values: 0..1 (floats only), 0..255, 0..65535, else 0..maximum. Negative and undefined values are black.
    """
    values = np.nan_to_num(grey.astype(np.float64), posinf=0.0, neginf=0.0)
    largest = float(values.max(initial=0.0))
    usual = [65535.0] if grey.dtype.itemsize == 2 else [255.0, 65535.0]
    if grey.dtype.kind == "f":
        usual.insert(0, 1.0)
    full = next((limit for limit in usual if largest <= limit), largest)
    return np.rint(np.clip(values / full, 0, 1) * 255).astype(np.uint8)
