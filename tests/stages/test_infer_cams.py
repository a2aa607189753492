"""CAMs of a classifier, against running it by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stage_kit import artefact, context, draw, scene
from torch.nn import functional as F

from pmm_ray.artefacts import Artefact
from pmm_ray.config import CamInferConfig
from pmm_ray.data.cams import full_size, read_cam
from pmm_ray.data.dataset import Photo, Photos
from pmm_ray.data.images import read_image
from pmm_ray.inference import crop_views, whole_views
from pmm_ray.masks.cam import normalise
from pmm_ray.nets.build import build_classifier, load_model, save_model
from pmm_ray.nets.inputs import normalise as normalise_input
from pmm_ray.stages.cam_files import cam_places
from pmm_ray.stages.infer_cams import _CamWorker, infer_cams
from pmm_ray.stages.network import Actors

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
ONE = Actors(workers=1, cpus=1, gpus=0)


@pytest.fixture(autouse=True)
def threads():
    """The worker sets how many threads torch has."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    net = {"backbone": "test_resnet", "options": {}, "output_stride": 16, "num_classes": 2, "batch_norm": "frozen"}
    module = build_classifier(weights="none", **net)
    torch.nn.init.uniform_(module.head.weight)  # above 0: no map is 0 everywhere
    made = artefact(tmp_path / "model")
    info = {"mean": MEAN, "std": STD, "classes": ["red", "blue"]}
    save_model(made.path / "model.pt", kind="classifier", module=module, net=net, info=info)
    return made


@pytest.fixture
def photos(tmp_path):
    found, _ = draw(
        tmp_path,
        {
            "a/one": scene((2, 8, 10, 32, 40), size=(64, 80)),
            "two": scene((1, 5, 5, 30, 25), (2, 10, 35, 35, 55), size=(64, 80)),
            "tall": scene((1, 5, 5, 30, 25), size=(90, 50)),
        },
    )
    return found


def by_hand(model, photo: Photo, sizes, stride, *, seen: Path | None = None) -> np.ndarray:
    """The mean over sizes and mirror images of the labelled maps, normalised; (K, h, w).

    The network sees the image `seen`, if there is one, in the photo's place.
    """
    module, _ = load_model(model.path / "model.pt")
    height, width = read_image(photo.image).shape[:2]
    target = -(-height // stride), -(-width // stride)
    image = read_image(seen or photo.image)
    pixels = normalise_input(torch.from_numpy(image).permute(2, 0, 1)[None], mean=MEAN, std=STD)
    maps = []
    for size in sizes:
        small = size[0] < image.shape[0]
        scaled = F.interpolate(pixels, size, mode="bilinear", antialias=small) if size != image.shape[:2] else pixels
        for flip in (False, True):
            with torch.inference_mode():
                found = module.cam(scaled.flip(-1) if flip else scaled)
            found = found.flip(-1) if flip else found
            maps.append(F.interpolate(found, target, mode="bilinear")[0])
    kept = torch.stack(maps).mean(dim=0)[[label - 1 for label in photo.labels]]
    return normalise(kept.numpy())


@pytest.mark.ray
def test_multi_scale_cams_are_the_networks_own_and_bad_images_are_listed(tmp_path, model, photos, ray_session):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    photos = Photos((photos.photos[0], Photo("bad", str(bad), (1,)), *photos.photos[1:]), photos.classes, "x")
    out = tmp_path / "out"
    infer = CamInferConfig(scales=(0.5, 1.0), flip=True, stride=4, batch_size=4)
    facts = infer_cams(photos=photos, model=model, infer=infer, context=context(out, gpu="no"))
    assert facts["images"] == 3
    assert [name for name, _ in facts["failed"]] == ["bad"]
    assert str(bad) in facts["failed"][0][1]

    places = cam_places(Artefact("infer_cams", "x", out), photos)
    for photo, place in zip(photos.photos, places, strict=True):
        if photo.name == "bad":
            assert place.file is None
            continue
        cam = read_cam(Path(place.file), place.row)
        height, width = read_image(photo.image).shape[:2]
        expected = by_hand(model, photo, [(height // 2, width // 2), (height, width)], 4)
        assert (cam.class_ids, cam.cam.dtype, cam.cam.shape) == (photo.labels, np.float16, expected.shape)
        np.testing.assert_allclose(cam.cam, expected, atol=2e-3)
        assert cam.cam.max(axis=(1, 2)).tolist() == [1.0] * len(photo.labels)
        assert full_size(cam).shape[1:] == (height, width)


def rows_of(photos):
    return [{"name": photo.name, "image": photo.image, "labels": list(photo.labels)} for photo in photos.photos]


def stored(tmp_path, result):
    return read_cam(tmp_path / "cams" / result["shard"], result["row"])


def test_the_short_side_sets_the_size_at_scale_1(tmp_path, model, photos):
    infer = CamInferConfig(scales=(1.0,), flip=True, short_side=48, stride=2)
    worker = _CamWorker(model=model.path / "model.pt", actors=ONE, infer=infer, out=tmp_path)
    result = worker(rows_of(photos))[0]
    expected = by_hand(model, photos.photos[0], [(48, 60)], 2)
    assert expected.shape == (1, 32, 40)
    np.testing.assert_allclose(stored(tmp_path, result).cam, expected, atol=2e-3)


def test_a_larger_photo_is_shrunk_before_the_scales_unless_its_size_is_given(tmp_path, model, photos):
    def cams(**settings):
        infer = CamInferConfig(scales=(0.5, 1.0), flip=True, stride=2, **settings)
        worker = _CamWorker(model=model.path / "model.pt", actors=ONE, infer=infer, out=tmp_path)
        return [stored(tmp_path, result).cam for result in worker(rows_of(photos))]

    plain, limited = cams(max_short_side=None), cams(max_short_side=50)
    assert np.array_equal(plain[2], limited[2])  # 90 x 50: within the limit
    assert np.array_equal(cams(short_side=64, max_short_side=50)[0], plain[0])
    small = tmp_path / "small.png"
    pixels = torch.from_numpy(read_image(photos.photos[0].image)).permute(2, 0, 1)[None].float()
    reduced = F.interpolate(pixels, (48, 60), mode="bilinear", antialias=True)[0].round().byte()
    Image.fromarray(reduced.permute(1, 2, 0).numpy()).save(small)
    (found, *_) = cams(max_short_side=48)
    expected = by_hand(model, photos.photos[0], [(24, 30), (48, 60)], 2, seen=small)
    assert found.shape == expected.shape == (1, 32, 40)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_strip_is_refused_where_its_short_side_would_be_resized(tmp_path, model, photos):
    Image.new("RGB", (200, 2)).save(photos.photos[0].image)
    for short_side, status in ((None, "ok"), (48, "failed")):
        infer = CamInferConfig(scales=(1.0,), flip=False, short_side=short_side)
        worker = _CamWorker(model=model.path / "model.pt", actors=ONE, infer=infer, out=tmp_path)
        results = worker(rows_of(photos))
        assert [result["status"] for result in results] == [status, "ok", "ok"]
    assert "200 x 2 pixels" in results[0]["error"]


def test_one_crop_that_holds_the_whole_image_is_the_whole_image_padded(tmp_path, model, photos):
    infer = CamInferConfig(mode="multi_crop", scales=(1.0,), flip=False, window=96, window_stride=50, stride=1)
    worker = _CamWorker(model=model.path / "model.pt", actors=ONE, infer=infer, out=tmp_path)
    result = worker(rows_of(photos))[0]
    image = torch.from_numpy(read_image(photos.photos[0].image)).permute(2, 0, 1)[None]
    padded = F.pad(normalise_input(image, mean=MEAN, std=STD), (0, 16, 0, 32))
    module, _ = load_model(model.path / "model.pt")
    with torch.inference_mode():
        found = F.interpolate(module.cam(padded), (96, 96), mode="bilinear")[0, 1:, :64, :80]
    np.testing.assert_allclose(stored(tmp_path, result).cam, normalise(found.numpy()), atol=2e-3)


def test_many_crops_give_a_cam_of_every_image(tmp_path, model, photos):
    infer = CamInferConfig(mode="multi_crop", scales=(0.75, 1.5), window=48, window_stride=32, stride=4, batch_size=7)
    worker = _CamWorker(model=model.path / "model.pt", actors=ONE, infer=infer, out=tmp_path)
    for photo, result in zip(photos.photos, worker(rows_of(photos)), strict=True):
        cam = stored(tmp_path, result).cam
        assert result["status"] == "ok"
        assert cam.shape[0] == len(photo.labels)
        assert cam.min() == 0
        assert cam.max() == 1
        assert len(result["peak"]) == len(photo.labels)


def test_the_peak_is_that_of_the_activations_which_are_normalised_before_they_are_rounded(
    tmp_path, model, photos, monkeypatch
):
    # beyond what float16 holds: rounded first, all of it would be infinite
    activations = np.array([[[0.0, 1e5], [2e5, 4e5]]], np.float32)
    monkeypatch.setattr(_CamWorker, "_activations", lambda self, rows, images: [activations for _ in rows])
    worker = _CamWorker(model=model.path / "model.pt", actors=ONE, infer=CamInferConfig(), out=tmp_path)
    (result,) = worker(rows_of(photos)[:1])
    assert result["peak"] == [4e5]
    assert stored(tmp_path, result).cam.tolist() == [[[0.0, 0.25], [0.5, 1.0]]]


def test_a_network_that_gives_nan_fails_its_images_not_the_run(tmp_path, model, photos):
    saved = torch.load(model.path / "model.pt", weights_only=True)
    saved["state"]["head.weight"][0] = torch.nan
    torch.save(saved, model.path / "model.pt")
    infer = CamInferConfig(scales=(1.0,))
    worker = _CamWorker(model=model.path / "model.pt", actors=ONE, infer=infer, out=tmp_path)
    results = worker(rows_of(photos))
    assert [result["status"] for result in results] == ["ok", "failed", "failed"]
    assert "not finite" in results[1]["error"]
    assert stored(tmp_path, results[0]).class_ids == (2,)


SHAPES = {"scales": (0.5, 2.0), "short_side": 48}


def test_every_setting_reaches_the_views(tmp_path, model):
    odd = {**SHAPES, "flip": False}

    def views(**settings):
        infer = CamInferConfig(**settings)
        return _CamWorker(model=model.path / "model.pt", actors=ONE, infer=infer, out=tmp_path)._views(3, (40, 60))

    assert views(**odd) == whole_views(3, (40, 60), **odd)
    assert views(**SHAPES) == whole_views(3, (40, 60), **SHAPES, flip=True)
    crops = crop_views(3, (40, 60), **odd, window=32, stride=20)
    assert views(**odd, mode="multi_crop", window=32, window_stride=20) == crops


@pytest.mark.ray
def test_shards_that_no_row_points_to_are_removed(tmp_path, model, photos, ray_session):
    out = tmp_path / "out"
    (out / "cams").mkdir(parents=True)
    Image.new("L", (1, 1)).save(out / "cams" / "x.png")
    (out / "cams" / "stray.parquet").write_bytes(b"of a killed batch")
    infer_cams(photos=photos, model=model, infer=CamInferConfig(scales=(1.0,)), context=context(out, gpu="no"))
    assert sorted(path.suffix for path in (out / "cams").iterdir()) == [".parquet", ".png"]
    assert not (out / "cams" / "stray.parquet").exists()
