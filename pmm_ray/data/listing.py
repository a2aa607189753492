"""The files below a folder, on a disk or in object storage, without what this package left there."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from itertools import takewhile
from pathlib import Path, PurePosixPath

from pmm_ray.data.fingerprint import DIGESTS, MEMORY
from pmm_ray.places import Remote

PREDICTED = ("predict.json", "classes.json")
"""The files that mark a folder of masks by `pmm_ray.predict`."""


def listing(folder: Path, suffixes: Collection[str], *, skip: Collection[Path] = ()) -> list[str]:
    """Files below `folder` with one of the suffixes (any case), sorted, as relative paths with '/'; see `walk`."""
    return with_suffix(walk(folder, skip=skip)[0], suffixes)


def with_suffix(paths: Iterable[str], suffixes: Collection[str]) -> list[str]:
    """Those of the paths that end in one of the suffixes, in upper or lower case."""
    return [path for path in paths if PurePosixPath(path).suffix.lower() in suffixes]


def walk(folder: Path, *, skip: Collection[Path] = ()) -> tuple[list[str], list[str]]:
    """All files below `folder`, and the links to folders there, both sorted, as relative paths with '/'.

    Hidden files and folders (thumbnails, resource forks) and the folders in `skip` are left out, and so is what this
    package wrote: outputs of `pmm_ray.predict` and stores of runs, whose masks are named like the photos. Links to
    folders are not followed; `folder` itself may be one, and may be an output.
    """
    barred = {path.resolve() for path in skip}
    if isinstance(folder, Remote):
        return sorted(_objects(folder, barred)), []
    files: list[str] = []
    links: list[str] = []
    folder = folder.resolve()
    for here, folders, names in os.walk(folder):
        at = Path(here)
        if at != folder and _is_output(at, folders, names):
            folders.clear()
            continue
        folders[:] = [f for f in folders if not f.startswith(".") and at / f not in barred]
        prefix = "" if at == folder else f"{at.relative_to(folder).as_posix()}/"
        files += [prefix + name for name in names if not name.startswith(".")]
        links += [prefix + f for f in folders if (at / f).is_symlink() and (at / f).resolve() not in barred]
    return sorted(files), sorted(links)


def _is_output(folder: Path, folders: Collection[str], files: Collection[str]) -> bool:
    """Whether `pmm_ray.predict` or a run wrote this folder, which has these folders and files."""
    return set(PREDICTED).issubset(files) or (DIGESTS in folders and any((folder / DIGESTS).glob(MEMORY)))


def _objects(folder: Remote, barred: set[Path]) -> list[str]:
    """The files that `walk` finds in object storage, where one request tells a thousand names."""
    found = {file: PurePosixPath(*file.relative_to(folder).parts) for file in folder.all_files()}
    outputs = _outputs(set(found.values()))
    return [
        str(path)
        for file, path in found.items()
        if not any(part.startswith(".") for part in path.parts)
        and barred.isdisjoint(takewhile(folder.__ne__, file.parents))
        and outputs.isdisjoint(path.parents)
    ]


def _outputs(files: set[PurePosixPath]) -> set[PurePosixPath]:
    """The folders that `_is_output` knows, told by all files."""
    predicted = {f.parent for f in files if f.name == PREDICTED[0] and f.with_name(PREDICTED[1]) in files}
    stores = {f.parent.parent for f in files if f.parent.name == DIGESTS and f.match(MEMORY)}
    return (predicted | stores) - {PurePosixPath(".")}
