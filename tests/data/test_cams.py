from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pmm_ray.data.cams import Cam, full_size, read_cam, read_npy_cam, write_cams
from pmm_ray.errors import UserError


def make_cam(name="x", ids=(2, 5), size=(3, 4), image=(10, 13), seed=0):
    maps = np.random.default_rng(seed).random((len(ids), *size)).astype(np.float16)
    return Cam(name, tuple(ids), maps, *image)


def test_cams_come_back_bit_for_bit_in_any_order(anywhere):
    cams = [make_cam("a"), make_cam("über/b c", ids=(20,), size=(7, 1), seed=1), make_cam("c", ids=(), size=(2, 2))]
    write_cams(anywhere / "part.parquet", cams)
    for row, cam in reversed(list(enumerate(cams))):
        found = read_cam(str(anywhere / "part.parquet"), row)
        assert (found.name, found.class_ids, found.height, found.width) == (cam.name, cam.class_ids, 10, 13)
        assert found.cam.dtype == np.float16
        np.testing.assert_array_equal(found.cam, cam.cam)


def test_each_image_is_a_row_group_of_half_floats(tmp_path):
    write_cams(tmp_path / "x.parquet", [make_cam("a"), make_cam("b")])
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert file.num_row_groups == 2
    assert str(file.schema_arrow.field("cam").type) == "list<element: halffloat>"
    assert file.schema_arrow.names == ["name", "class_ids", "cam", "cam_height", "cam_width", "height", "width"]


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(AttributeError):
        write_cams(tmp_path / "x.parquet", [make_cam("a"), None])
    assert list(tmp_path.iterdir()) == []


def test_maps_and_ids_must_agree():
    with pytest.raises(ValueError, match="x"):
        Cam("x", (1,), np.zeros((2, 3, 4), np.float16), 3, 4)


@pytest.mark.parametrize("size", [(3, 4), (1, 1), (10, 13), (5, 13)])
def test_full_size_is_bilinear_with_aligned_pixel_centres(size):
    cam = make_cam(size=size)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(cam.cam.astype(np.float32))[None], size=(10, 13), mode="bilinear", align_corners=False
    )[0]
    found = full_size(cam)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_full_size_of_no_class_is_empty():
    assert full_size(make_cam(ids=())).shape == (0, 10, 13)


def test_the_peers_dictionary_of_maps_is_read_with_its_0_based_keys(tmp_path):
    np.save(tmp_path / "x.npy", {14: np.full((2, 3), 0.5, np.float16), np.int64(0): np.ones((2, 3), np.float32)})
    found = read_npy_cam(tmp_path / "x.npy", 20)
    assert list(found) == [14, 0]
    assert all(array.dtype == np.float32 and array.shape == (2, 3) for array in found.values())
    assert found[14][0, 0] == 0.5


def test_irn_s_file_is_read_with_its_maps_of_full_size(tmp_path):
    high = np.random.default_rng(0).random((2, 8, 9)).astype(np.float32)
    np.save(tmp_path / "x.npy", {"keys": torch.tensor([3, 5]), "cam": torch.rand(2, 2, 2), "high_res": high})
    found = read_npy_cam(tmp_path / "x.npy", 20)
    assert list(found) == [3, 5]
    np.testing.assert_array_equal(found[5], high[1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({20: np.ones((2, 2))}, r"key 20 \(int\) is no class: .* 0\.\.19"),
        ({-1: np.ones((2, 2))}, "key -1"),
        ({"cat": np.ones((2, 2))}, r"key 'cat' \(str\)"),
        ({"0": np.ones((2, 2))}, r"key '0' \(str\) is no class: keys are integers"),
        ({0.0: np.ones((2, 2))}, r"key 0\.0 \(float\) is no class"),
        ({0: np.ones(4)}, r"\(H, W\)"),
        ({0: "map"}, r"\(H, W\)"),
        ({0: np.full((2, 2), np.nan)}, "not finite"),
        ({0: np.ones((2, 2)), 1: np.ones((2, 3))}, "differ in size"),
        ({"keys": np.array([1, 2]), "cam": np.ones((1, 2, 2))}, "no map for each"),
    ],
)
def test_files_that_are_no_cam_are_named(tmp_path, value, message):
    np.save(tmp_path / "x.npy", value)
    with pytest.raises(UserError, match=message) as caught:
        read_npy_cam(tmp_path / "x.npy", 20)
    assert "x.npy" in str(caught.value)


def test_the_real_cams_fit_their_photos_and_labels(shared):
    import json

    from pmm_ray.data.images import image_size

    labels = json.loads((shared / "minivoc" / "image_labels.json").read_text())
    files = sorted((shared / "minivoc" / "cams_npy").glob("*.npy"))
    assert len(files) == 233
    for file in files[::10]:
        cam = read_npy_cam(file, 20)
        assert sorted(key + 1 for key in cam) == labels[file.stem]
        size = image_size(shared / "minivoc" / "JPEGImages" / f"{file.stem}.jpg")
        assert {array.shape for array in cam.values()} == {size}
