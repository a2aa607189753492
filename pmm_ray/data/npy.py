"""Reading other people's pickled `.npy` dictionaries without running what a pickle may hold.

`numpy.load(allow_pickle=True)` executes any code a file asks for. The unpickler here builds plain data: numpy arrays
and numbers, dictionaries, lists, strings, and (as IRN writes them) torch tensors, which arrive as arrays.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pmm_ray.data.problems import shown
from pmm_ray.errors import UserError
from pmm_ray.places import place


def read_npy_dict(path: str | Path) -> dict[Any, Any]:
    """The dictionary that `numpy.save(path, dictionary)` wrote, at any pickle protocol.

    Raises:
        UserError: missing, cut off, no pickled dictionary, or with anything beyond plain data inside.
    """
    try:
        data = place(path).read_bytes()
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror}): restore it") from None
    try:
        value = _unpickle(data)
    except pickle.UnpicklingError as error:
        raise UserError(f"{shown(path)}: {shown(error)}") from None
    except Exception as error:  # a broken pickle raises almost anything
        raise UserError(f"{shown(path)}: not a readable .npy dictionary ({shown(error)}): write it again") from None
    if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 0:
        value = value.item()
    if not isinstance(value, dict):
        raise UserError(f"{shown(path)}: holds {type(value).__name__}, not a dictionary written by numpy.save")
    return value


def _unpickle(data: bytes) -> Any:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read_header(stream)
    if not dtype.hasobject:
        raise pickle.UnpicklingError(f"holds a plain {dtype} array, not a dictionary")
    return _plain(_PlainUnpickler(stream, encoding="latin1").load())


class _PlainUnpickler(pickle.Unpickler):
    """Knows the few constructors of plain data, by name, and puts harmless ones of its own in their place."""

    def find_class(self, module: str, name: str) -> Any:
        """The constructor that stands for `module.name`."""
        known = _CONSTRUCTORS.get((module.replace("numpy.core.", "numpy._core."), name))
        if known is None:
            raise pickle.UnpicklingError(
                f"asks for {module}.{name}, which is refused: only arrays, dictionaries, numbers and strings are read"
            )
        return known


class _Dtype:
    """Stands for numpy.dtype: simple types only, of either byte order."""

    def __init__(self, spec: str = "O", align: bool = False, copy: bool = False) -> None:
        self.dtype = np.dtype(str(spec))
        if self.dtype.kind not in "biufSUO":
            raise pickle.UnpicklingError(f"holds an array of type {self.dtype}, which is not read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray, and is made one by `_plain` when all is read."""

    value: np.ndarray[Any, Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.value = _array(content, kind, shape, "F" if fortran else "C")


def _array(content: Any, kind: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray[Any, Any]:
    if kind.dtype.kind == "O":
        flat = np.empty(len(content), object)
        flat[:] = [_plain(item) for item in content]
    else:
        flat = np.frombuffer(_raw(content), kind.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C").copy()


def _raw(data: bytes | str) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else data  # text: written by Python 2


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(kind: _Dtype, data: bytes | str) -> Any:
    return np.frombuffer(_raw(data), kind.dtype, count=1)[0]


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"asks for the codec {shown(encoding)}, which is refused")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # what old protocols call to make empty bytes


def _plain(value: Any) -> Any:
    """The value with every stand-in made what it stands for."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _storage(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object) -> Any:
    import torch

    every = torch.tensor([], dtype=storage.dtype).set_(storage)
    # set_ with a shape would lengthen the storage to it, by whatever is in memory; as_strided refuses
    return every.as_strided(tuple(size), tuple(stride), offset).clone().numpy()


_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _array,
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
