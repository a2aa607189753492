"""Sheets of pictures: photo, CAM, mask and ground truth side by side, with a legend; for matting trimap and mattes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pmm_ray.data.dataset import IGNORE, Classes
from pmm_ray.files import atomic_path

Picture = NDArray[np.uint8]
Item = tuple[str, tuple[int, int, int]]

_PAPER = (255, 255, 255)
_INK = (45, 45, 50)
_FAINT = (130, 130, 138)
_RULE = (224, 224, 228)
_IGNORED = (205, 205, 205)
# Dark violet to pale yellow: lightness grows steadily, so the map also reads in grey and with colour-weak eyes.
_HEAT = np.array(
    [(16, 10, 48), (74, 22, 110), (156, 38, 104), (222, 78, 66), (248, 158, 46), (252, 246, 180)], np.float32
)
_ASPECTS = (0.7, 1.8)


def overlay_sheet(
    image: Picture,
    *,
    classes: Classes,
    cam: NDArray[np.floating] | None = None,
    class_ids: Sequence[int] | None = None,
    trimap: NDArray[np.integer] | None = None,
    mattes: NDArray[np.floating] | None = None,
    mask: NDArray[np.integer] | None = None,
    truth: NDArray[np.integer] | None = None,
    height: int = 240,
    aspect: float | None = None,
    caption: str = "",
) -> Picture:
    """One row of panels in equal boxes, titles above, a legend of the classes below.

    Args:
        image: (H, W, 3) uint8 RGB.
        classes: names and colours of the ids.
        cam: (K, H, W) in [0, 1]; the panel shows the maximum over the K classes as heat. None: no such panel.
        class_ids: the K ids, or the image-level labels where there is no cam; they appear in the legend.
        trimap: (H, W) ids, 255 unknown (drawn grey). None: no such panel.
        mattes: (K, H, W) in [0, 1], shown as the CAM is. None: no such panel.
        mask: (H, W) ids, 255 ignored (drawn grey). None: no such panel.
        truth: the same of the ground truth.
        height: of a panel's box, pixels.
        aspect: width / height of a box; sheets of one aspect line up in a contact sheet. None: the image's own.
        caption: small text at the right end of the legend, such as the image's name.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    box = (round(height * (common_aspect([image.shape[:2]]) if aspect is None else aspect)), height)
    small = _fit(image, box)
    panels = [("photo", small)]
    maps = {"CAM": cam, "mattes": mattes}
    ids = {"trimap": trimap, "mask": mask, "ground truth": truth}
    for title in ("CAM", "trimap", "mattes", "mask", "ground truth"):
        if (scores := maps.get(title)) is not None:
            panels.append((title, heat_overlay(small, _resize_map(scores, small))))
        if (labels := ids.get(title)) is not None:
            panels.append((title, mask_overlay(small, _resize_ids(labels, small), classes=classes)))
    shown = _present(class_ids, trimap, mask, truth, classes=classes)
    grey = "ignored" if trimap is None else "unknown, ignored"
    return _arrange(panels, box, _legend_items(shown, classes, grey), caption)


def contact_sheet(sheets: Iterable[Picture]) -> Picture:
    """Sheets below each other with thin rules between, padded with white to the widest. ValueError without sheets."""
    rows = list(sheets)
    if not rows:
        raise ValueError("no sheets to put together")
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    rule = np.full((1, width, 3), _RULE, np.uint8)
    return np.concatenate([part for row in padded for part in (rule, row)][1:])


def write_picture(picture: Picture, path: Path) -> None:
    """Write a PNG."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="png", optimize=True)


def common_aspect(sizes: Iterable[tuple[int, int]]) -> float:
    """Width / height of a box that suits images of sizes (H, W): the widest one's, within bounds; 1 without images."""
    return float(np.clip(max((width / height for height, width in sizes), default=1.0), *_ASPECTS))


def heat_overlay(image: Picture, heat: NDArray[np.floating]) -> Picture:
    """A map (H, W) in [0, 1] as colours over the greyed (H, W, 3) photo, which shows less where it is strong."""
    heat = np.nan_to_num(np.clip(heat, 0, 1)).astype(np.float32)
    opacity = (0.45 + 0.4 * heat)[..., None]
    return _to_uint8((1 - opacity) * _greyed(image, 0.0) + opacity * colour_map(heat))


def colour_map(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Values in [0, 1] of any shape (...) to RGB (..., 3), 0..255, lightness growing with the value."""
    place = np.clip(values, 0, 1).astype(np.float32) * (len(_HEAT) - 1)
    low = np.minimum(place.astype(int), len(_HEAT) - 2)
    part = (place - low)[..., None]
    return (1 - part) * _HEAT[low] + part * _HEAT[low + 1]


def mask_overlay(image: Picture, ids: NDArray[np.integer], *, classes: Classes) -> Picture:
    """Ids (H, W) in the classes' colours over the (H, W, 3) photo, white lines where ids meet.

    Background is the dimmed photo; ignored pixels (255 and ids without a class) are light grey.
    """
    colours = np.full((256, 3), _IGNORED, np.float32)
    colours[: len(classes)] = classes.palette
    index = ids.astype(np.uint8)
    objects = 0.3 * _greyed(image, 0.0) + 0.7 * colours[index]
    blended = np.where((index == 0)[..., None], 0.7 * _greyed(image, 0.6), objects)
    return _to_uint8(np.where(_edges(index)[..., None], 255, blended))


def mask_panel(image: Picture, mask: NDArray[np.integer], *, classes: Classes, side: int = 256) -> Picture:
    """`mask_overlay` of a whole photo, at most `side` pixels wide and high."""
    small = _fit(image, (side, side))
    return mask_overlay(small, _resize_ids(mask, small), classes=classes)


def _edges(ids: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels on either side of where two ids meet: lines two pixels wide."""
    edge = np.zeros(ids.shape, bool)
    across, down = ids[:, :-1] != ids[:, 1:], ids[:-1] != ids[1:]
    edge[:, :-1] |= across
    edge[:, 1:] |= across
    edge[:-1] |= down
    edge[1:] |= down
    return edge


def _greyed(image: Picture, colour: float) -> NDArray[np.float32]:
    """The photo with only the share `colour` of its colour left, float32 0..255."""
    photo = image.astype(np.float32)
    grey = photo @ np.array([0.299, 0.587, 0.114], np.float32)
    return colour * photo + (1 - colour) * grey[..., None]


def _to_uint8(picture: NDArray[np.floating]) -> Picture:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _fit(image: Picture, box: tuple[int, int]) -> Picture:
    """The image scaled to lie inside the box (width, height)."""
    height, width = image.shape[:2]
    scale = min(box[0] / width, box[1] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _resize_map(cam: NDArray[np.floating], like: Picture) -> NDArray[np.float32]:
    """Maximum over classes of (K, H, W), at the panel's size; zeros where K is 0."""
    if not len(cam):
        return np.zeros(like.shape[:2], np.float32)
    strongest = Image.fromarray(np.max(cam, axis=0).astype(np.float32))
    return np.asarray(strongest.resize((like.shape[1], like.shape[0]), Image.Resampling.BILINEAR))


def _resize_ids(ids: NDArray[np.integer], like: Picture) -> NDArray[np.uint8]:
    scaled = Image.fromarray(ids.astype(np.uint8)).resize((like.shape[1], like.shape[0]), Image.Resampling.NEAREST)
    return np.asarray(scaled)


def _present(class_ids: Sequence[int] | None, *masks: NDArray[np.integer] | None, classes: Classes) -> list[int]:
    """Ids for the legend, in order: the given ones and those in the masks; 255 stands for all that is ignored."""
    found = {int(c) for c in class_ids or ()}
    for ids in masks:
        if ids is not None:
            found |= {int(c) if c < len(classes) else IGNORE for c in np.unique(ids)}
    return sorted(found - {0})


def _legend_items(shown: Iterable[int], classes: Classes, grey: str) -> list[Item]:
    return [(grey, _IGNORED) if c == IGNORE else (classes.names[c], classes.palette[c]) for c in shown]


def _arrange(
    panels: Sequence[tuple[str, Picture]],
    box: tuple[int, int],
    legend: Sequence[Item],
    caption: str,
) -> Picture:
    """Panels centred in their boxes, titles above, legend below."""
    unit = max(4, box[1] // 30)
    text = max(10, round(box[1] / 15))
    top = text + 2 * unit
    width = unit + len(panels) * (box[0] + unit)
    lines = _wrap(legend, width - 2 * unit - _length(caption, text) - unit, text)
    line_height = round(1.6 * text)
    sheet = Image.new("RGB", (width, top + box[1] + unit + line_height * max(len(lines), 1) + unit // 2), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (title, panel) in enumerate(panels):
        left = unit + number * (box[0] + unit)
        height, wide = panel.shape[:2]
        sheet.paste(Image.fromarray(panel), (left + (box[0] - wide) // 2, top + (box[1] - height) // 2))
        draw.text((left + box[0] / 2, top - unit * 0.6), title, fill=_INK, font=_font(text), anchor="ms")
    below = top + box[1] + unit
    for number, line in enumerate(lines):
        _draw_line(draw, line, unit, below + number * line_height + line_height // 2, text)
    if caption:
        draw.text((width - unit, below + line_height // 2), caption, fill=_FAINT, font=_font(text), anchor="rm")
    return np.asarray(sheet)


def _draw_line(draw: ImageDraw.ImageDraw, line: Sequence[Item], left: float, middle: float, text: int) -> None:
    """One line of the legend: a swatch and a name for each class."""
    half = text / 2
    for name, colour in line:
        swatch = (left, middle - half, left + 1.4 * text, middle + half)
        draw.rounded_rectangle(swatch, radius=text / 5, fill=colour, outline=_FAINT)
        draw.text((left + 1.9 * text, middle), name, fill=_INK, font=_font(text), anchor="lm")
        left += _item_width(name, text)


def _wrap(legend: Sequence[Item], width: float, text: int) -> list[list[Item]]:
    lines: list[list[Item]] = []
    used = 0.0
    for item in legend:
        needed = _item_width(item[0], text)
        if not lines or used + needed > width:
            lines.append([])
            used = 0.0
        lines[-1].append(item)
        used += needed
    return lines


def _item_width(name: str, text: int) -> float:
    return 3.4 * text + _length(name, text)


def _length(words: str, text: int) -> float:
    return _font(text).getlength(words)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font, so that pictures are the same everywhere."""
    return ImageFont.load_default(size)
