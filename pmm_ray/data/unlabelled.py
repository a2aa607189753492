"""Photos of which nothing is known: a folder of images, a list of them, or one."""

from __future__ import annotations

import codecs
import os
from collections.abc import Collection
from pathlib import Path

from pmm_ray.data.dataset import Photo
from pmm_ray.data.images import IMAGE_KINDS, IMAGE_SUFFIXES, UNREAD, UNREAD_SUFFIXES
from pmm_ray.data.names import ImageIndex, image_names
from pmm_ray.data.problems import Problems, shown
from pmm_ray.data.splits import read_list
from pmm_ray.errors import UserError
from pmm_ray.places import Remote, below


def read_photos(where: Path, problems: Problems, *, skip: Collection[Path] = ()) -> tuple[Photo, ...]:
    """The images that `where` (absolute) names, without labels; no image is opened.

    A folder: all images below it but in the folders `skip`, named by their paths there. An image: itself. Any other
    file: a list with the path of an image per line, relative to the list's folder, absolute or a URL. Images below that
    folder are named by their paths there, others by their whole path. What cannot be used is noted in `problems`.

    Raises:
        UserError: there is nothing of that name, or no image in it.
    """
    if where.is_dir():
        index = ImageIndex(where, problems, skip=skip)
        files = {path: index.absolute(path) for path in index.names}
        names = index.names
    elif not where.is_file():
        raise UserError(f"{shown(where)}: no such folder, image or list of images")
    else:
        files = {where.name: str(where)} if where.suffix.lower() in IMAGE_SUFFIXES else _listed(where, problems)
        names = image_names(files, problems)
    if not names:
        first = f"; {problems.first()}" if problems.first() else ""
        raise UserError(f"{shown(where)}: holds no image ({IMAGE_KINDS}){first}")
    return tuple(Photo(name, files[path], ()) for path, name in names.items())


def _listed(file: Path, problems: Problems) -> dict[str, str]:
    """Relative path, by which an image is named -> its path."""
    if file.suffix.lower() in UNREAD_SUFFIXES:
        raise UserError(f"{shown(file)}: {file.suffix.lower()} {UNREAD}")
    if not _is_text(file):
        raise UserError(f"{shown(file)}: is no image ({IMAGE_KINDS}) and no text file with the path of one per line")
    found: dict[str, str] = {}
    for entry in read_list(file, "PHOTOS"):
        path = below(file.parent, entry)
        if not isinstance(path, Remote):
            path = Path(os.path.normpath(path))
        relative = _relative(path, file.parent)
        # A mask goes where its name says, which must be below the folder of masks.
        if ".." in relative.split("/"):
            problems.add(entry, "'..' in a URL is not followed: write the path itself", group="not followed")
        elif found.setdefault(relative, str(path)) != str(path):
            problems.add(entry, f"would have the name of {shown(found[relative])}: list one of them", group="same name")
    return found


def _is_text(file: Path) -> bool:
    """Whether a file begins as text does, in UTF-8."""
    try:
        with file.open("rb") as opened:
            start = codecs.getincrementaldecoder("utf-8")().decode(opened.read(1 << 16))
    except UnicodeDecodeError:
        return False
    except OSError:
        return True  # which reading it will tell
    return "\0" not in start


def _relative(path: Path, folder: Path) -> str:
    if path.is_relative_to(folder):
        return "/".join(path.relative_to(folder).parts)
    return path.key if isinstance(path, Remote) else str(path).lstrip("/")
