"""The embedded data set: drawn by the program, in VOC layout, hard in the way the real task is.

An object is a *body* that carries an *emblem*. The emblem alone names the class, and it is small: it is what a
classifier finds. The body has any shape and any colour but one coat, apart from its surroundings: it is what a CAM
misses and a CRF can recover. Each class is at home on one kind of ground: it is what a CAM confuses. Ground truth is
the whole object.
"""

from __future__ import annotations

import colorsys
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pmm_ray.data.palette import voc_palette
from pmm_ray.data.textures import BACKGROUNDS, EMBLEMS, Array, Rng, coat, emblem, noise
from pmm_ray.errors import UserError
from pmm_ray.files import write_atomic
from pmm_ray.progress import progress

MARKER = "drawing.json"
"""Says what a folder was drawn with, and whether the drawing was finished."""

NAMES = tuple(EMBLEMS)
"""Names of classes 1..C."""

_VERSION = 1  # of the drawing: raise it with every change that draws other pictures
_COUNTS = (0.42, 0.36, 0.22)  # how often one, two, three objects are tried
_TRIES = 40  # places or colours tried for an object
_PART_SHARES = (0.02, 0.3)  # smaller emblems cannot be told apart, larger ones do not fit


def draw(root: Path, *, train: int, val: int, seed: int, part_share: float, cooccurrence: float) -> None:
    """Draw the data set into `root`, unless the same set is already there.

    Writes JPEGImages/*.jpg, SegmentationClass/*.png (palette, ids 0..C, no 255), ImageSets/Segmentation/train.txt and
    val.txt, image_labels.json (name -> ids, of both lists) and classes.json. Image i of a list depends on all arguments
    but the lists' lengths, so a longer list begins with the shorter one; equal arguments give equal bytes. The marker
    is written first as unfinished and last as finished: an interrupted drawing is drawn again, over equal files.

    `train`, `val`: numbers of images. `part_share`: the emblem's share of its object's area, 0.02..0.3.
    `cooccurrence`: how often, in [0, 1], an image has the kind of ground where its first object is at home; otherwise
    the ground is of any kind.

    Raises:
        UserError: `part_share` is out of range, or `root` holds something else or a drawing with other parameters.
            Nothing is overwritten then.
    """
    low, high = _PART_SHARES
    if not low <= part_share <= high:
        raise UserError(f"data.shapes.part_share={part_share}: an emblem covers {low} to {high} of its object")
    parameters = {"train": train, "val": val, "seed": seed, "part_share": part_share, "cooccurrence": cooccurrence}
    parameters["version"] = _VERSION
    if _finished(root, parameters):
        return
    write_atomic(root / MARKER, json.dumps({"parameters": parameters, "finished": False}, indent=1))
    labels: dict[str, list[int]] = {}
    with progress(f"drawing {root}", train + val) as bar:
        for split, (title, count) in enumerate((("train", train), ("val", val))):
            names = [f"{title}_{index:04d}" for index in range(count)]
            for index, name in enumerate(names):
                rng = np.random.default_rng([seed, split, index])
                image, mask = scene(rng, first=index % len(NAMES), part_share=part_share, cooccurrence=cooccurrence)
                write_atomic(root / "JPEGImages" / f"{name}.jpg", _jpeg(image, quality=int(rng.integers(70, 93))))
                write_atomic(root / "SegmentationClass" / f"{name}.png", _palette_png(mask))
                labels[name] = [int(i) for i in np.unique(mask) if i > 0]
                bar.advance()
            write_atomic(root / "ImageSets" / "Segmentation" / f"{title}.txt", "".join(f"{name}\n" for name in names))
    write_atomic(root / "image_labels.json", json.dumps(labels, indent=0))
    write_atomic(root / "classes.json", json.dumps({"names": NAMES}))
    write_atomic(root / MARKER, json.dumps({"parameters": parameters, "finished": True}, indent=1))


def _finished(root: Path, parameters: dict[str, float]) -> bool:
    """Whether exactly this set is at `root`; False if it may be drawn there."""
    marker = root / MARKER
    # A drawing stopped in its first moment leaves a temporary marker, and no other.
    if root.exists() and not marker.is_file() and (not root.is_dir() or _foreign(root)):
        raise UserError(f"{root} is there already and is no drawn data set: name another folder as data.root")
    if not marker.exists():
        return False
    try:
        found = json.loads(marker.read_text())
        drawn, finished = dict(found["parameters"]), bool(found["finished"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{marker} cannot be read: delete {root}, and it is drawn again") from None
    names = [name for name in sorted(drawn | parameters) if drawn.get(name) != parameters.get(name)]
    if names:
        other = ", ".join(f"{name} {drawn.get(name)} (not {parameters.get(name)})" for name in names)
        raise UserError(f"{root} was drawn with {other}: name another folder as data.root, or delete this one")
    return finished


def _foreign(root: Path) -> bool:
    return any(not path.name.startswith(f".{MARKER}.") for path in root.iterdir())


def _jpeg(image: Array, *, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _palette_png(mask: Array) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(mask)
    picture.putpalette([channel for colour in voc_palette() for channel in colour])
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Body:
    """Where an object is: opacity (H, W) in [0, 1], its emblem's disc coordinates and how many pixels their unit is."""

    cover: Array
    u: Array
    v: Array
    radius: float


def scene(rng: Rng, *, first: int, part_share: float, cooccurrence: float) -> tuple[Array, Array]:
    """One picture: image (H, W, 3) uint8 RGB and mask (H, W) uint8 with ids 0..C, sides 160..240.

    `first` is the index 0..C-1 of the class of the first object, which is never left out.
    """
    height, width = (int(side) for side in rng.integers(160, 241, size=2))
    kind = first if rng.random() < cooccurrence else int(rng.integers(len(BACKGROUNDS)))
    canvas = BACKGROUNDS[kind](rng, height, width)
    mask = np.zeros((height, width), np.uint8)
    kept = np.zeros((height, width), bool)  # emblems that no later object may cover
    colours = [canvas.mean(axis=(0, 1))]
    count = 1 + int(rng.choice(3, p=_COUNTS))
    for number in range(count):
        index = first if number == 0 or rng.random() < 0.15 else int(rng.integers(len(NAMES)))
        body = _place(rng, mask, kept, size=(0.34, 0.29, 0.25)[count - 1], part_share=part_share)
        if body is None:  # no room for another object
            continue
        colours.append(_colour(rng, apart_from=colours))
        canvas, badge = _paint(rng, canvas, body, name=NAMES[index], colour=colours[-1])
        mask[body.cover > 0.5] = index + 1
        kept |= badge
    return _photograph(rng, canvas), mask


def _place(rng: Rng, mask: Array, kept: Array, *, size: float, part_share: float) -> _Body | None:
    """A body of about `size` x the short side as radius, that hides no emblem and leaves most of every object seen."""
    height, width = mask.shape
    for _ in range(_TRIES):
        radius = size * min(height, width) * rng.uniform(0.7, 1.15)
        centre = rng.uniform(0.75 * radius, np.array([height, width]) - 0.75 * radius)
        body = _body(rng, height, width, centre=centre, radius=radius, part_share=part_share)
        inside = body.cover > 0.5
        hidden = np.bincount(mask[inside], minlength=len(NAMES) + 1)[1:]
        present = np.bincount(mask.ravel(), minlength=len(NAMES) + 1)[1:]
        badge = (np.hypot(body.u, body.v) < 1) & inside
        whole = badge.sum() > 0.97 * np.pi * body.radius**2
        if whole and not (kept & inside).any() and (hidden <= 0.35 * present).all():
            return body
    return None


def _body(rng: Rng, height: int, width: int, *, centre: Array, radius: float, part_share: float) -> _Body:
    """A random outline between lozenge, ellipse, box and blob, and a disc for the emblem somewhere inside it."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dy, dx = y - centre[0], x - centre[1]
    stretch, turn, power = rng.uniform(1, 1.35), rng.uniform(0, np.pi), rng.uniform(1.5, 4)
    waves = [(k, rng.normal(0, 0.16 / k), rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5)]

    def reach(angle: Array) -> Array:
        c, s = np.abs(np.cos(angle - turn)) / stretch, np.abs(np.sin(angle - turn)) * stretch
        wavy = 1 + sum(size * np.cos(k * angle + phase) for k, size, phase in waves)
        return radius * (c**power + s**power) ** (-1 / power) * wavy

    cover = np.clip(0.5 - (np.hypot(dy, dx) - reach(np.arctan2(dy, dx))), 0, 1)
    around = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    disc = float(np.sqrt(part_share * np.mean(reach(around) ** 2)))
    direction = rng.uniform(0, 2 * np.pi)
    away = max(0.0, float(reach(np.array(direction))) - 1.25 * disc) * rng.uniform(0, 0.7)
    tilt = rng.uniform(-0.4, 0.4)
    ey, ex = dy - away * np.sin(direction), dx - away * np.cos(direction)
    u, v = (ex * np.cos(tilt) + ey * np.sin(tilt)) / disc, (ey * np.cos(tilt) - ex * np.sin(tilt)) / disc
    return _Body(cover=cover, u=u, v=v, radius=disc)


def _colour(rng: Rng, *, apart_from: list[Array]) -> Array:
    """Any colour (3,), the first found that is well apart from the given ones, or else the one farthest from them."""
    best, distance = None, -1.0
    for _ in range(_TRIES):
        colour = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.3, 0.9), rng.uniform(0.4, 0.95)), np.float32)
        nearest = min(float(np.linalg.norm(colour - other)) for other in apart_from)
        if nearest > distance:
            best, distance = colour, nearest
        if distance > 0.42:
            break
    assert best is not None
    return best


def _paint(rng: Rng, canvas: Array, body: _Body, *, name: str, colour: Array) -> tuple[Array, Array]:
    """Put the object and its soft shadow on the canvas; also where its emblem is (H, W) bool."""
    height, width = body.cover.shape
    moved = np.pad(body.cover, ((3, 0), (2, 0)))[:height, :width]
    shadow = Image.fromarray((moved * 255).astype(np.uint8))
    canvas = canvas * (1 - np.asarray(shadow.filter(ImageFilter.GaussianBlur(2.5)), np.float32)[..., None] / 255 * 0.3)
    surface = coat(rng, height, width, colour=colour)
    badge, opacity = emblem(rng, body.u, body.v, name=name, sharpness=body.radius)
    surface = surface * (1 - opacity[..., None]) + badge * opacity[..., None]
    cover = body.cover[..., None]
    return canvas * (1 - cover) + surface * cover, (opacity > 0.5) & (body.cover > 0.5)


def _photograph(rng: Rng, canvas: Array) -> Array:
    """Light from one side, a tint, exposure and sensor noise; then 8 bits."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    side = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.16) * (x * np.cos(side) + y * np.sin(side))
    tint = rng.normal(1, 0.04, size=3) * rng.uniform(0.8, 1.12)
    lit = canvas * light[..., None] * tint + 0.015 * noise(rng, height, width, cell=(1, 1))[..., None]
    return (np.clip(lit, 0, 1) * 255 + 0.5).astype(np.uint8)
