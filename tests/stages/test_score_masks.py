"""Many settings on one image: the scores of the masks that the mask stage would write."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stage_kit import cam_artefact, draw, scene

from pmm_ray.config import CrfConfig, MasksConfig, MattingConfig, TrimapConfig
from pmm_ray.masks.contrast import Contrasts
from pmm_ray.masks.makers import PseudoMask, pseudo_masks
from pmm_ray.metrics import scores
from pmm_ray.stages.confusion_rows import cells, total
from pmm_ray.stages.make_masks import made_mask
from pmm_ray.stages.score_masks import _Seen, all_failed, figures_of, parts_of, score_part, score_rows

SCENES = {
    "a/one": scene((1, 8, 10, 32, 40)),
    "two": scene((1, 5, 5, 30, 25), (2, 10, 35, 35, 55)),
    "empty": scene(),
    "broken": scene((1, 8, 10, 32, 40)),
}
SETTINGS = [
    MasksConfig(alpha=4),
    MasksConfig(maker="baseline", cvs=False, alpha=2),
    MasksConfig(maker="threshold", threshold=0.6),
    MasksConfig(s=0, t=0.2, alpha=1, crf=CrfConfig(preset="irn")),
    MasksConfig(maker="matting", trimap=TrimapConfig(high=0.6, low=0.3), matting=MattingConfig(margin=0.3)),
]


@pytest.fixture
def drawn(tmp_path):
    photos, truth = draw(tmp_path, SCENES)
    maps = {
        p.name: np.array([0.2 + 0.6 * (SCENES[p.name] == k) for k in p.labels]).reshape(-1, 40, 60)
        for p in photos.photos
    }
    cams = cam_artefact(tmp_path / "cams", photos, {name: x[:, ::4, ::4] for name, x in maps.items()})
    with Path(photos.photos[-1].image).open("r+b") as file:
        file.truncate(100)
    return photos, truth, cams


def full(photo, cam):
    image = np.array(Image.open(photo.image))
    maps = [np.array(Image.fromarray(x.astype(np.float32)).resize((60, 40), Image.Resampling.BILINEAR)) for x in cam]
    return image, np.clip(np.array(maps, np.float32).reshape(-1, 40, 60), 0, 1)


def test_scores_are_those_of_the_masks_and_a_bad_image_stops_nothing(drawn):
    photos, truth, cams = drawn
    rows = score_rows(photos, cams, truth, seed=0)
    found = score_part(rows, SETTINGS, num_classes=3)
    for setting, results in zip(SETTINGS, found, strict=True):
        by_name = {result["name"]: result for result in results}
        assert "truncated" in by_name["broken"]["error"] or "broken" in by_name["broken"]["error"]
        expected = []
        for photo in photos.photos[:3]:
            small = np.array([0.2 + 0.6 * (SCENES[photo.name][::4, ::4] == k) for k in photo.labels]).astype(np.float16)
            image, cam = full(photo, small)
            mask = made_mask(image, cam, photo.labels, masks=setting).mask
            expected.append(cells(mask, SCENES[photo.name], num_classes=3))
            for name in ("truth", "predicted"):
                assert by_name[photo.name][name] == expected[-1][name]
            np.testing.assert_allclose(by_name[photo.name]["pixels"], expected[-1]["pixels"], atol=2)
            if photo.labels:
                colours = np.array(Image.fromarray(image).resize((15, 10), Image.Resampling.BOX)).reshape(-1, 3).T
                grid = mask[2::4, 2::4].ravel()
                shares = Contrasts(colours, small.reshape(len(small), -1), photo.labels).of(grid)
                assert (by_name[photo.name]["cam_share"], by_name[photo.name]["colour_share"]) == pytest.approx(shares)
        facts = figures_of(results, photos, min_images=1)
        miou = scores(total(expected, num_classes=3), photos.classes.names)["miou"]
        assert facts["miou"] == pytest.approx(miou, abs=1e-3)
        assert (facts["images"], facts["scored"], [name for name, _ in facts["failed"]]) == (3, 3, ["broken"])
        assert 0 <= facts["contrast"] <= 1


def test_each_setting_is_scored_by_its_own_backend(drawn, monkeypatch):
    photos, truth, cams = drawn
    asked = []

    def masks(image, cam, class_ids, settings, *, backend):
        asked.append((backend, [setting.maker for setting in settings]))
        return ((index, PseudoMask(np.full(image.shape[:2], index, np.uint8))) for index in range(len(settings)))

    monkeypatch.setattr("pmm_ray.stages.score_masks.pseudo_masks", masks)
    original = CrfConfig(backend="pydensecrf")
    settings = [*SETTINGS[-1:], MasksConfig(crf=original), SETTINGS[0], MasksConfig(maker="baseline", crf=original)]
    found = score_part(score_rows(photos, cams, truth, seed=0)[:1], settings, num_classes=3)
    assert asked == [("numba", ["matting", "ppg"]), ("pydensecrf", ["ppg", "baseline"])]
    assert [result["predicted"][0] for (result,) in found] == [0, 0, 1, 1]


def test_a_setting_that_fails_on_an_image_takes_no_other_with_it(drawn, monkeypatch):
    photos, truth, cams = drawn

    def masks(image, cam, class_ids, settings, **options):
        if any(setting.maker == "threshold" for setting in settings):
            raise ArithmeticError("no such mask")
        return pseudo_masks(image, cam, class_ids, settings, **options)

    rows = score_rows(photos, cams, truth, seed=0)
    whole = score_part(rows, SETTINGS, num_classes=3)
    monkeypatch.setattr("pmm_ray.stages.score_masks.pseudo_masks", masks)
    found = score_part(rows, SETTINGS, num_classes=3)
    assert {result["error"] for result in found[2] if result["name"] != "broken"} == {"ArithmeticError: no such mask"}
    for one, of_whole in zip(found[:2] + found[3:], whole[:2] + whole[3:], strict=True):
        assert [result["error"] is None for result in one] == [result["error"] is None for result in of_whole]
        assert [result.get("truth") for result in one] == [result.get("truth") for result in of_whole]


def test_without_ground_truth_there_is_contrast_and_no_miou(drawn):
    photos, _, cams = drawn
    (results,) = score_part(score_rows(photos, cams, None, seed=0), SETTINGS[:1], num_classes=3)
    facts = figures_of(results, photos, min_images=1)
    assert "miou" not in facts
    assert facts["scored"] == 0
    assert facts["contrast"] > 0


def test_contrast_looks_at_cam_and_colours_at_the_same_places():
    # the same picture as CAM and as photo, at a size at which one point in four is looked at
    edge = np.zeros((120, 162), np.float32)
    edge[:, 81:] = 1
    photo = np.kron(edge[:, :, None] * 255, np.ones((4, 4, 3))).astype(np.uint8)
    mask = np.zeros((480, 648), np.uint8)
    mask[:, 300:] = 1
    for swap in (False, True):
        cam, image, half = (x.swapaxes(0, 1).copy() if swap else x for x in (edge, photo, mask))
        found = _Seen(image, cam[None], (1,)).contrasts(half)
        assert found["cam_share"] == pytest.approx(found["colour_share"], abs=1e-3)  # of colours in bytes
        assert 0.5 < found["cam_share"] < 1


def test_better_masks_have_more_contrast(drawn):
    photos, truth, cams = drawn
    # alpha 0.1: nearly all background; 11 with these CAMs: all foreground
    settings = [MasksConfig(alpha=alpha) for alpha in (0.02, 2, 11)]
    found = score_part(score_rows(photos, cams, truth, seed=0), settings, num_classes=3)
    facts = [figures_of(results, photos, min_images=1) for results in found]
    assert facts[1]["miou"] > max(facts[0]["miou"], facts[2]["miou"])
    assert facts[1]["contrast"] > max(facts[0]["contrast"], facts[2]["contrast"])


def test_the_order_is_the_seeds_and_parts_are_even(drawn):
    photos, truth, cams = drawn
    names = [[row["name"] for row in score_rows(photos, cams, truth, seed=seed)] for seed in (0, 0, 1, 2, 3)]
    assert names[0] == names[1]
    assert len(set(map(tuple, names))) > 1
    assert [len(part) for part in parts_of([{}] * 10, 4)] == [2, 3, 3, 2]
    assert [len(part) for part in parts_of([{}] * 3, 16)] == [1, 1, 1]


def test_that_every_image_failed_is_said_with_the_first_reason():
    rows = [{"error": "x.jpg: no"}, {"error": "y.jpg: no"}]
    assert all_failed(rows) == "all 2 images failed, the first: x.jpg: no"
    assert all_failed([*rows, {"error": None}]) is None
