"""The CAM's curve over thresholds, by hand."""

import numpy as np
import pytest
from stage_kit import cam_artefact, context, draw, scene

from pmm_ray.stages.evaluate_cams import evaluate_cams


@pytest.mark.ray
def test_the_curve_by_hand_and_its_best_threshold_said_to_be_chosen_on_the_truth(tmp_path, ray_session):
    scenes = {"a": scene((1, 0, 0, 20, 30)), "b": scene((1, 0, 0, 20, 30)), "c": scene((1, 0, 0, 4, 4))}
    photos, truth = draw(tmp_path, scenes)
    # 0.25 on all of the image, 0.75 on the object's 600 pixels, 1 on its first 10 columns (200 pixels).
    cam = np.full((1, 40, 60), 0.25)
    cam[0, :20, :30] = 0.75
    cam[0, :20, :10] = 1
    cams = cam_artefact(tmp_path / "cams", photos, {"a": cam, "b": cam}, errors={"c": "cut off"})
    facts = evaluate_cams(
        photos=photos,
        cams=cams,
        truth=truth,
        thresholds=(0.1, 0.5, 0.9, 1.0),
        min_images=2,
        context=context(tmp_path / "out"),
    )
    assert facts["curve"] == {
        "0.1": pytest.approx((600 / 2400 + 0) / 2),
        "0.5": pytest.approx(1.0),
        "0.9": pytest.approx((200 / 600 + 1800 / 2200) / 2),
        "1": pytest.approx((0 + 1800 / 2400) / 2),
    }
    assert facts["best_threshold"] == 0.5
    assert facts["miou"] == facts["accuracy"] == facts["miou_frequent"] == 1.0
    assert facts["iou"] == {"background": 1.0, "red": 1.0, "blue": None}
    assert facts["failed"] == [["c", "it has no CAM: cut off"]]
    assert facts["images"] == 2
    assert "miou_boundary" not in facts
    assert "chosen on this ground truth" in facts["protocol"]
    assert "drawn truth" in facts["protocol"]


def test_along_outlines_is_what_the_best_threshold_leaves_there(tmp_path):
    photos, truth = draw(tmp_path, {"a": scene((1, 0, 0, 20, 30))})
    cam = np.zeros((1, 40, 60))
    cam[0, :20, :20] = 1.0  # its own outline is 10 columns off the object's
    cam[0, :20, 20:25] = 0.5  # and here 5
    given = {"photos": photos, "truth": truth, "cams": cam_artefact(tmp_path / "cams", photos, {"a": cam})}
    facts = evaluate_cams(
        **given,
        thresholds=(0.7, 0.3),
        min_images=1,
        boundary=0.03,
        context=context(tmp_path / "out", mask_workers=0),
    )
    assert facts["best_threshold"] == 0.3 and facts["boundary"] == 0.03
    # the band is 2 pixels wide on each side, with a round corner outside; of its inner half the best threshold finds
    # what lies in the first 25 columns
    held, found = 2 * 20 + 2 * 28, 2 * 25
    outside = 2 * 20 + 2 * 30 + 3
    assert facts["miou_boundary"] == pytest.approx((found / held + outside / (outside + held - found)) / 2)
