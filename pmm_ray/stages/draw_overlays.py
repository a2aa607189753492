"""Overlay sheets of a few images: what the CAM saw, what the mask became, what is true."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from pmm_ray.artefacts import Artefact
from pmm_ray.config import MasksConfig
from pmm_ray.data.cams import full_size, read_cam
from pmm_ray.data.dataset import Photo, Photos, Truth
from pmm_ray.data.images import image_size, read_image, read_label
from pmm_ray.errors import UserError
from pmm_ray.masks.makers import PseudoMask
from pmm_ray.places import StorageError
from pmm_ray.report.overlays import Picture, common_aspect, contact_sheet, mask_panel, overlay_sheet, write_picture
from pmm_ray.stages.cam_files import cam_places
from pmm_ray.stages.make_masks import made_mask
from pmm_ray.stages.mask_files import mask_paths
from pmm_ray.stages.stage import Context, Facts


def draw_overlays(
    *,
    photos: Photos,
    cams: Artefact | None,
    masks: Artefact,
    folder: str,
    truth: Truth | None,
    count: int,
    context: Context,
    matting: MasksConfig | None = None,
) -> Facts:
    """Draw `count` of the images that have a mask; reruns, and other masks of the same images, show the same ones.

    Writes overlays/<name>.png for each and all of them as overlays/contact.png, and logs them; and each mask alone,
    small, as panels/<name>.png. An image that cannot be drawn is listed in the facts and stops nothing.

    Args:
        photos: the images that may be drawn.
        cams: artefact with their CAMs, or None for no CAM panel.
        masks: artefact with their masks in `folder`.
        folder: 'masks' or 'raw'.
        truth: ground truth, or None for no such panel.
        count: how many images.
        context: where to write and log.
        matting: the settings of the masks, where the maker is `matting`: for panels of trimap and mattes, which are
            made again as the mask stage keeps none. None: no such panels.

    Returns:
        {"pictures": names drawn, "failed": [[name, why], ...]}.
    """
    drawn, failed = draw_sheets(
        photos=photos, cams=cams, masks=masks, folder=folder, truth=truth, count=count, matting=matting
    )
    for name, sheet, panel in drawn:
        _log(sheet, _file_name(name), context)
        write_picture(panel, context.out / "panels" / f"{name}.png")
    if drawn:
        _log(contact_sheet(sheet for _, sheet, _ in drawn), "contact.png", context)
    return {"pictures": [name for name, _, _ in drawn], "failed": failed}


class Drawn(NamedTuple):
    """A photo's overlay sheet, and its mask alone, small: (h, w, 3) uint8 RGB each."""

    name: str
    sheet: Picture
    panel: Picture


def draw_sheets(
    *,
    photos: Photos,
    cams: Artefact | None,
    masks: Artefact,
    folder: str,
    truth: Truth | None,
    count: int,
    matting: MasksConfig | None = None,
) -> tuple[list[Drawn], list[list[str]]]:
    """The pictures that the stage writes, in the photos' order; and [name, why] of images that cannot be drawn."""
    of_mask = mask_paths(masks, folder)
    chosen = sample([photo for photo in photos.photos if photo.name in of_mask], count)
    places = [] if cams is None else cam_places(cams, photos)
    of_cam = {photo.name: place for photo, place in zip(photos.photos, places, strict=False)}
    aspect = common_aspect(sizes.values()) if (sizes := _sizes(chosen)) else None
    drawn: list[Drawn] = []
    failed: list[list[str]] = []
    for photo in chosen:
        place = of_cam.get(photo.name)
        true = None if truth is None else truth.masks.get(photo.name)
        try:
            cam = None if place is None or place.file is None else read_cam(place.file, place.row)
            image, mask = read_image(photo.image), read_label(of_mask[photo.name])
            scores, known = None, PseudoMask(mask)
            if cam is not None:
                scores = full_size(cam)
                known = known if matting is None else made_mask(image, scores, cam.class_ids, masks=matting)
            sheet = overlay_sheet(
                image,
                classes=photos.classes,
                cam=scores,
                class_ids=photo.labels if cam is None else cam.class_ids,
                trimap=known.trimap,
                mattes=known.mattes,
                mask=mask,
                truth=None if true is None else read_label(true),
                aspect=aspect,
                caption=photo.name,
            )
            panel = mask_panel(image, mask, classes=photos.classes)
        except StorageError:
            raise
        except (UserError, ValueError, OSError) as error:
            failed.append([photo.name, str(error)])
            continue
        drawn.append(Drawn(photo.name, sheet, panel))
    return drawn, failed


def _sizes(photos: Sequence[Photo]) -> dict[str, tuple[int, int]]:
    """Sizes (H, W) of the images that can be opened."""
    found = {}
    for photo in photos:
        with contextlib.suppress(UserError, ValueError, OSError):
            found[photo.name] = image_size(photo.image)
    return found


def sample(photos: Sequence[Photo], count: int) -> list[Photo]:
    """At most `count` photos, the same ones each time, in the list's order.

    Chosen by a hash of the name: a list is often sorted in a way that a regular step would fall in with.
    """
    chosen = sorted(photos, key=lambda photo: hashlib.sha256(photo.name.encode()).digest())[:count]
    return [photo for photo in photos if photo in chosen]


def _file_name(name: str) -> str:
    return f"{name}.png" if name != "contact" else "contact (photo).png"


def _log(sheet: Picture, name: str, context: Context) -> None:
    path = context.out / "overlays" / name
    write_picture(sheet, path)
    context.log.picture(path, f"overlays/{name}")
