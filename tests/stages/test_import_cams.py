"""CAMs that other programs wrote."""

import numpy as np
import pytest
from PIL import Image
from stage_kit import context, draw, scene

from pmm_ray.artefacts import Folder
from pmm_ray.data.cams import full_size, read_cam
from pmm_ray.stages.cam_files import cam_places
from pmm_ray.stages.import_cams import _Importer, import_cams


def save(folder, name, maps):
    path = folder / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, maps)
    return path


@pytest.mark.ray
def test_dictionaries_become_cams_of_the_labelled_classes(tmp_path, ray_session):
    photos, _ = draw(tmp_path, {"a/one": scene((2, 0, 0, 20, 20)), "two": scene((1, 0, 0, 9, 9), (2, 20, 20, 30, 30)),
                                "absent": scene((1, 0, 0, 9, 9))})  # fmt: skip
    rng = np.random.default_rng(0)
    maps = rng.random((2, 40, 60)).astype(np.float16)
    npy = tmp_path / "npy"
    save(npy, "a/one", {0: maps[0], 1: maps[1]})
    save(npy, "two", {1: maps[1], 0: maps[0]})
    from pmm_ray.artefacts import Artefact

    out = tmp_path / "out"
    facts = import_cams(photos=photos, folder=Folder.of(str(npy), cache=tmp_path / "digests"), context=context(out))
    assert facts["images"] == 2
    assert facts["failed"][0][0] == "absent"
    assert "absent.npy" in facts["failed"][0][1]
    places = cam_places(Artefact("import_cams", "x", out), photos)
    one, two = (read_cam(out / place.file, place.row) for place in places[:2])
    assert (one.class_ids, two.class_ids) == ((2,), (1, 2))
    np.testing.assert_array_equal(one.cam, maps[1:])
    np.testing.assert_array_equal(two.cam, maps)
    assert places[2].file is None
    assert len(list((out / "cams").glob("*.parquet"))) == 1


def imported(tmp_path, maps, labels=(1,), size=(60, 40)):
    """The importer's result for one image, without Ray."""
    image = tmp_path / "image.png"
    Image.new("RGB", size).save(image)
    row = {"name": "image", "image": str(image), "labels": list(labels), "npy": str(save(tmp_path, "image", maps))}
    return _Importer(tmp_path / "out", 2)([row])[0]


def stored(tmp_path, result):
    return read_cam(tmp_path / "out" / "cams" / result["shard"], result["row"])


def test_smaller_maps_of_the_images_shape_are_taken_and_spread_over_it(tmp_path):
    cam = stored(tmp_path, imported(tmp_path, {0: np.full((10, 15), 0.5)}))
    assert cam.cam.shape == (1, 10, 15)
    assert full_size(cam).shape == (1, 40, 60)


def test_maps_of_another_shape_are_refused_with_both_sizes(tmp_path):
    result = imported(tmp_path, {0: np.zeros((60, 40))})
    assert result["status"] == "failed"
    assert "the maps are 40 x 60, the image 60 x 40" in result["error"]


def test_maps_outside_0_1_are_normalised_others_kept(tmp_path):
    ramp = np.linspace(-2, 6, 40 * 60).reshape(40, 60)
    cam = stored(tmp_path, imported(tmp_path, {0: ramp}))
    np.testing.assert_allclose(cam.cam[0], (ramp + 2) / 8, atol=1e-3)
    half = np.linspace(0.25, 0.5, 40 * 60).reshape(40, 60)
    np.testing.assert_allclose(stored(tmp_path, imported(tmp_path, {0: half})).cam[0], half, atol=1e-3)


def test_a_labelled_class_without_a_map_is_an_error_that_explains_the_keys(tmp_path):
    result = imported(tmp_path, {0: np.zeros((40, 60))}, labels=(2,))
    assert "no map for class 2" in result["error"]
    assert "it holds classes 1 (its keys + 1)" in result["error"]
