from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from pmm_ray.data.npy import read_npy_dict
from pmm_ray.errors import UserError


def save(path, value, protocol):
    """As numpy.save does for an object, at a pickle protocol of one's choice."""
    array = np.empty((), object)
    array[()] = value
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(array, file, protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_numbers_and_strings_come_back_at_every_protocol(tmp_path, protocol):
    value = {
        "maps": np.arange(6, dtype=np.float16).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big endian": np.array([1, 2], ">i4"),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        np.int64(3): np.float32(0.5),
        "list": [1, 2.5, "x", None, True, (1, 2)],
        "nested": OrderedDict(a=np.array(["x", "yz"])),
        "objects": np.array([1, "x", None], object),
    }
    found = read_npy_dict(save(tmp_path / "x.npy", value, protocol))
    assert list(found) == list(value)
    for key, wanted in value.items():
        if isinstance(wanted, np.ndarray):
            np.testing.assert_array_equal(found[key], wanted)
            assert found[key].dtype == wanted.dtype
        elif key == "nested":
            assert found[key]["a"].tolist() == ["x", "yz"]
        else:
            assert found[key] == wanted


def test_what_numpy_save_writes_is_read_and_the_arrays_are_writable(tmp_path):
    np.save(tmp_path / "x.npy", {0: np.ones((2, 2), np.float32)})
    found = read_npy_dict(tmp_path / "x.npy")
    found[0][0, 0] = 5
    np.testing.assert_array_equal(found[0], [[5, 1], [1, 1]])


def test_torch_tensors_arrive_as_arrays(tmp_path):
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    np.save(tmp_path / "x.npy", {"cam": tensor[:, :, ::2], "keys": torch.tensor([3, 5])})
    found = read_npy_dict(tmp_path / "x.npy")
    np.testing.assert_array_equal(found["cam"], tensor[:, :, ::2].numpy())
    assert found["keys"].tolist() == [3, 5]


class Rebuilt:
    """Pickles as a tensor of this shape over four numbers."""

    def __init__(self, *, offset=0, size, stride):
        self.shape = offset, size, stride

    def __reduce__(self):
        storage = torch.arange(4.0).storage()
        return torch._utils._rebuild_tensor_v2, (storage, *self.shape, False, OrderedDict())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    "shape",
    [
        {"size": (1000, 1000), "stride": (1000, 1)},
        {"size": (10**5, 10**5), "stride": (10**5, 1)},
        {"size": (2, 2), "stride": (2, 1), "offset": 1},
        {"size": (2,), "stride": (4,)},
        {"size": (), "stride": (), "offset": 4},
        {"size": (2,), "stride": (-1,), "offset": 1},
        {"size": (2,), "stride": (1,), "offset": -1},
    ],
)
def test_a_tensor_beyond_its_numbers_is_refused(tmp_path, shape):
    path = save(tmp_path / "x.npy", {"cam": Rebuilt(**shape)}, 4)
    with pytest.raises(UserError, match=r"x\.npy: not a readable") as caught:
        read_npy_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_tensor_that_ends_with_its_numbers_or_has_none_is_read(tmp_path):
    shapes = {
        "whole": Rebuilt(size=(2, 2), stride=(1, 2)),
        "last": Rebuilt(size=(), stride=(), offset=3),
        "empty": Rebuilt(size=(0, 9), stride=(9, 1)),
    }
    found = read_npy_dict(save(tmp_path / "x.npy", shapes, 4))
    assert found["whole"].tolist() == [[0, 2], [1, 3]] and found["last"] == 3 and found["empty"].shape == (0, 9)


class Harmful:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", ["system", "eval", "open", "numpy.load", "getattr", "codec"])
def test_nothing_in_a_pickle_is_run(tmp_path, kind, protocol):
    import codecs

    target = tmp_path / "harm"
    harm = {
        "system": Harmful(os.system, f"touch {target}"),
        "eval": Harmful(eval, f"open({str(target)!r}, 'w')"),
        "open": Harmful(open, str(target), "w"),
        "numpy.load": Harmful(np.load, str(target)),
        "getattr": Harmful(getattr, "x", "upper"),
        "codec": Harmful(codecs.encode, "x", "rot13"),
    }[kind]
    path = save(tmp_path / "evil.npy", {"a": [1, harm]}, protocol)
    with pytest.raises(UserError, match=r"evil\.npy.*refused") as caught:
        read_npy_dict(path)
    assert not target.exists()
    assert "\n" not in str(caught.value)


def test_structured_and_date_arrays_are_refused(tmp_path):
    for dtype in ([("a", "i4")], "M8[s]"):
        np.save(tmp_path / "x.npy", {"a": np.zeros(2, dtype)})
        with pytest.raises(UserError, match=r"x\.npy"):
            read_npy_dict(tmp_path / "x.npy")


def test_files_that_are_no_dictionary_are_named(tmp_path):
    whole = tmp_path / "whole.npy"
    np.save(whole, {"a": np.ones((50, 50))})
    (tmp_path / "cut.npy").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "text.npy").write_text("no")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.ones((2, 2)))
    np.save(tmp_path / "list.npy", np.array([1, "x"], object))
    for name in ("cut", "text", "empty", "array", "list", "absent"):
        with pytest.raises(UserError, match=rf"{name}\.npy"):
            read_npy_dict(tmp_path / f"{name}.npy")
