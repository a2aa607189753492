"""From a list of names to a split: what every kind of data set does alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pmm_ray.data.dataset import Classes, Photo, Photos, Split, Truth
from pmm_ray.data.fingerprint import ContentHashes, fingerprint
from pmm_ray.data.images import IMAGE_KINDS, LABEL_SUFFIXES
from pmm_ray.data.labels import LabelTable
from pmm_ray.data.listing import listing
from pmm_ray.data.names import ImageIndex, NotFoundInFolder, NotRead, stem
from pmm_ray.data.palette import voc_palette
from pmm_ray.data.problems import Problems, shown, some
from pmm_ray.errors import UserError
from pmm_ray.places import StorageError, below

LabelsOf = Callable[[str, str], tuple[int, ...]]
"""(name, relative image path) -> ids; raises NoLabels."""


class NoLabels(LookupError):  # noqa: N818
    """An image has no class: the message says why and what to do."""


class Negative(NoLabels):
    """It is known to have none."""

    def __init__(self, why: str):
        super().__init__(f"{why}: label it, or leave it out; data.negatives=true trains on it as background alone")


@dataclass(frozen=True)
class Reader:
    """What is needed to read the splits of one data set. `limit` None: all images.

    `negatives`: an image that is known to have no class is one to train on.
    """

    classes: Classes
    hashes: ContentHashes
    problems: Problems
    limit: int | None
    negatives: bool

    def split(
        self, title: str, source: Path, entries: Iterable[str], index: ImageIndex, labels: LabelsOf, truth: Truth | None
    ) -> Split:
        """The split of the images that `entries` (lines of `source`) name, in their order, each once.

        What cannot be used is noted. An image without a class stays out, unless it is one of the `negatives`, or ground
        truth makes it good for evaluation in a split that is not trained on.
        """
        here = replace(self, problems=Problems())  # so that what an error names is a matter of this split
        photos = here._readable(here._photos(title, entries, index, labels, truth, source), source)
        if not photos:
            raise UserError(f"{shown(source)}: leaves no image to use for {title}; {here.problems.first()}")
        self.problems.update(here.problems)
        listed = tuple(photo for photo, _ in photos)
        identity = [(photo.name, photo.labels, content) for photo, content in photos]
        supervised = Photos(listed, self.classes, fingerprint(self.classes.names, identity))
        return Split(title, supervised, self._truth(title, supervised, truth))

    def _photos(
        self, title: str, entries: Iterable[str], index: ImageIndex, labels: LabelsOf, truth: Truth | None, source: Path
    ) -> list[Photo]:
        found: dict[str, Photo] = {}
        repeated: list[str] = []
        empty = True
        for entry in entries:
            empty = False
            if self.limit is not None and len(found) >= self.limit:
                break
            try:
                path = index.find(entry)
                name = index.names[path]
                if name in found:
                    repeated.append(name)
                    continue
                found[name] = Photo(name, index.absolute(path), labels(name, path))
            except NotFoundInFolder as error:
                self.problems.add(entry, str(error), group=f"not found, from {shown(source)}")
            except NoLabels as error:
                scored = title != "train" and truth is not None and name in truth.masks
                if scored or (self.negatives and isinstance(error, Negative)):
                    found[name] = Photo(name, index.absolute(path), ())
                else:
                    self.problems.add(name, str(error), group="without a class")
        if empty:
            raise UserError(f"{shown(source)}: is empty: it must name at least one image")
        if repeated:
            why = f"listed more than once in {shown(source)}; used once: take out the repetitions"
            self.problems.add(some(repeated), why, group="repeated")
        return list(found.values())

    def _readable(self, photos: list[Photo], source: Path) -> list[tuple[Photo, str]]:
        """Photos with the hash of their file."""
        hashes = self.hashes.of(photo.image for photo in photos)
        readable = []
        for photo in photos:
            content = hashes[photo.image]
            if isinstance(content, str):
                readable.append((photo, content))
            else:
                why = f"{shown(photo.image)} cannot be read ({content.strerror}): correct its permissions or restore it"
                self.problems.add(photo.name, why, group=f"not readable, from {shown(source)}")
        return readable

    def _truth(self, title: str, photos: Photos, truth: Truth | None) -> Truth | None:
        """The part of `truth` that belongs to `photos`, fingerprinted by its content."""
        if truth is None:
            return None
        names = [photo.name for photo in photos.photos]
        have = [name for name in names if name in truth.masks]
        if len(have) < len(names):
            missing = [name for name in names if name not in truth.masks]
            why = f"no mask in {truth.protocol} for these {len(missing)} of {len(names)} {title} images: not evaluated"
            self.problems.add(some(missing), why, group="without ground truth")
        if not have:
            return None
        if not isinstance(truth.masks, dict):  # masks that are made when asked for: their source is already in the hash
            return Truth(truth.masks, truth.protocol, fingerprint(truth.fingerprint, truth.protocol, have))
        masks = {name: truth.masks[name] for name in have}
        contents = self.hashes.of(masks.values())
        identity = [(name, str(contents[path])) for name, path in masks.items()]
        return Truth(masks, truth.protocol, fingerprint(truth.protocol, identity))


def make_classes(names: tuple[str, ...]) -> Classes:
    """Classes 1..C with the background before them and VOC's colours."""
    return Classes(("background", *names), voc_palette(len(names) + 1))


def mask_folder(root: Path, folder: str | None, problems: Problems) -> Truth | None:
    """The masks below `root/folder` by name, as truth that is not fingerprinted yet; None, with a note, without any."""
    if folder is None:
        return None
    path = below(root, folder)
    if not path.is_dir():
        why = f"{shown(path)} does not exist: no ground truth, evaluation is skipped; set data.masks"
        problems.add(folder, why, group="no ground truth")
        return None
    files = reversed(listing(path, LABEL_SUFFIXES))  # so that of x.png and x.tif the PNG is kept
    masks = {stem(file): str(path / file) for file in files}
    return Truth(masks, folder, "")


def labels_for(
    table: LabelTable, index: ImageIndex, problems: Problems, source: Path, *, others: Sequence[ImageIndex] = ()
) -> LabelsOf:
    """Looks labels up in a table read from `source`, matching its keys to the images.

    Keys that match no image here, nor in `others`, are noted.

    Raises:
        UserError: no key matches any.
    """
    by_name: dict[str, tuple[int, ...]] = {}
    unknown: dict[str, NotFoundInFolder] = {}
    for key, ids in table.labels.items():
        try:
            name = index.names[index.find_anywhere(key)]
        except NotFoundInFolder as error:
            if not any(_holds(other, key) for other in others):
                unknown[key] = error
        else:
            by_name[name] = tuple(sorted({*by_name.get(name, ()), *ids}))
    if len(unknown) == len(table.labels):
        key, why = next(iter(unknown.items()))
        raise UserError(
            f"data.labels={shown(source)}: its names match no image of {shown(index.folder)}: write them as the images "
            f"are called, such as {shown(next(iter(index.names)))} ({shown(key)}: {str(why).partition(':')[0]})"
        )
    for key, why in unknown.items():
        if not isinstance(why, NotRead):
            problems.add(key, f"{why}; labelled in {shown(source)}", group=f"labelled in {shown(source)} and not found")
    return lookup(by_name, source)


def _holds(index: ImageIndex, key: str) -> bool:
    try:
        index.find_anywhere(key)
    except NotFoundInFolder:
        return False
    return True


def lookup(by_name: Mapping[str, tuple[int, ...]], source: Path) -> LabelsOf:
    """Labels of images by name, as `source` gives them."""

    def labels(name: str, path: str) -> tuple[int, ...]:
        if name not in by_name:
            raise NoLabels(f"is not in {shown(source)}: label it or leave it out")
        if not by_name[name]:
            raise Negative(f"has no class in {shown(source)}")
        return by_name[name]

    return labels


def read_list(path: Path, key: str) -> list[str]:
    """The lines of a text list without blank ones. `key` is the setting that names the file.

    Raises:
        UserError: missing, not UTF-8, or empty.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: no such list: set {key} (a path below data.root; null: none)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown(path)}: cannot be read ({shown(error)}): set {key} to a text file in UTF-8") from None
    entries = [line.strip() for line in lines if line.strip()]
    if not entries:
        raise UserError(f"{shown(path)}: is empty: it must name at least one image per line")
    return entries


def image_index(root: Path, folder: str, key: str, problems: Problems, *, skip: Collection[Path]) -> ImageIndex:
    """The images of `root/folder`, of which there must be some. `key` is the setting that names the folder."""
    path = _image_folder(root, folder, key)
    index = ImageIndex(path, problems, skip=skip)
    if not index.names:
        first = f" ({problems.first()})" if problems.first() else ""
        raise UserError(f"{shown(path)}: holds no image ({IMAGE_KINDS}): set {key} to the images' folder{first}")
    return index


def labels_file(root: Path, labels: str) -> Path:
    """`root/labels`; if it is not there but near, UserError that says so."""
    path = below(root, labels)
    if not path.is_file() and (near := _near(root, labels, lambda found: found.is_file())):
        advice = f"set data.root={shown(near)}, where it is, or data.labels to its absolute path"
        raise UserError(f"{shown(path)}: no such labels file: {advice}")
    return path


def _image_folder(root: Path, folder: str, key: str) -> Path:
    path = below(root, folder)
    if not root.is_dir():
        raise UserError(f"{shown(root)}: no such folder: set data.root to the data set")
    if not path.is_dir():
        if near := _near(root, folder, lambda found: found.is_dir()):
            raise UserError(f"{shown(path)}: no such folder: set data.root={shown(near)}, where it is")
        raise UserError(f"{shown(path)}: no such folder: set {key} to the images' folder below data.root ('.': itself)")
    return path


def _near(root: Path, name: str, fits: Callable[[Path], bool]) -> Path | None:
    """The first folder in `root`, or that above it, in which there is a `name` that fits."""
    with suppress(OSError, StorageError):  # of what cannot be looked into, such as the place above a bucket
        folders = (folder for folder in (*sorted(root.iterdir()), root.parent) if folder.is_dir())
        return next((folder for folder in folders if fits(folder / name)), None)
    return None
