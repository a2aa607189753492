"""Ground truth as masks, for the upper bound."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stage_kit import context, draw, scene

from pmm_ray.data.dataset import Truth
from pmm_ray.data.images import read_label
from pmm_ray.stages.truth_masks import truth_masks


@pytest.mark.ray
def test_ground_truth_is_copied_with_255_and_what_does_not_fit_is_listed(tmp_path, ray_session):
    mask = scene((1, 8, 10, 32, 40), (255, 0, 0, 3, 60))
    photos, truth = draw(tmp_path, {"good": scene((1, 0, 0, 9, 9)), "small": scene((1, 0, 0, 9, 9)), "none": scene()})
    Image.fromarray(mask).save(truth.masks["good"])
    Image.fromarray(mask[:20]).save(truth.masks["small"])
    known = Truth({name: truth.masks[name] for name in ("good", "small")}, truth.protocol, "t")
    facts = truth_masks(photos=photos, truth=known, context=context(tmp_path / "out"))
    np.testing.assert_array_equal(read_label(tmp_path / "out" / "masks" / "good.png"), mask)
    assert facts["images"] == 1
    assert facts["protocol"] == "drawn truth"
    why = dict(facts["failed"])
    assert sorted(why) == ["none", "small"]
    assert "no ground truth" in why["none"]
    assert Path(truth.masks["small"]).name in why["small"]
