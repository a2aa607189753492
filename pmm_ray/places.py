"""Where files are: on a disk, or in object storage that a URL names (`s3://bucket/runs`). The only importer of fsspec.

`place` makes a path of either. A local one is a plain `pathlib.Path`. A URL becomes a `Remote`, which has the part of
pathlib's interface that this package uses, so that most code need not know which it was given; `pmm_ray.files` has the
rest. Object stores have no folders, no appending, no renaming and no locks, but an object is put whole or not at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, cast

from pmm_ray.errors import UserError


class StorageError(UserError):
    """The storage behind a URL cannot be used: no bucket, no credentials, no answer. No single file is to blame."""


def is_url(text: str) -> bool:
    """Whether a setting names object storage and not a local path."""
    return "://" in text and not text.startswith("file://")


def place(where: str | Path) -> Path:
    """A local path as a `Path`; a URL as a `Remote`, which is used like one. What is one of them already stays it.

    `~` is the user's home: no shell expands it in `store=~/runs`.
    """
    if not isinstance(where, str):
        return where
    if is_url(where):
        return cast(Path, Remote(where))
    path = Path(where.removeprefix("file://"))
    # a file may be named '~something' where there is no such user
    with suppress(RuntimeError):
        path = path.expanduser()
    return path


def below(root: Path, where: str) -> Path:
    """`root/where`; or `where` alone if it is a URL or an absolute path."""
    found = place(where)
    return found if is_url(where) or found.is_absolute() else root / found


class Remote(PurePosixPath):
    """A place in object storage; pickles as its URL.

    Whatever goes wrong is a StorageError, except that reading what is not there is a FileNotFoundError. Credentials and
    endpoint are those of the environment.
    """

    def __str__(self) -> str:
        """The URL."""
        text = super().__str__()
        return text.replace(":/", "://", 1) if self.parts and self.parts[0].endswith(":") else text

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is no file on this machine")

    @property
    def filesystem(self) -> Any:
        """The fsspec file system, one for each process: a fork must not use its parent's."""
        return _filesystem(self.parts[0].removesuffix(":"), os.getpid())

    @property
    def key(self) -> str:
        """What the file system calls it: 'bucket/runs'."""
        return "/".join(self.parts[1:])

    def resolve(self) -> Remote:
        """Itself, as it is absolute."""
        return self

    absolute = resolve

    def info(self) -> dict[str, Any]:
        """What the store says of it; 'type' is 'file' or 'directory' (anything below it).

        Raises:
            FileNotFoundError: there is nothing.
        """
        with self._reading() as files:
            return files.info(str(self))

    def exists(self) -> bool:
        """Whether there is an object of this name, or any below it."""
        return self._type() is not None

    def is_file(self) -> bool:
        """Whether it is an object."""
        return self._type() == "file"

    def is_dir(self) -> bool:
        """Whether there are objects below it, or it is a bucket."""
        return self._type() == "directory"

    def _type(self) -> str | None:
        try:
            return self.info()["type"]
        except FileNotFoundError:
            return None

    def read_bytes(self) -> bytes:
        """The whole object."""
        with self._reading() as files:
            return files.cat_file(str(self))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> Any:
        """A file that reads from the store what it is asked for and no more."""
        with self._reading() as files:
            return files.open(str(self), mode, cache_type="none")

    def iterdir(self) -> Iterator[Remote]:
        """What is directly below; nothing if there is no such place."""
        return iter(self.listed())

    def listed(self) -> dict[Remote, dict[str, Any]]:
        """What is directly below, with what the store says of each."""
        return self._entries(lambda files: {entry["name"]: entry for entry in files.ls(str(self), detail=True)})

    def all_files(self) -> dict[Remote, dict[str, Any]]:
        """All objects below, with what the store says of each."""
        return self._entries(lambda files: files.find(str(self), detail=True))

    def _entries(self, ask: Any) -> dict[Remote, dict[str, Any]]:
        try:
            with self._reading() as files:
                found, base = ask(files), files._strip_protocol(str(self)).strip("/")
        except FileNotFoundError:
            return {}
        names = {name: name.strip("/").removeprefix(base).strip("/") for name in found}
        return {self / names[name]: entry for name, entry in found.items() if names[name]}

    def glob(self, pattern: str) -> Iterator[Remote]:
        """What is directly below with a name that fits."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def write_bytes(self, data: bytes) -> None:
        """Put an object, whole or not at all."""
        with self._writing() as files:
            files.pipe_file(str(self), data)

    def put(self, file: Path) -> None:
        """Put a local file's content, whole or not at all."""
        with self._writing() as files:
            files.put_file(str(file), str(self))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object. A store may not tell whether there was one."""
        try:
            with self._reading() as files:
                files.rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Delete everything below."""
        with self._writing() as files, suppress(FileNotFoundError):
            files.rm(str(self), recursive=True)

    def check(self) -> None:
        """Raise StorageError unless its bucket is there and answers."""
        bucket = Remote(*self.parts[:2])
        with bucket._writing() as files:
            files.info(str(bucket))

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """The file system, whose errors inside the block become those of this class."""
        try:
            yield self.filesystem
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None
        except UserError:
            raise
        except Exception as error:
            raise self._error(error) from error

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """The same where nothing can be missing but the bucket."""
        with self._reading() as files:
            try:
                yield files
            except FileNotFoundError as error:
                raise self._error(error) from error

    def _error(self, error: Exception) -> StorageError:
        why = " ".join((str(error) or type(error).__name__).split())[:300]
        keys = ": AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL" if self.parts[0] == "s3:" else ""
        return StorageError(f"{self}: {why}; look at the name, the network and the credentials{keys}")


@cache
def _filesystem(protocol: str, process: int) -> Any:
    """The file system of this process. It remembers no listings, since other processes write too."""
    import fsspec

    try:
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        advice = "pip install s3fs" if protocol in ("s3", "s3a") else "install it"
        raise UserError(f"{protocol}://: {' '.join(str(error).split())}; {advice}") from None
    except ValueError as error:
        raise UserError(f"{protocol}://: {' '.join(str(error).split())}; use s3:// or a local path") from None
