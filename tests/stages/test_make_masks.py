"""CAMs to masks, image by image."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stage_kit import CLASSES, cam_artefact, context, draw, scene

from pmm_ray.config import CrfConfig, MasksConfig, MattingConfig, TrimapConfig
from pmm_ray.errors import UserError
from pmm_ray.masks.baseline import baseline_mask
from pmm_ray.masks.cam import threshold_mask
from pmm_ray.masks.crf import CrfParams
from pmm_ray.masks.cvs import smooth
from pmm_ray.masks.matting import matting_mask
from pmm_ray.masks.ppg import proportional_pseudo_mask
from pmm_ray.stages.make_masks import _make, made_mask, make_masks

SCENES = {
    "a/one": scene((1, 8, 10, 32, 40)),
    "two": scene((1, 5, 5, 30, 25), (2, 10, 35, 35, 55)),
    "broken": scene((1, 8, 10, 32, 40)),
    "uncammed": scene((1, 8, 10, 32, 40)),
    "unlisted": scene((1, 8, 10, 32, 40)),
}


def part_of(mask, label):
    """A map that finds the middle of an object: 1 inside a half as wide and high, 0.3 over the rest, 0 elsewhere."""
    found = np.where(mask == label, 0.3, 0.0)
    rows, columns = np.nonzero(mask == label)
    top, left, high, wide = rows.min(), columns.min(), np.ptp(rows), np.ptp(columns)
    found[top + high // 4 : top + 3 * high // 4, left + wide // 4 : left + 3 * wide // 4] = 1
    return found


@pytest.fixture
def drawn(tmp_path):
    """Photos, and CAMs of three of them; then 'broken' is cut off."""
    photos, _ = draw(tmp_path, SCENES)
    with_cam = [photo for photo in photos.photos if photo.name in ("a/one", "two", "broken")]
    maps = {photo.name: np.stack([part_of(SCENES[photo.name], k) for k in photo.labels]) for photo in with_cam}
    cams = cam_artefact(tmp_path / "cams", photos, maps, errors={"uncammed": "disk on fire"})
    broken = Path(photos.photos[2].image)
    broken.write_bytes(broken.read_bytes()[:200])
    return photos, cams


MASKS_BY_MATTING = MasksConfig(maker="matting", cvs=False, trimap=TrimapConfig(high=0.5, low=0.1))


@pytest.mark.ray
@pytest.mark.parametrize("masks", [MasksConfig(alpha=4.0), MASKS_BY_MATTING], ids=["ppg", "matting"])
def test_masks_recover_the_objects_and_bad_images_are_listed_not_fatal(tmp_path, drawn, ray_session, masks):
    photos, cams = drawn
    out = tmp_path / "out"
    facts = make_masks(photos=photos, cams=cams, masks=masks, context=context(out, batch_size=2))

    assert facts["images"] == 2
    why = dict(facts["failed"])
    assert sorted(why) == ["broken", "uncammed", "unlisted"]
    assert photos.photos[2].image in why["broken"]
    assert why["uncammed"] == "it has no CAM: disk on fire"
    assert "another list" in why["unlisted"]

    for name in ("a/one", "two"):
        with Image.open(out / "masks" / f"{name}.png") as png:
            assert png.mode == "P"
            assert png.getpalette()[:9] == [channel for colour in CLASSES.palette for channel in colour]
            assert (np.asarray(png) == SCENES[name]).mean() > 0.95
    assert sorted(path.name for path in (out / "masks").rglob("*")) == ["a", "one.png", "two.png"]

    rows = {row["name"]: row for row in pq.read_table(out / "rows.parquet").to_pylist()}
    two = rows["two"]
    mask = np.asarray(Image.open(out / "masks" / "two.png"))
    assert two["classes"] == [1, 2]
    assert two["area"] == [int((mask == 1).sum()), int((mask == 2).sum())]
    assert two["background_area"] == int((mask == 0).sum())
    assert (two["height"], two["width"]) == (40, 60)
    assert 0 < two["cv"][0] < 1
    assert list(rows) == list(SCENES)
    shares = facts["area"]
    assert list(shares) == list(CLASSES.names)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)


def test_a_cam_made_for_another_size_is_named_with_both_sizes(tmp_path, drawn):
    _, cams = drawn
    shard = next((cams.path / "cams").glob("*.parquet"))
    image = tmp_path / "other.png"
    Image.new("RGB", (30, 20)).save(image)
    row = {"name": "two", "image": str(image), "cam": str(shard), "row": 0, "missing": None}
    with pytest.raises(UserError, match=r"other\.png: the image is 30 x 20 pixels, its CAM was made for 60 x 40"):
        _make(row, masks=MasksConfig(), out=tmp_path / "out", palette=CLASSES.palette)


def test_matting_leaves_masks_like_any_maker_and_says_what_its_trimaps_knew(tmp_path, drawn):
    photos, cams = drawn
    masks = MASKS_BY_MATTING
    facts = make_masks(photos=photos, cams=cams, masks=masks, context=context(tmp_path / "out", mask_workers=0))
    assert facts["images"] == 2 and sorted(dict(facts["failed"])) == ["broken", "uncammed", "unlisted"]
    rows = {row["name"]: row for row in pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()}
    for name in ("a/one", "two"):
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{name}.png"))
        assert (mask == SCENES[name]).mean() > 0.95
        assert rows[name]["ignored_area"] == (mask == 255).sum()
    # the middles are certain of their classes, all outside the objects of background
    one, two = SCENES["a/one"], SCENES["two"]
    red, blue = ((part_of(two, k) == 1).mean() for k in (1, 2))
    assert rows["two"]["certain"] == pytest.approx([(two == 0).mean(), red, blue])
    assert rows["two"]["fell_back"] == [] and rows["broken"]["certain"] is None
    assert facts["certain"] == {
        "background": pytest.approx(((one == 0).mean() + (two == 0).mean()) / 2, abs=1e-5),
        "red": pytest.approx(((part_of(one, 1) == 1).mean() + red) / 2, abs=1e-5),
        "blue": pytest.approx(blue, abs=1e-5),
        "unknown": pytest.approx(1 - (sum(rows["a/one"]["certain"]) + sum(rows["two"]["certain"])) / 2, abs=1e-5),
    }
    assert facts["fell_back"] == {"red": 0, "blue": 0} and facts["fell_back_in_all"] == 0


@pytest.mark.parametrize("source", ["cam", "crf"])
def test_matting_is_compiled_when_a_worker_starts_not_on_its_first_image(tmp_path, drawn, monkeypatch, source):
    photos, cams = drawn
    order = []
    monkeypatch.setattr("pmm_ray.stages.make_masks.pymatting", lambda: order.append("compiled"))
    monkeypatch.setattr("pmm_ray.stages.make_masks._make", lambda row, **_: order.append(row["name"]) or 1 / 0)
    masks = MasksConfig(maker="matting", trimap=TrimapConfig(source=source))
    with pytest.raises(UserError):
        make_masks(photos=photos, cams=cams, masks=masks, context=context(tmp_path / "out", mask_workers=0))
    assert order[0] == "compiled" and sorted(order[1:]) == sorted(SCENES)


def test_a_class_without_a_matte_is_counted(tmp_path, drawn):
    photos, cams = drawn
    # nothing is below 0, so no photo has certain background
    masks = MasksConfig(maker="matting", cvs=False, trimap=TrimapConfig(low=0.0))
    facts = make_masks(photos=photos, cams=cams, masks=masks, context=context(tmp_path / "out", mask_workers=0))
    assert facts["fell_back"] == {"red": 2, "blue": 1} and facts["fell_back_in_all"] == 3


IMAGE = np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8)
CAM = np.random.default_rng(2).random((2, 20, 30), dtype=np.float32)
PPG = CrfParams(gaussian_sxy=3, gaussian_compat=10, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, lambda: proportional_pseudo_mask(IMAGE, CAM, (1, 2))),
        (
            {"alpha": 3, "s": 0.5, "t": 0.2, "gate": False, "proportion": False, "eps": 0, "tie": "foreground"},
            lambda: proportional_pseudo_mask(
                IMAGE, CAM, (1, 2), alpha=3, s=0.5, t=0.2, gate=False, proportion=False, eps=0, tie="foreground"
            ),
        ),
        ({"cvs": False}, lambda: proportional_pseudo_mask(IMAGE, CAM, (1, 2), cvs=False)),
        ({"maker": "baseline", "cvs": False}, lambda: baseline_mask(IMAGE, CAM, (1, 2), alpha=11, crf=PPG)),
        (
            {"maker": "baseline", "alpha": 4, "crf": CrfConfig(preset="baseline")},
            lambda: baseline_mask(IMAGE, smooth(CAM, s=0.3, t=0.05), (1, 2), alpha=4, crf="baseline"),
        ),
        ({"maker": "threshold", "cvs": False}, lambda: threshold_mask(CAM, (1, 2), threshold=0.2)),
        (
            {"maker": "threshold", "threshold": 0.7},
            lambda: threshold_mask(smooth(CAM, s=0.3, t=0.05), (1, 2), threshold=0.7),
        ),
        (
            {
                "maker": "matting",
                "cvs": False,
                "trimap": TrimapConfig(high=0.6, low=0.2),
                "matting": MattingConfig(kind="random_walk", size=16, margin=0.3),
            },
            lambda: matting_mask(IMAGE, CAM, (1, 2), high=0.6, low=0.2, kind="random_walk", size=16, margin=0.3),
        ),
        ({"maker": "matting", "cvs": False}, lambda: matting_mask(IMAGE, CAM, (1, 2))),
        ({"crf": CrfConfig(iterations=0)}, lambda: proportional_pseudo_mask(IMAGE, CAM, (1, 2), crf=_no_iterations())),
    ],
)
def test_every_setting_reaches_its_maker(settings, expected):
    made = made_mask(IMAGE, CAM, (1, 2), masks=MasksConfig(**settings))
    np.testing.assert_array_equal(made.mask, expected())


def _no_iterations():
    return CrfParams(
        gaussian_sxy=3, gaussian_compat=10, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10, iterations=0
    )


OTHER = {"s": 0.7, "t": 0.5, "gate": False, "alpha": 2, "proportion": False, "eps": 0, "tie": "foreground",
         "threshold": 0.7, "crf": CrfConfig(preset="irn"), "trimap": TrimapConfig(high=0.8, low=0.3),
         "matting": MattingConfig(size=16)}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cvs": False, "proportion": False},
        {"maker": "baseline"},
        {"maker": "threshold"},
        {"maker": "threshold", "cvs": False},
        {"maker": "matting", "cvs": False},
        {"maker": "matting", "trimap": TrimapConfig(source="crf")},
    ],
)
def test_settings_that_play_no_part_make_no_other_masks(settings):
    plain = MasksConfig(**settings)
    mask = made_mask(IMAGE, CAM, (1, 2), masks=plain).mask
    assert plain.unused() <= set(OTHER)
    for name, value in OTHER.items():
        other = plain.model_copy(update={name: value})
        if name in plain.unused():
            assert other.identity() == plain.identity()
            np.testing.assert_array_equal(made_mask(IMAGE, CAM, (1, 2), masks=other).mask, mask)
        elif getattr(plain, name) != value:
            assert other.identity() != plain.identity()


def test_the_other_trimaps_numbers_play_no_part():
    of_cam, of_crf = TrimapConfig(), TrimapConfig(source="crf")
    assert of_cam.model_copy(update={"min_probability": 0.1}).identity() == of_cam.identity()
    assert of_cam.model_copy(update={"high": 0.5}).identity() != of_cam.identity()
    assert of_crf.model_copy(update={"high": 0.5}).identity() == of_crf.identity()
    assert of_crf.model_copy(update={"min_probability": 0.1}).identity() != of_crf.identity()
