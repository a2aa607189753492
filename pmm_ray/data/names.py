"""The images of a folder, their names, and finding what a list or a labels file means by a name.

Nothing here leaves its folder: names come from lists that others wrote, so they are looked up in a listing of the
folder and are never joined to a path.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import takewhile
from pathlib import Path, PurePosixPath

from pmm_ray.data.images import IMAGE_SUFFIXES
from pmm_ray.data.problems import Problems, shown, some
from pmm_ray.places import Remote

_LONGEST = 200  # bytes of a file name: room for a suffix and a temporary name within the usual limit of 255


class NotFoundInFolder(LookupError):  # noqa: N818
    """No image, or no single one, has the name that was asked for: the message is one line that says what to do."""


def stem(path: str) -> str:
    """A relative path without its image or mask suffix; dots elsewhere stay ('a.b.jpg' -> 'a.b')."""
    return path[: -len(PurePosixPath(path).suffix)] if PurePosixPath(path).suffix else path


def listing(folder: Path, suffixes: Collection[str], *, skip: Collection[Path] = ()) -> list[str]:
    """Files below `folder` with one of the suffixes (any case), sorted, as relative paths with '/'.

    Hidden files and folders (thumbnails, resource forks) and the folders in `skip` are left out. Links to folders
    below `folder` are not followed; `folder` itself may be one.
    """
    barred = {path.resolve() for path in skip}
    if isinstance(folder, Remote):
        return sorted(_objects(folder, suffixes, barred))
    found: list[str] = []
    folder = folder.resolve()
    for here, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".") and Path(here, f) not in barred]
        below = os.path.relpath(here, folder).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        found += [prefix + f for f in files if not f.startswith(".") and PurePosixPath(f).suffix.lower() in suffixes]
    return sorted(found)


def _objects(folder: Remote, suffixes: Collection[str], barred: set[Path]) -> Iterator[str]:
    """What `listing` finds in object storage, where one request tells a thousand names."""
    for file in folder.all_files():
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if not hidden and file.suffix.lower() in suffixes and barred.isdisjoint(takewhile(folder.__ne__, file.parents)):
            yield "/".join(parts)


def image_names(paths: Iterable[str], problems: Problems) -> dict[str, str]:
    """Relative path -> name of each image.

    A name is the path without its suffix; where two images share it (a.jpg and a.png) theirs keep the suffix, so a
    name is always one image. Files whose name no other tool could write are left out and noted in `problems`.
    """
    usable = []
    for path in paths:
        if why := _unusable(path):
            problems.add(path, why, group="file name cannot be used")
        else:
            usable.append(path)
    return _unique_names(usable)


class ImageIndex:
    """The images below a folder. `names` maps each relative path to the image's name; see `image_names`."""

    def __init__(self, folder: Path, problems: Problems, *, skip: Collection[Path] = ()) -> None:
        self.folder = folder
        self.names = image_names(listing(folder, IMAGE_SUFFIXES, skip=skip), problems)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_file: dict[str, list[str]] = defaultdict(list)
        for path in self.names:
            self._by_stem[stem(path)].append(path)
            base = PurePosixPath(path).name
            for key in {base, stem(base)}:
                self._by_file[key].append(path)

    def absolute(self, path: str) -> str:
        """The path of an image given relative to the folder; absolute if the folder is."""
        return str(self.folder / path)

    def find(self, entry: str) -> str:
        """The relative path of the image that `entry` names, with or without suffix.

        Raises:
            NotFoundInFolder: none or several fit, or the entry leads outside the folder.
        """
        return self._single(self._candidates(_inside(entry)))

    def find_anywhere(self, entry: str) -> str:
        """As `find`, but a bare file name may also be that of the only such image in a folder below."""
        name = _inside(entry)
        return self._single(self._candidates(name) or self._by_file.get(name, []))

    def _candidates(self, name: str) -> list[str]:
        if name in self.names:
            return [name]
        if name in self._by_stem:
            return self._by_stem[name]
        known_suffix = PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
        return self._by_stem.get(stem(name), []) if known_suffix else []

    def _single(self, candidates: list[str]) -> str:
        if not candidates:
            raise NotFoundInFolder(f"no such image in {shown(self.folder)}: restore it or take the entry off the list")
        if len(candidates) > 1:
            raise NotFoundInFolder(f"fits {some(candidates)} in {shown(self.folder)}: write the one that is meant")
        return candidates[0]


def _inside(entry: str) -> str:
    """A normalised relative path ('./a//b' -> 'a/b'); refuses one that leads elsewhere."""
    path = PurePosixPath(entry)
    if path.is_absolute() or ".." in path.parts:
        raise NotFoundInFolder("an absolute path or '..' in a list is not followed: write names below the image folder")
    return str(path)


def _unusable(path: str) -> str | None:
    try:
        length = max(len(part.encode()) for part in path.split("/"))
    except UnicodeEncodeError:
        return "the file name is not valid UTF-8: rename it"
    return f"the file name is {length} bytes long: rename it (at most {_LONGEST})" if length > _LONGEST else None


def _unique_names(paths: list[str]) -> dict[str, str]:
    names = {path: stem(path) for path in paths}
    while True:  # ends: a round turns names into paths, which are unique, or changes nothing
        counts = Counter(names.values())
        clashing = [path for path, name in names.items() if counts[name] > 1 and name != path]
        if not clashing:
            return names
        names.update((path, path) for path in clashing)
