"""Hashes of what a data set holds, quick enough to take at every start.

Contents are hashed once: a small file remembers each hash with the file's path, size and time of change.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pmm_ray.files import write_atomic, writing
from pmm_ray.places import Remote, is_url

_Objects = Mapping[str, Mapping[str, Any] | None]

DIGESTS = "digests"
"""The folder of a store for hashes of files."""
MEMORY = "content-*.json"
"""Files in there, with the hashes of one folder each."""

_THREADS = 8
_SETTLED = 2.0  # seconds; a file changed more recently may change again without a new time, so it is not remembered


def fingerprint(*parts: Any) -> str:
    """Hash of JSON-able values, 64 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


class ContentHashes:
    """Hashes of files by content, remembered in `memory` (a JSON file, which may be absent or stale or broken)."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = _remembered(memory)

    @classmethod
    def below(cls, folder: Path, *, cache: Path) -> ContentHashes:
        """Of the files in a folder, remembered in a file of its own in `cache`."""
        return cls(cache / MEMORY.replace("*", fingerprint(str(folder))[:12]))

    def of(self, paths: Iterable[str]) -> dict[str, str | OSError]:
        """path -> hash of its bytes (64 hex digits), or the error that kept it from being read.

        Raises:
            UserError: the memory cannot be written.
        """
        wanted = list(dict.fromkeys(paths))
        objects = _objects(wanted)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda path: self._object(path, objects) if path in objects else self._one(path), wanted)
            results = dict(zip(wanted, found, strict=True))
        new = {path: entry for path, (_, entry) in results.items() if entry and entry != self._known.get(path)}
        if new:
            # Another run may have written meanwhile. What it knew and this one does not is kept; a lost race between
            # reading and writing costs hashing again, nothing else.
            self._known = _remembered(self._memory) | self._known | new
            with writing(self._memory):
                write_atomic(self._memory, json.dumps(self._known))
        return {path: value for path, (value, _) in results.items()}

    def _one(self, path: str) -> tuple[str | OSError, list[Any] | None]:
        """The file's hash or error, and what to remember of it, if anything."""
        try:
            before = Path(path).stat()
            known = self._known.get(path)
            if known and known[:2] == [before.st_size, before.st_mtime_ns]:
                return known[2], known
            with Path(path).open("rb") as file:
                value = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return error, None
        settled = time.time() - before.st_mtime > _SETTLED
        return value, [before.st_size, before.st_mtime_ns, value] if settled else None

    def _object(self, path: str, objects: _Objects) -> tuple[str | OSError, list[Any] | None]:
        """The same of an object in storage, which has a tag of its own for its content."""
        entry = objects[path]
        if entry is None:
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path), None
        state = [entry["size"], entry.get("ETag") or entry.get("etag")]
        known = self._known.get(path)
        if known and known[:2] == state:
            return known[2], known
        try:
            value = hashlib.sha256(Remote(path).read_bytes()).hexdigest()
        except OSError as error:
            return error, None
        return value, [*state, value] if state[1] else None


def _objects(paths: Iterable[str]) -> _Objects:
    """What object storage says of each path that lies there, None of one that is missing; a request for each folder."""
    remote = {path: Remote(path) for path in paths if is_url(path)}
    folders = dict.fromkeys(where.parent for where in remote.values())
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = {where: entry for listed in pool.map(Remote.listed, folders) for where, entry in listed.items()}
    return {path: entries.get(where) for path, where in remote.items()}


def _remembered(memory: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(memory.read_bytes())
        return {path: entry for path, entry in known.items() if len(entry) == 3}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
