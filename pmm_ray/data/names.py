"""The images of a folder, their names, and finding what a list or a labels file means by a name.

Nothing here leaves its folder: names come from lists that others wrote, so they are looked up in a listing of the
folder and are never joined to a path.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from pmm_ray.data.images import IMAGE_SUFFIXES, UNREAD, UNREAD_SUFFIXES
from pmm_ray.data.listing import walk, with_suffix
from pmm_ray.data.problems import Problems, shown, some

_LONGEST = 200  # bytes of a file name: room for a suffix and a temporary name within the usual limit of 255


class NotFoundInFolder(LookupError):  # noqa: N818
    """No image, or no single one, has the name that was asked for: the message is one line that says what to do."""


class NotRead(NotFoundInFolder):
    """There is a photo of that name, but of a kind that is not read, which was noted when the folder was listed."""


def stem(path: str) -> str:
    """A relative path without its image or mask suffix; dots elsewhere stay ('a.b.jpg' -> 'a.b')."""
    return path[: -len(PurePosixPath(path).suffix)] if PurePosixPath(path).suffix else path


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
    """The images below a folder. `names` maps each relative path to the image's name; see `image_names`.

    Photos of kinds that are not read, and linked folders, are noted in `problems`.
    """

    def __init__(self, folder: Path, problems: Problems, *, skip: Collection[Path] = ()) -> None:
        self.folder = folder
        self._roots = {str(folder), str(folder.resolve())}
        files, links = walk(folder, skip=skip)
        self.names = image_names(_photos(with_suffix(files, IMAGE_SUFFIXES)), problems)
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_file: dict[str, list[str]] = defaultdict(list)
        for path in self.names:
            self._by_path[_composed(path)].append(path)
            self._by_stem[_composed(stem(path))].append(path)
            base = _composed(PurePosixPath(path).name)
            for key in {base, stem(base)}:
                self._by_file[key].append(path)
        # A camera's raw file beside its JPEG is no loss.
        unread = [path for path in with_suffix(files, UNREAD_SUFFIXES) if _composed(stem(path)) not in self._by_stem]
        self._unread = {_composed(name): path for path in unread for name in (stem(path), path)}
        _note(unread, links, problems)

    def absolute(self, path: str) -> str:
        """The path of an image given relative to the folder; absolute if the folder is."""
        return str(self.folder / path)

    def find(self, entry: str) -> str:
        """The relative path of the image that `entry` names, with or without suffix.

        Raises:
            NotFoundInFolder: none or several fit, or the entry leads outside the folder.
        """
        name = self._inside(entry)
        return self._single(self._candidates(name), name)

    def find_anywhere(self, entry: str) -> str:
        """As `find`, but a bare file name may also be that of the only such image in a folder below."""
        name = self._inside(entry)
        return self._single(self._candidates(name) or self._by_file.get(_composed(name), []), name)

    def _candidates(self, name: str) -> list[str]:
        if name in self.names:
            return [name]
        if found := self._by_path.get(_composed(name)):
            return found
        known_suffix = PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
        for start in (name, stem(name)) if known_suffix else (name,):
            if found := self._by_stem.get(_composed(start)):
                return [path for path in found if stem(path) == start] or found
        return []

    def _inside(self, entry: str) -> str:
        """A normalised path below the folder ('./a//b' -> 'a/b'); refuses one that leads elsewhere."""
        path = PurePosixPath(entry)
        # Windows writes so; elsewhere it may be part of a name.
        if "\\" in entry and not self._candidates(entry) and entry not in self._by_file:
            path = PurePosixPath(entry.replace("\\", "/"))
        for root in self._roots:
            if path.is_relative_to(root):
                path = path.relative_to(root)
        if path.is_absolute() or ".." in path.parts:
            raise NotFoundInFolder(f"leads out of {shown(self.folder)}: write names below that folder")
        return str(path)

    def _single(self, candidates: list[str], name: str) -> str:
        if not candidates and (unread := self._unread.get(_composed(name))):
            raise NotRead(f"{PurePosixPath(unread).suffix.lower()} {UNREAD}")
        if not candidates:
            raise NotFoundInFolder(f"no such image in {shown(self.folder)}: restore it or take the entry off the list")
        if len(candidates) > 1:
            raise NotFoundInFolder(f"fits {some(candidates)} in {shown(self.folder)}: write the one that is meant")
        return candidates[0]


def _photos(images: list[str]) -> list[str]:
    """The images without any GIF beside one of the same stem, whose mask or preview it is."""
    gifs = set(with_suffix(images, {".gif"}))
    stems = {stem(path) for path in images if path not in gifs}
    return [path for path in images if path not in gifs or stem(path) not in stems]


def _note(unread: Iterable[str], links: Iterable[str], problems: Problems) -> None:
    """Say what of a folder is not read, a line for each kind."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in unread:
        kinds[PurePosixPath(path).suffix.lower()].append(path)
    for suffix, paths in kinds.items():
        problems.add(some(paths), f"{suffix} {UNREAD}", group="of another kind", count=len(paths))
    for link in links:
        problems.add(link, "a link to a folder is not followed: copy the folder, or name it itself", group="links")


def _composed(path: str) -> str:
    """A path in the form in which names are compared: macOS writes 'é' as two characters, most others as one."""
    return unicodedata.normalize("NFC", path)


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
