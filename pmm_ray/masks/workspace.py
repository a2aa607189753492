"""Memory that the CRF engine uses again from image to image: fresh pages cost more than the work on them."""

from __future__ import annotations

from collections import deque
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_KEPT_BYTES = 1 << 28
"""A workspace that grew beyond this, by one enormous image, is not kept."""


class Workspace:
    """Named arrays with no particular content. An array is valid until its name is asked for again."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An uninitialised C-ordered array of this shape, in the memory that last had this name where it is enough."""
        size = prod(shape) * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            # some room more, since the next image is often a little larger
            buffer = self._buffers[name] = np.empty(size + size // 8, np.uint8)
        return buffer[:size].view(dtype).reshape(shape)

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(len(buffer) for buffer in self._buffers.values())


_idle: deque[Workspace] = deque(maxlen=4)


def borrow() -> Workspace:
    """A workspace for one user alone, who gives it back when done."""
    try:
        return _idle.pop()
    except IndexError:
        return Workspace()


def give_back(workspace: Workspace) -> None:
    """Let the next user have it."""
    if workspace.size <= _KEPT_BYTES:
        _idle.append(workspace)
