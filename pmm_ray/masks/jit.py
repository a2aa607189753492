"""How the CRF engine is compiled: by numba, once per machine and version of the engine, for all its processes.

So is what a library compiles when it is imported, inside `kept`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import UserProvidedCacheLocator

_ENGINE = ("jit", "vectors", "lattice", "meanfield")
"""The files whose code ends up in compiled functions."""
_OWN_THREADS = {"THREADING_LAYER": "workqueue"}
"""Numba's, whenever they start: those of OpenMP, which torch uses too, stay as many as they were."""


@cache
def cache_folder(library: str | None = None) -> Path | None:
    """Where compiled functions are kept, or None where no folder can be written: the engine's, or those of `library`.

    The engine's is named after its source: numba looks at the file of a function alone, not at those of the functions
    that it calls, and so would use stale code after an update.
    """
    digest = hashlib.sha256()
    for name in _ENGINE:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    for root in _roots():
        folder = root / (library or f"crf-{digest.hexdigest()[:16]}")
        with contextlib.suppress(OSError):
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            # others could plant code there, or, were only the root theirs, exchange the folder later
            if all(place.lstat().st_uid == os.getuid() for place in (root, folder)) and os.access(folder, os.W_OK):
                return folder
    return None


def _roots() -> Iterator[Path]:
    """Where the cache may lie, the best first."""
    # without a home for users that the system does not know: containers run under any number
    with contextlib.suppress(RuntimeError):
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pmm_ray"
    yield Path(tempfile.gettempdir()) / f"pmm_ray-{os.getuid()}"


class ByContent(UserProvidedCacheLocator):  # type: ignore[misc]
    """Keeps compiled functions in one folder, wherever the package lies: Ray unpacks a job's copy anywhere."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        """The same for every file; functions are told apart by module, name and line."""
        return "functions"


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called, or load what another process compiled. It releases the GIL."""
    with kept():
        # numpy's error model: a test for division by zero would keep loops from becoming vector instructions.
        return numba.njit(cache=cache_folder() is not None, nogil=True, error_model="numpy")(function)


@contextlib.contextmanager
def kept(library: str | None = None) -> Iterator[None]:
    """Inside the block, functions that ask numba for a cache get `cache_folder(library)`, where there is one.

    Numba's own choice for a library is beside its source, or in a home: places that a job may be unable to write.
    """
    folder = cache_folder(library)
    inside = dict(_OWN_THREADS)
    if folder is not None:
        inside |= {"CACHE_DIR": str(folder), "CACHE_LOCATOR_CLASSES": f"{__name__}.{ByContent.__name__}"}
    with _configured(inside):
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block, a library's functions for several threads have one, as an actor has one CPU."""
    with _configured(_OWN_THREADS):
        before = numba.get_num_threads()  # starts them
    numba.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(before)


@contextlib.contextmanager
def _configured(values: Mapping[str, str]) -> Iterator[None]:
    """Numba's settings for the time of the block."""
    config: Any = numba.config
    before = {name: getattr(config, name) for name in values}
    for name, value in values.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@contextlib.contextmanager
def one_process_at_a_time() -> Iterator[None]:
    """Hold the machine's lock on compiling: who comes second finds everything compiled."""
    folder = cache_folder()
    if folder is None:
        yield
        return
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
