"""Reliable labels: hand-worked values, and the published rule pixel by pixel on real photos."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.masks.crf import DenseCRF
from pmm_ray.masks.reliable import UNSURE, crf_labels, reliable_labels, sure_pixels

HALVES = {"alpha": 32.0, "min_score": 0.1, "top_share": 0.4, "min_background": 0.8}


class Said:
    """A CRF whose answers were written down: for the problem with much background, and for that with little."""

    def __init__(self, foreground, background):
        self.answers = np.array([foreground, background], np.float32)
        self.shape = self.answers.shape[2:]

    def multilabel(self, probs):
        return self.answers if probs.ndim == 4 else self.answers[0]


def row(*values):
    return np.array([values], np.float32)


def test_sure_of_a_class_are_its_pixels_above_the_place_of_the_top_share():
    # Ten candidates 0.11 .. 0.92 and one below 0.1: n = 10, place 6 in ascending order holds 0.65; above it are three.
    x = row(0.11, 0.2, 0.29, 0.38, 0.47, 0.56, 0.65, 0.74, 0.83, 0.92, 0.09)[None]
    sure = sure_pixels(x, **HALVES)
    np.testing.assert_array_equal(sure[0, :10], [UNSURE] * 7 + [1] * 3)
    # (1 - 0.09)^32 = 0.049 is less than 0.09, so the last pixel is the class's, but too weak to be a candidate.
    assert sure[0, 10] == UNSURE


def test_sure_of_background_is_a_high_background_score_alone():
    # (1 - x)^32 is 1, 0.93, 0.80 (just below), 0.27: the last still wins over 0.04 without being sure.
    x = row(0.0, 0.0022, 0.007, 0.04)[None]
    np.testing.assert_array_equal(sure_pixels(x, **HALVES), [[0, 0, UNSURE, UNSURE]])


def test_a_high_background_score_is_not_sure_where_a_class_wins():
    # (1 - x)^2 is 0.25, 0.36, 1, all above 0.2, but 0.5 and 0.4 win; of the class's two only the higher is sure
    x = row(0.5, 0.4, 0.0)[None]
    found = sure_pixels(x, alpha=2, min_score=0.1, top_share=1.0, min_background=0.2)
    np.testing.assert_array_equal(found, [[1, UNSURE, 0]])


def test_a_class_without_a_candidate_or_with_equal_ones_is_nowhere_sure():
    weak, flat = row(0.05, 0.08, 0.0), row(0.5, 0.5, 0.0)
    np.testing.assert_array_equal(sure_pixels(weak[None], **HALVES)[0, :2], [UNSURE, UNSURE])
    np.testing.assert_array_equal(sure_pixels(np.stack([weak, flat]), **HALVES), [[UNSURE, UNSURE, 0]])


def test_a_pixel_belongs_to_its_strongest_class_alone():
    first, second = row(0.9, 0.8, 0.7, 0.6, 0.5, 0.5), row(0.95, 0.1, 0.1, 0.1, 0.55, 0.6)
    # Class 1 has 0.6, 0.7, 0.8 left, of which place int(3 * 0.6) = 1 is 0.7; class 2 has 0.55, 0.6, 0.95, of which 0.6.
    np.testing.assert_array_equal(
        sure_pixels(np.stack([first, second]), **HALVES), [[2, 1, UNSURE, UNSURE, UNSURE, UNSURE]]
    )


def test_crf_labels_by_hand():
    #                    class, background, background of one only, class of both but weak, class taken back
    foreground = np.array([[[0.1, 0.95, 0.6, 0.3, 0.1]], [[0.9, 0.05, 0.4, 0.7, 0.9]]], np.float32)
    background = np.array([[[0.05, 0.85, 0.3, 0.1, 0.9]], [[0.95, 0.15, 0.7, 0.9, 0.1]]], np.float32)
    found = crf_labels(foreground, background, min_probability=0.8)
    np.testing.assert_array_equal(found, [[1, 0, UNSURE, UNSURE, 0]])
    # What the two are sure of may be another label than the one that is taken: 0.95 of class 1 keeps the last a 0.
    assert crf_labels(foreground, background, min_probability=0.92)[0, 4] == UNSURE
    # at the probability itself they are sure
    even = np.array([[[0.25, 0.75]], [[0.75, 0.25]]], np.float32)
    np.testing.assert_array_equal(crf_labels(even, even, min_probability=0.75), [[1, 0]])


def test_union_keeps_a_label_where_the_cam_is_sure_of_another_class_and_agreement_does_not():
    # The CAM is sure of class 7 at the first pixel and of background at the last; the CRFs say 3, 3 and background.
    cam = np.stack([row(0.9, 0.3, 0.2, 0.0), row(0.2, 0.25, 0.1, 0.0)])
    answers = [row(0.0, 0.0, 0.9, 1.0), row(0.9, 0.9, 0.1, 0.0), row(0.1, 0.1, 0.0, 0.0)]
    said = Said(answers, answers)
    image = np.zeros((1, 4, 3), np.uint8)
    masks = {rule: reliable_labels(image, cam, [7, 3], rule=rule, crf=said) for rule in ("union", "agreement", "crf")}
    np.testing.assert_array_equal(masks["union"], [[3, 255, 255, 0]])
    np.testing.assert_array_equal(masks["agreement"], [[255, 255, 255, 0]])
    np.testing.assert_array_equal(masks["crf"], [[3, 3, 0, 0]])


def oracle(image, cam, class_ids, *, agreement=False):
    """The published rule, written from its description in loops; and which pixels are ties for its CRFs."""
    k, height, width = cam.shape
    probabilities = {}
    for alpha in (4, 32):
        scores = np.zeros((k + 1, height, width), np.float32)
        scores[0] = (1 - cam.max(axis=0)) ** alpha
        scores[1:] = cam
        probabilities[alpha] = DenseCRF(image, preset="rrm_train").multilabel(scores).astype(np.float64)
    best, by = np.zeros((height, width)), np.zeros((height, width), int)
    values = {c: [] for c in range(1, k + 1)}
    for y in range(height):
        for x in range(width):
            column = [np.float32(1 - cam[:, y, x].max()) ** np.float32(32), *cam[:, y, x]]
            by[y, x] = max(range(k + 1), key=lambda c: column[c])
            best[y, x] = column[by[y, x]]
            if by[y, x] and best[y, x] > 0.1:
                values[by[y, x]].append(best[y, x])
    least = {c: sorted(found)[math.floor(0.6 * len(found))] for c, found in values.items() if found}
    mask, ties = np.full((height, width), 255, np.uint8), np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            low, high = probabilities[4][:, y, x], probabilities[32][:, y, x]
            certainty = max(high[0], low[1:].max())
            ties[y, x] = abs(certainty - 0.8) < 1e-3 or any(np.diff(np.sort(p)[-2:]) < 2e-3 for p in (low, high))
            c, sure = by[y, x], False
            sure = best[y, x] > 0.8 if c == 0 else best[y, x] > 0.1 and best[y, x] > least[c]
            label = 0 if high.argmax() == 0 else low.argmax() or 255
            if sure and certainty >= 0.8 and (label == c or not agreement):
                mask[y, x] = label if label in (0, 255) else class_ids[label - 1]
    return mask, ties


@pytest.mark.parametrize("rule", ["union", "agreement"])
def test_on_real_photos_it_is_the_published_rule_at_every_pixel_but_ties(shared: Path, rule):
    folder = shared / "minivoc"
    names = (folder / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    several = 0
    for name in names[:: len(names) // 4]:
        image = Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB")
        image = np.array(image.resize((image.width // 2, image.height // 2)))
        maps = np.load(folder / "cams_npy" / f"{name}.npy", allow_pickle=True).item()
        cam = np.stack(
            [np.array(Image.fromarray(m.astype(np.float32)).resize(image.shape[1::-1])) for m in maps.values()]
        )
        cam = np.clip(cam / cam.max(axis=(1, 2), keepdims=True), 0, 1)
        ids = [key + 1 for key in maps]
        order = np.argsort(ids)
        expected, ties = oracle(image, cam[order], sorted(ids), agreement=rule == "agreement")
        found = reliable_labels(image, cam, ids, rule=rule)
        assert ties.mean() < 0.02, name
        np.testing.assert_array_equal(found[~ties], expected[~ties], err_msg=name)
        several += len(ids) > 1 and len(np.unique(expected)) > 2
    assert several, "no photo with two classes was compared"


def test_a_cam_of_zeros_is_background_and_no_error(photo):
    image, _ = photo(12, 12)
    np.testing.assert_array_equal(reliable_labels(image, np.zeros((1, 12, 12)), [5]), np.zeros((12, 12)))
    np.testing.assert_array_equal(reliable_labels(image, np.zeros((0, 12, 12)), []), np.zeros((12, 12)))


def test_a_class_that_the_cam_never_shows_does_no_harm(photo):
    image, left = photo(16, 16)
    cam = np.stack([np.where(left, np.linspace(0.5, 1, 16), 0.0), np.full((16, 16), 0.01)])
    mask = reliable_labels(image, cam, [5, 9])
    assert set(np.unique(mask)) <= {0, 5, 255} and 5 in mask


def test_the_order_of_the_channels_does_not_matter(photo):
    image, _ = photo(16, 16)
    cam = np.random.default_rng(0).random((3, 16, 16))
    np.testing.assert_array_equal(
        reliable_labels(image, cam, [4, 1, 9]), reliable_labels(image, cam[[1, 2, 0]], [1, 9, 4])
    )


def test_a_larger_share_and_smaller_thresholds_label_more(photo):
    image, left = photo(24, 24)
    cam = (np.where(left, 0.7, 0.0) + np.random.default_rng(1).random((24, 24)) * 0.3)[None]
    few = {"cam_alpha": 2.0, "background_alpha": 4.0, "top_share": 0.4, "min_background": 0.8, "min_score": 0.9}
    strict = {"min_background": 0.1, "min_probability": 0.99999}
    for less, more in (
        ({}, {"top_share": 0.8}),
        ({}, {"min_background": 0.1}),
        ({}, {"min_score": 0.1}),
        (strict, strict | {"min_probability": 0.9}),
    ):
        before, after = (reliable_labels(image, cam, [1], **few | change) != 255 for change in (less, more))
        assert after[before].all() and after.sum() > before.sum(), more


class Asked(Said):
    """The same, and keeps the scores of the problems."""

    def multilabel(self, probs):
        self.scores = probs
        return super().multilabel(probs)


def test_each_alpha_is_of_its_own_background_score():
    image, cam = np.zeros((1, 4, 3), np.uint8), row(0.9, 0.5, 0.4, 0.0)[None]
    crf = Asked([row(0.1, 0.2, 0.3, 0.9)] * 2, [row(0.1, 0.2, 0.3, 0.9)] * 2)
    reliable_labels(image, cam, [1], foreground_alpha=1.5, background_alpha=7.0, crf=crf)
    np.testing.assert_allclose(crf.scores[:, 0], [(1 - cam[0]) ** 1.5, (1 - cam[0]) ** 7.0], rtol=1e-6)
    reliable_labels(image, cam, [1], rule="crf", foreground_alpha=1.5, crf=crf)
    np.testing.assert_allclose(crf.scores[0], (1 - cam[0]) ** 1.5, rtol=1e-6)
    # (1 - 0.4)^1 = 0.6 wins over 0.4, (1 - 0.4)^2 = 0.36 does not
    options = {"min_score": 0.1, "top_share": 1.0, "min_background": 0.5}
    sides = [sure_pixels(cam, alpha=alpha, **options)[0, 2] for alpha in (1.0, 2.0)]
    sure = [row(0.0, 0.0, 1.0, 1.0), row(1.0, 1.0, 0.0, 0.0)]
    kept = [
        reliable_labels(image, cam, [1], cam_alpha=alpha, crf=Said(sure, sure), rule="agreement", **options)[0, 2]
        for alpha in (1.0, 2.0)
    ]
    assert sides == [0, UNSURE] and kept == [0, 255]


def test_bad_input_is_refused():
    image, cam = np.zeros((3, 4, 3), np.uint8), np.zeros((1, 3, 4))
    with pytest.raises(ValueError, match="no rule 'both'; there are union, agreement, crf"):
        reliable_labels(image, cam, [1], rule="both")
    with pytest.raises(ValueError, match="top_share must lie in"):
        reliable_labels(image, cam, [1], top_share=1.5)
    with pytest.raises(ValueError, match="min_probability must lie in"):
        reliable_labels(image, cam, [1], min_probability=-0.1)
    for ids in ([1], []):
        with pytest.raises(ValueError, match="background_alpha must be above 0"):
            reliable_labels(image, cam[: len(ids)], ids, background_alpha=0)
        with pytest.raises(ValueError, match="top_share must lie in"):
            reliable_labels(image, cam[: len(ids)], ids, rule="crf", top_share=5)
    with pytest.raises(ValueError, match="L >= 2"):
        crf_labels(cam, cam, min_probability=0.5)
    with pytest.raises(ValueError, match="resize the CAM to the image"):
        reliable_labels(image, np.zeros((1, 4, 3)), [1])
    with pytest.raises(ValueError, match="the CAM must lie in"):
        reliable_labels(image, cam + 3, [1])
