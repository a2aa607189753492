"""A training that a sweep tries: when it is scored on the way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pmm_ray.artefacts import Store
from pmm_ray.config import Config, SweepConfig
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
