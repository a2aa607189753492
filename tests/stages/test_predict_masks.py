"""Masks of a segmentation network, against running it by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from stage_kit import CLASSES, artefact, context, draw, scene
from torch.nn import functional as F

from pmm_ray.config import CrfConfig, PredictConfig
from pmm_ray.data.images import read_image, read_label
from pmm_ray.inference import average, whole_views
from pmm_ray.masks.crf import MIN_SCORE, DenseCRF, crf_params
from pmm_ray.nets.build import build_segmenter, load_model, save_model
from pmm_ray.nets.inputs import normalise
from pmm_ray.stages.mask_files import mask_paths
from pmm_ray.stages.network import Actors
from pmm_ray.stages.predict_masks import _Predictor, predict_masks

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
PLAIN = PredictConfig(scales=(1.0,), flip=False)


@pytest.fixture(autouse=True)
def threads():
    """The worker sets how many threads torch has."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tmp_path, photos):
    torch.manual_seed(1)
    net = {"arch": "deeplabv3plus", "backbone": "resnet10t", "options": {}, "output_stride": 16, "num_classes": 3}
    net |= {"aux": False, "batch_norm": "frozen"}
    module = build_segmenter(weights="none", **net)
    last = module.model.segmentation_head[0]
    torch.nn.init.normal_(last.weight, std=3.0)
    image = torch.from_numpy(read_image(photos.photos[0].image)).permute(2, 0, 1)[None]
    with torch.no_grad():  # so that each class wins somewhere
        last.bias -= module.eval()(normalise(image, mean=MEAN, std=STD))["main"].mean(dim=(0, 2, 3))
    made = artefact(tmp_path / "model")
    save_model(
        made.path / "model.pt",
        kind="segmenter",
        module=module,
        net=net,
        info={"mean": MEAN, "std": STD, "classes": list(CLASSES.names)},
    )
    return made


@pytest.fixture
def photos(tmp_path):
    found, _ = draw(tmp_path, {"a/one": scene((2, 8, 10, 32, 40), size=(50, 70)), "two": scene((1, 5, 5, 30, 25))})
    return found


def softmax(model, path) -> np.ndarray:
    """(3, H, W) of the whole image as it is."""
    module, _ = load_model(model.path / "model.pt")
    image = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return module(normalise(image, mean=MEAN, std=STD))["main"].softmax(dim=1)[0].numpy()


def set_bias(model, label: int, value: float) -> None:
    """Give the logits of a class another bias."""
    saved = torch.load(model.path / "model.pt", weights_only=True)
    name = next(name for name in saved["state"] if name.endswith("segmentation_head.0.bias"))
    saved["state"][name][label] = value
    torch.save(saved, model.path / "model.pt")


def worker(model, out, **settings):
    wanted = {"predict": PLAIN, "label_filter": False, "crf": None, "raw": True} | settings
    actors = Actors(workers=1, cpus=1, gpus=0)
    return _Predictor(model=model.path / "model.pt", actors=actors, out=out, palette=CLASSES.palette, **wanted)


def rows_of(photos):
    return [{"name": photo.name, "image": photo.image, "labels": list(photo.labels)} for photo in photos.photos]


def test_without_a_crf_both_folders_hold_the_argmax(tmp_path, model, photos):
    results = worker(model, tmp_path)(rows_of(photos))
    for photo, result in zip(photos.photos, results, strict=True):
        expected = softmax(model, photo.image).argmax(axis=0)
        assert len(np.unique(expected)) > 1
        for folder in ("raw", "masks"):
            np.testing.assert_array_equal(read_label(tmp_path / folder / f"{photo.name}.png"), expected)
        found = {0: result["background_area"], **dict(zip(result["classes"], result["area"], strict=True))}
        assert {k: v for k, v in found.items() if v} == dict(zip(*np.unique(expected, return_counts=True), strict=True))
    with Image.open(tmp_path / "masks" / "two.png") as png:
        assert png.mode == "P"


def test_the_prediction_before_the_crf_is_kept_only_where_it_is_wanted(tmp_path, model, photos):
    for raw in (True, False):
        worker(model, tmp_path / str(raw), raw=raw)(rows_of(photos))
    assert {path.name for path in (tmp_path / "True").iterdir()} == {"raw", "masks"}
    assert {path.name for path in (tmp_path / "False").iterdir()} == {"masks"}


def test_the_label_filter_keeps_background_and_the_images_classes(tmp_path, model, photos):
    worker(model, tmp_path, label_filter=True)(rows_of(photos))
    for photo in photos.photos:
        kept = np.array([0, *photo.labels])
        expected = kept[softmax(model, photo.image)[kept].argmax(axis=0)]
        np.testing.assert_array_equal(read_label(tmp_path / "masks" / f"{photo.name}.png"), expected)


def test_a_class_that_the_photo_is_said_to_have_is_counted_also_where_the_network_finds_none(tmp_path, model, photos):
    set_bias(model, 2, -1e4)
    result = worker(model, tmp_path, label_filter=True)(rows_of(photos))[0]
    assert (result["classes"], result["area"], result["background_area"]) == ([2], [0], 50 * 70)


def test_the_crf_works_on_filtered_probabilities_that_sum_to_1(tmp_path, model, photos):
    set_bias(model, 1, 40.0)  # leaves the kept classes less than the CRF's least score
    params = crf_params("segmentation")
    worker(model, tmp_path, label_filter=True, crf=CrfConfig(preset="segmentation"))(rows_of(photos))
    photo = photos.photos[0]
    kept = softmax(model, photo.image)[[0, 2]]
    assert kept.sum(axis=0).max() < MIN_SCORE
    kept /= kept.sum(axis=0)
    refined = DenseCRF(read_image(photo.image), params=params).multilabel(kept)
    np.testing.assert_array_equal(read_label(tmp_path / "raw" / "a/one.png"), np.array([0, 2])[kept.argmax(axis=0)])
    np.testing.assert_array_equal(
        read_label(tmp_path / "masks" / "a/one.png"), np.array([0, 2])[refined.argmax(axis=0)]
    )


def test_mirror_images_make_the_prediction_of_a_mirrored_photo_mirrored(tmp_path, model, photos):
    image = read_image(photos.photos[0].image)
    turned = tmp_path / "turned.png"
    Image.fromarray(image[:, ::-1]).save(turned)
    both = worker(model, tmp_path, predict=PredictConfig(scales=(0.75, 1.0), flip=True))
    both([{"name": "plain", "image": photos.photos[0].image, "labels": [2]}])
    both([{"name": "turned", "image": str(turned), "labels": [2]}])
    plain, mirrored = (read_label(tmp_path / "masks" / f"{name}.png") for name in ("plain", "turned"))
    assert (plain == mirrored[:, ::-1]).mean() > 0.999


def test_the_prediction_is_the_mean_over_scales_and_mirror_images(tmp_path, model, photos):
    photo = photos.photos[0]
    image = torch.from_numpy(read_image(photo.image)).permute(2, 0, 1)
    module, _ = load_model(model.path / "model.pt")
    maps = average(
        lambda batch: module(batch)["main"].softmax(dim=1),
        [image],
        whole_views(0, (50, 70), scales=(0.5, 1.5), flip=True),
        channels=[None],
        targets=[(50, 70)],
        mean=MEAN,
        std=STD,
        batch_size=4,
        device=torch.device("cpu"),
    )
    worker(model, tmp_path, predict=PredictConfig(scales=(0.5, 1.5), flip=True))(rows_of(photos)[:1])
    expected = maps[0].argmax(dim=0).numpy()
    assert (expected != softmax(model, photo.image).argmax(axis=0)).any()
    np.testing.assert_array_equal(read_label(tmp_path / "masks" / "a/one.png"), expected)


def probabilities(model, out, photos, **predict) -> list[np.ndarray]:
    images = [read_image(photo.image) for photo in photos.photos]
    return list(worker(model, out, predict=PredictConfig(**predict)).probabilities(rows_of(photos), images))


def test_a_photo_within_the_limit_is_predicted_as_without_one_to_the_bit(tmp_path, model, photos):
    scales = {"scales": (0.5, 1.5), "flip": True}
    plain = probabilities(model, tmp_path, photos, **scales, max_short_side=None)
    for found, expected in zip(probabilities(model, tmp_path, photos, **scales, max_short_side=50), plain, strict=True):
        assert found.dtype == np.float32 and np.array_equal(found, expected)


def test_a_larger_photo_is_shrunk_predicted_and_its_probabilities_are_enlarged(tmp_path, model, photos):
    pixels = torch.from_numpy(read_image(photos.photos[0].image)).permute(2, 0, 1)[None]
    by_hand = F.interpolate(pixels.float(), (40, 56), mode="bilinear", antialias=True).round()
    image = tmp_path / "by-hand.png"
    Image.fromarray(by_hand[0].byte().permute(1, 2, 0).numpy()).save(image)
    predict = PredictConfig(scales=(0.75, 1.0), flip=True, max_short_side=None)
    (small,) = worker(model, tmp_path, predict=predict).probabilities(
        [{"name": "x", "labels": [2]}], [read_image(image)]
    )
    expected = F.interpolate(torch.from_numpy(small)[None], (50, 70), mode="bilinear")[0].numpy()
    found = probabilities(model, tmp_path, photos, scales=(0.75, 1.0), flip=True, max_short_side=40)
    np.testing.assert_array_equal(found[0], expected)
    assert found[1].shape == (3, 40, 60)  # within the limit, beside a larger one


def test_the_network_sees_no_more_of_a_large_photo_than_the_limit_lets_it(tmp_path, model):
    seen = []
    predictor = worker(model, tmp_path, predict=PredictConfig(scales=(0.5, 1.0), flip=True, max_short_side=32))
    predictor.module.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[-2:])))
    large = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    (found,) = predictor.probabilities([{"name": "x", "labels": []}], [large])
    assert set(seen) == {(16, 24), (32, 48)} and found.shape == (3, 600, 900)


def test_a_network_that_gives_nan_fails_its_images(tmp_path, model, photos):
    set_bias(model, 1, torch.nan)
    results = worker(model, tmp_path / "out")(rows_of(photos))
    assert all("not finite" in result["error"] and "seg.train.lr" in result["error"] for result in results)
    assert not (tmp_path / "out" / "masks").exists()


@pytest.mark.ray
def test_the_stage_lists_bad_images_and_gives_the_rest(tmp_path, model, photos, ray_session):
    bad = tmp_path / "images" / "two.png"
    bad.write_bytes(bad.read_bytes()[:100])
    facts = predict_masks(
        photos=photos,
        model=model,
        predict=PLAIN,
        label_filter=True,
        crf=CrfConfig(preset="segmentation"),
        context=context(tmp_path / "out", gpu="no"),
    )
    assert facts["images"] == 1
    assert facts["failed"][0][0] == "two"
    assert str(bad) in facts["failed"][0][1]
    made = artefact(tmp_path / "out")
    assert list(mask_paths(made)) == list(mask_paths(made, "raw")) == ["a/one"]
    assert mask_paths(made, "raw")["a/one"].exists()
    assert facts["area"]["red"] == 0.0
