"""Writing whole files or none: a reader never sees half of one, whenever the writer is killed.

All of this takes paths of `pmm_ray.places`, on a disk or in object storage.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmm_ray.errors import UserError
from pmm_ray.places import Remote


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary local name; the file there becomes `path` when the block ends without an error."""
    if isinstance(path, Remote):
        with tempfile.TemporaryDirectory(prefix="pmm_ray-") as folder:
            yield Path(folder, path.name)
            path.put(Path(folder, path.name))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(what: object) -> Iterator[None]:
    """An OSError of the block as the user's: `what`, a path or a setting with its value, cannot be written to."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{what}: cannot be written to ({error.strerror or error}); make room, correct its permissions, "
            "or give another place"
        ) from None


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, creating its folder."""
    content = data.encode() if isinstance(data, str) else data
    if isinstance(path, Remote):
        path.write_bytes(content)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def readable(path: Path) -> Path | io.BytesIO:
    """What a library that reads a path or a file is given: the local path, or the object's content.

    Raises:
        FileNotFoundError: there is no such object; of a local path the library tells that itself.
    """
    return io.BytesIO(path.read_bytes()) if isinstance(path, Remote) else path


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """The file itself, or for the time of the block a local copy of the same name."""
    if isinstance(path, Remote):
        with tempfile.TemporaryDirectory(prefix="pmm_ray-") as folder:
            copy = Path(folder, path.name)
            copy.write_bytes(path.read_bytes())
            yield copy
    else:
        yield path


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Object storage has none, and a misspelt bucket must not be made."""
    if not isinstance(path, Remote):
        path.mkdir(parents=True, exist_ok=True)


def remove_tree(path: Path) -> None:
    """Delete a folder with all that is in it, if it is there."""
    if isinstance(path, Remote):
        path.remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=True)
