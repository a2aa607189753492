"""Sweeps as a user meets them, on a handful of drawn images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pmm_ray.artefacts import Artefact
from pmm_ray.run import main as run_main
from pmm_ray.settings import load
from pmm_ray.sweep import main

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # noise of Tune's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ROOT = Path(__file__).resolve().parents[1]
NET = "{backbone: resnet10t, weights: none, batch_norm: train, output_stride: 32}"


def tiny(folder: Path, *more: str) -> list[str]:
    """Settings under which everything takes seconds."""
    return [
        f"store={folder / 'store'}",
        f"data.root={folder / 'shapes'}",
        "data.shapes={train: 10, val: 4}",
        f"cam.net={NET}",
        "cam.train={epochs: 1, batch_size: 4, crop: 64}",
        "cam.infer={scales: [1.0], flip: false}",
        f"seg.net={NET}",
        "seg.arch=unet",
        "seg.train={epochs: 2, batch_size: 4, crop: 64}",
        "seg.predict={scales: [1.0], flip: false}",
        *("cluster.num_cpus=2", "cluster.train_workers=0", "cluster.infer_workers=0"),
        "tracking.overlays=0",
        *more,
    ]


def sweep_file(folder: Path, **sweep: object) -> str:
    path = folder / "sweep.yaml"
    tree = {"name": "tiny", "masks": {"alpha": 11, "s": 0.3}, "sweep": sweep}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(path)


MASKS = {
    "trial": "masks",
    "searcher": "grid",
    "concurrent": 4,
    "reports": 3,
    "space": {"masks.maker": {"grid": ["ppg"]}, "masks.s": {"grid": [0, 0.3]}, "masks.alpha": {"grid": [1, 2, 4, 8]}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sweep")


def tried(folder: Path) -> dict[str, dict]:
    """The record's entries by file name, with the time at which they were written."""
    (place,) = (folder / "store" / "sweeps").glob("tiny-*")
    return {
        file.name: json.loads(file.read_text()) | {"written": file.stat().st_mtime_ns}
        for file in (place / "tried").glob("*.json")
    }


@pytest.fixture(scope="module")
def killed_and_resumed(folder) -> tuple[dict, dict, Path]:
    """A grid of 8 settings and the default, killed when some were done and begun again: both records."""
    words = [sweep_file(folder, **MASKS), *tiny(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pmm_ray.sweep", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 280
    while len(list(folder.glob("store/sweeps/*/tried/*.json"))) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no setting ended"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = tried(folder)
    assert main(words) == 0
    (place,) = (folder / "store" / "sweeps").glob("tiny-*")
    return before, tried(folder), place


def test_a_killed_sweep_loses_no_finished_setting_and_tries_the_rest(killed_and_resumed):
    before, after, _ = killed_and_resumed
    assert 3 <= len(before) < 9
    assert len(after) == 9
    assert {name: after[name] for name in before} == before
    assert all(entry["ending"] == "done" and entry["share"] == 1 for entry in after.values())
    assert sorted(entry["number"] for entry in after.values()) == list(range(1, 10))
    assert [entry["values"] for entry in after.values() if entry["default"]] == [
        {"masks.alpha": 11, "masks.s": 0.3, "masks.maker": "ppg"}
    ]


def test_the_best_setting_is_a_config_that_run_takes_and_gives_the_same_score(folder, killed_and_resumed, capsys):
    _, after, place = killed_and_resumed
    best = max(after.values(), key=lambda entry: entry["score"])
    config = load([str(place / "best.yaml")], [])
    assert {"masks.alpha": config.masks.alpha, "masks.s": config.masks.s, "masks.maker": config.masks.maker} == best[
        "values"
    ]
    assert config.name == "tiny-best"
    assert run_main([str(place / "best.yaml"), "seg.train.epochs=1", "cycles.count=0", "eval.crf=false"]) == 0
    scored = [
        Artefact("evaluate_masks", path.name, path).facts["miou"]
        for path in (folder / "store" / "evaluate_masks").iterdir()
        if "train" in Artefact("evaluate_masks", path.name, path).facts["protocol"]
    ]
    # The mask stage writes what the sweep scored, but for single pixels.
    assert scored == [pytest.approx(best["score"], abs=2e-3)]
    assert "CAMs: done before" in capsys.readouterr().out


def test_its_results_are_tables_and_pictures_and_runs_in_mlflow(folder, killed_and_resumed):
    import mlflow

    _, after, place = killed_and_resumed
    for name in ("settings.md", "settings.csv", "best.md", "choice.md"):
        assert (place / name).stat().st_size > 50
    for name in ("history", "slices", "masks.s-masks.alpha"):
        assert (place / "pictures" / f"{name}.png").stat().st_size > 2000
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'store' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("pmm_ray").experiment_id], max_results=200)
    (parent,) = [run for run in runs if run.data.tags.get("recipe") == "sweep" and run.data.tags["stage"] == "recipe"]
    assert parent.info.status == "FINISHED"
    settings = {run.data.params["masks.alpha"] + "/" + run.data.params["masks.s"]: run for run in runs
                if run.data.tags["stage"] == "setting"}  # fmt: skip
    assert len(settings) == 9
    for run in settings.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status in ("FINISHED", "KILLED")
    done = {
        f"{entry['values']['masks.alpha']}/{entry['values']['masks.s']}": entry["score"] for entry in after.values()
    }
    finished = {name: run.data.metrics["score"] for name, run in settings.items() if run.info.status == "FINISHED"}
    assert len(finished) >= 6
    assert finished == {name: pytest.approx(done[name]) for name in finished}
    assert {item.path for item in client.list_artifacts(parent.info.run_id, "sweep")} >= {"sweep/slices.png"}


def test_without_ground_truth_settings_are_ranked_by_contrast(folder, killed_and_resumed, capsys):
    grid = MASKS | {"space": {"masks.alpha": {"grid": [0.02, 4]}}}
    words = [sweep_file(folder, **grid), *tiny(folder, "data.masks=null", "name=blind")]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "no ground truth" in output
    assert "mIoU" not in output
    (place,) = (folder / "store" / "sweeps").glob("blind-*")
    scores = {entry["values"]["masks.alpha"]: entry["score"] for entry in
              (json.loads(file.read_text()) for file in (place / "tried").glob("*.json"))}  # fmt: skip
    assert set(scores) == {0.02, 4, 11}
    # hardly any foreground explains hardly anything
    assert scores[0.02] < scores[4]


def test_two_settings_of_the_pus_sweep_are_trainings_on_the_same_masks(folder, killed_and_resumed, capsys):
    words = tiny(folder, "cam.train.equivariance=0", "name=pus", "eval.crf=false", "cycles.count=0")
    assert main([str(ROOT / "sweeps/pus.yaml"), *words, "sweep.settings=2", "sweep.reports=2"]) == 0
    (place,) = (folder / "store" / "sweeps").glob("pus-*")
    found = [json.loads(file.read_text()) for file in (place / "tried").glob("*.json")]
    variants = [entry["values"]["pus.variant"] for entry in sorted(found, key=lambda entry: entry["number"])]
    assert variants[0] == "none" and variants[1] in ("clamp", "rescale", "pow", "ignore")
    assert all(entry["ending"] in ("done", "stopped") and 0 <= entry["score"] <= 1 for entry in found)
    capsys.readouterr()
    # The best one's run finds the training done.
    assert run_main([str(place / "best.yaml")]) == 0
    assert "segmentation: done before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sweep.metric=val", "sweep.metric=val: a sweep of masks is scored by masks or contrast"),
        ("sweep.space.masks.alpha={uniform: [1, 2]}", "sweep.space.masks.alpha: a grid needs values"),
        ("sweep.settngs=3", "did you mean sweep.settings"),
    ],
)
def test_a_mistake_is_one_line(folder, word, message, capsys):
    assert main([sweep_file(folder, **MASKS), *tiny(folder, word)]) == 1
    error = capsys.readouterr().err
    error = error[error.index("error: ") :]
    assert message in error
    assert error.count("\n") == 1
