"""What a sweep tries: when a training is scored on the way, and what is no score of masks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pmm_ray.artefacts import Artefact, Store
from pmm_ray.cluster.worker import failed, succeeded
from pmm_ray.config import Config, SweepConfig
from pmm_ray.data.dataset import Classes, Photo, Photos, Truth
from pmm_ray.errors import UserError
from pmm_ray.search import trials
from pmm_ray.tracking import RunHandle

EPOCHS = 8


class Method:
    """A method whose trainings left no network of some epochs, and are as good as they are long."""

    gone: tuple[int, ...] = ()

    def __init__(self, run, config, data, seed):
        self.config = config

    def cams(self):
        return None

    def masks(self, cams, masks):
        return SimpleNamespace(facts={})

    def score_masks(self, masks):
        return {"train masks": 0.5}

    def segmentation_until(self, epoch, masks, pus, *, title):
        return None if epoch in self.gone else epoch

    def score_network(self, model, scales, *, title):
        assert title == f"epoch {model}: score on val"
        return model / 10

    def segmentation(self, masks, pus, *, title):
        return None, {"val": EPOCHS / 10}


@pytest.mark.parametrize(("gone", "reported"), [((), [2, 4, 6, 8]), ((2, 4), [6, 8]), ((2, 4, 6), [8])])
def test_halts_that_a_training_went_past_before_are_left_out(tmp_path, monkeypatch, gone, reported):
    monkeypatch.setattr(Method, "gone", gone)
    monkeypatch.setattr(trials, "Method", Method)
    config = Config.model_validate({"seg": {"train": {"epochs": EPOCHS}}})
    sweep = SweepConfig(trial="segmentation", reports=4)
    trial = trials.SegmentationTrial(
        {}, config=config, sweep=sweep, data=None, store=Store(tmp_path), handle=RunHandle()
    )
    found = [trial.step() for _ in reported]
    assert [report.figures["epoch"] for report in found] == reported
    assert [report.score for report in found] == [epoch / 10 for epoch in reported]
    assert [report.steps for report in found] == [epoch // 2 for epoch in reported]


CLASSES = Classes(("background", "cat"), ((0, 0, 0), (128, 0, 0)))
SHARES = {"cam_share": 0.5, "colour_share": 0.5}


class Desk:
    """Where photo a is done, and b, the only one with ground truth, fails, after another."""

    parts = (
        failed({"name": "c"}, "c.jpg: broken"),
        succeeded({"name": "a"}, SHARES),
        failed({"name": "b"}, "b.png: no"),
    )
    items = len(parts)

    def __init__(self):
        self.told = iter(self.parts)

    def join(self, job):
        return 1

    def result(self, ticket):
        return [next(self.told)], 0.1


def mask_trial(folder, metric: str) -> trials.MaskTrial:
    photos = Photos(tuple(Photo(name, f"{name}.jpg", (1,)) for name in "abc"), CLASSES, "photos")
    scores = trials.MaskScores(
        store=Store(folder),
        config=Config(),
        photos=photos,
        cams=Artefact("infer_cams", "cams", folder / "cams"),
        truth=Truth({"b": "b.png"}, "truth", "truth"),
        metric=metric,
        reports=3,
    )
    return trials.MaskTrial({"masks.s": 0.1}, scores=scores, desk=Desk())


def test_a_setting_goes_on_when_only_the_first_photos_fail(tmp_path):
    trial = mask_trial(tmp_path, "contrast")
    assert [trial.step().score for _ in range(3)] == [0, pytest.approx(0.5), pytest.approx(0.5)]


def test_masks_of_which_none_could_be_compared_with_ground_truth_have_no_score(tmp_path):
    for _ in range(2):
        trial = mask_trial(tmp_path, "masks")
        assert [trial.step().score for _ in range(2)] == [0, 0]
        with pytest.raises(UserError, match=r"^no photo with ground truth could be scored, the first: b\.png: no$"):
            trial.step()
    # nor when a sweep by contrast, which has one, came before
    trial = mask_trial(tmp_path, "contrast")
    assert [trial.step() for _ in range(3)][-1].steps == 3
    with pytest.raises(UserError, match="no photo with ground truth"):
        mask_trial(tmp_path, "masks").step()
