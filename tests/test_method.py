"""What the recipes' building blocks tell MLflow."""

from types import SimpleNamespace

import pytest

from pmm_ray.artefacts import Artefact, Store
from pmm_ray.config import Config, PredictConfig, RrmConfig
from pmm_ray.method import Method, Score
from pmm_ray.pipeline import Runner
from pmm_ray.tracking import RunHandle, open_tracker


@pytest.fixture
def runs(tmp_path):
    """Calls a function with a `Method` whose run is open; the runs that MLflow then holds, by name."""
    from mlflow.tracking import MlflowClient

    tracker = open_tracker(enabled=True, uri=None, experiment="x", store=tmp_path)

    def recorded(act):
        with tracker.run("top") as top:
            act(Method(Runner(Config(), Store(tmp_path), top), Config(), data=None, seed=3))
        return {run.info.run_name: run for run in MlflowClient(tracker.uri).search_runs([tracker.experiment_id])}

    return recorded


def test_the_networks_to_use_are_those_that_saw_no_ground_truth(tmp_path):
    run = Runner(Config(), Store(tmp_path), RunHandle(), dry=True)
    train = SimpleNamespace(photos=SimpleNamespace(fingerprint="p", classes=("background", "cat")))
    it = Method(run, Config(), data=SimpleNamespace(train=train, val=None), seed=0)
    model, _ = it.segmentation(Artefact("make_masks", "m", tmp_path), it.no_pus, title="segmentation")
    joint, _ = it.rrm_network(RrmConfig(), title="RRM")
    it.segmentation(Artefact("truth_masks", "t", tmp_path), it.no_pus, title="upper bound")
    assert [(network.title, network.model) for network in run.networks] == [("segmentation", model), ("RRM", joint)]


def test_between_epochs_a_network_is_scored_at_other_scales_but_on_photos_as_large_as_at_the_end():
    def run(stage, *, predict, **_):
        return SimpleNamespace(facts={"miou": predict})

    val = SimpleNamespace(photos=None, truth="truth")
    config = Config.model_validate({"seg": {"predict": {"max_short_side": 100}}})
    it = Method(run, config, data=SimpleNamespace(val=val), seed=0)
    found = it.score_network(None, (1.0, 2.0), title="x")
    assert found == PredictConfig(scales=(1.0, 2.0), flip=False, max_short_side=100)


def test_columns_become_metrics_in_groups_by_names_that_mlflow_takes():
    values = {"train masks": 0.1, "val + CRF": 0.2, "val + CRF (frequent)": 0.3, "PUS active": 0.4,
              "val + CRF (boundary)": 0.5}  # fmt: skip
    assert Score("cycle 0", 0, values).metrics() == {
        "mIoU/train masks": 0.1,
        "mIoU/val with CRF": 0.2,
        "mIoU of frequent classes/val with CRF": 0.3,
        "PUS active": 0.4,
        "mIoU along outlines/val with CRF": 0.5,
    }


def test_each_line_of_a_table_is_a_run_with_its_own_scores_and_that_of_a_cycle_is_the_cycles(runs):
    def act(it):
        with it.run.group("seed", 3):
            it.record("CAM", {"train masks": 0.1})
            it.record("+ PPG", {"train masks": 0.2}, variant="alpha 2")
            with it.run.group("cycle", 1):
                it.record("+ cycle 1", {"train masks": 0.3}, cycle=1)

    found = runs(act)
    rows = {name: run.data.tags["row"] for name, run in found.items() if "row" in run.data.tags}
    assert rows == {"CAM": "CAM", "+ PPG, alpha 2": "+ PPG, alpha 2", "cycle 1": "+ cycle 1"}
    assert [found[name].data.metrics["mIoU/train masks"] for name in rows] == (
        [{"CAM": 0.1, "+ PPG, alpha 2": 0.2, "cycle 1": 0.3}[name] for name in rows]
    )
    assert found["seed 3"].data.metrics == {} and found["CAM"].data.tags["seed"] == "3"
