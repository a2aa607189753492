"""Runs as jobs on a cluster of several nodes, tracked by an MLflow server: they end, stop, go on, and lose nodes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from servers import Mlflow, RayCluster, environment, wait_for
from stages.stage_kit import CLASSES, cam_artefact, context
from tiny_run import copy_stages, losses, masks, run_here, tiny

from pmm_ray.cluster.session import session
from pmm_ray.config import ClusterConfig, MasksConfig
from pmm_ray.data.cams import full_size, read_cam
from pmm_ray.data.dataset import Photo, Photos
from pmm_ray.data.images import read_image
from pmm_ray.run import main
from pmm_ray.stages import make_masks
from pmm_ray.stages.cam_files import cam_places

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[tuple[RayCluster, Mlflow]]:
    """One cluster and one MLflow for all tests here."""
    mlflow = Mlflow(tmp_path_factory.mktemp("mlflow"))
    cluster = None
    try:
        cluster = RayCluster()
        cluster.grow_to(2)
        yield cluster, mlflow.ready()
    finally:
        mlflow.kill()
        if cluster is not None:
            cluster.close()


@contextlib.contextmanager
def watched(cluster: RayCluster) -> Iterator[dict[str, set[int]]]:
    """Which nodes were seen to train and to work on rows while the block runs, by kind of work."""
    seen: dict[str, set[int]] = {"RayTrainWorker": set(), "RowActor": set()}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            for number, node in enumerate(cluster.nodes):
                for title in node.processes().values():
                    for kind, nodes in seen.items():
                        if kind in title:
                            nodes.add(number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def runs_in(uri: str, experiment: str) -> dict:
    """MLflow's runs of an experiment, by name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {run.info.run_name: run for run in found}


def settings(folder: Path, store: Path, *more: str) -> list[str]:
    """The tiny run on the cluster, without the cycle."""
    return tiny(folder, f"store={store}", "cycles.count=0", "cluster.gpu=no", *more)


def test_a_job_that_fails_says_why_and_has_an_exit_code(servers):
    cluster, _ = servers
    ended = cluster.submit("store=runs")
    assert ended.returncode == 1
    assert "error: store=runs: a submitted job needs an absolute path" in ended.stdout
    assert "Traceback" not in ended.stdout


def test_a_stopped_job_goes_on_over_both_nodes_to_the_same_masks(finished, servers, tmp_path):
    folder, _ = finished
    cluster, mlflow = servers
    cluster.grow_to(2)
    store = tmp_path / "store"
    words = settings(folder, store, f"tracking.uri={mlflow.uri}", "tracking.experiment=job")

    assert cluster.submit(*words, wait=False, job="first").returncode == 0
    wait_for("a training", lambda: any(store.glob("train_seg/*/ray")) or not cluster.runs("first"), seconds=600)
    stopped = cluster.ray("job", "stop", "first")
    assert "was stopped" in stopped.stdout, stopped.stdout
    assert "goes on where this one stopped" in cluster.ray("job", "logs", "first").stdout
    killed = {name: run.info.status for name, run in runs_in(mlflow.uri, "job").items()}
    assert killed["pmm"] == killed["segmentation"] == "KILLED" and killed["pseudo-masks"] == "FINISHED"
    assert set(killed.values()) == {"KILLED", "FINISHED"}
    assert not list(store.glob("train_seg/*/manifest.json")), "the training had ended before it was stopped"
    done = {path: path.stat().st_mtime_ns for path in store.rglob("*.png")}

    with watched(cluster) as seen:
        ended = cluster.submit(*words)
    assert ended.returncode == 0, ended.stdout
    assert "cycle 0" in ended.stdout and "CAM classifier: done before" in ended.stdout
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert seen == {"RayTrainWorker": {0, 1}, "RowActor": {0, 1}}
    made = masks(store)
    assert len(made) == 14 and made.items() <= masks(folder / "store").items()

    found = runs_in(mlflow.uri, "job")
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    parent, training = found["pmm"], found["segmentation"]
    assert training.data.tags["mlflow.parentRunId"] == found["cycle 0"].info.run_id
    assert found["cycle 0"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    from mlflow.tracking import MlflowClient

    client = MlflowClient(mlflow.uri)
    # Epochs come from a worker, on whatever node it was; the driver adds the stage's own figures as step 0.
    told = {figure.step: figure.value for figure in client.get_metric_history(training.info.run_id, "loss")}
    (expected,) = losses(store, "train_seg")
    assert told == pytest.approx({0: expected[1], 1: expected[0], 2: expected[1]})
    pictures = {item.path for run in found.values() for item in client.list_artifacts(run.info.run_id, "overlays")}
    assert len([path for path in pictures if path.endswith(".png")]) >= 2


def test_a_training_that_loses_a_node_goes_on_with_the_other_to_the_same_end(finished, servers, tmp_path):
    folder, _ = finished
    cluster, _ = servers
    cluster.grow_to(2)
    store = tmp_path / "store"
    copy_stages(("train_cam", "infer_cams"), folder / "store", store)
    words = settings(folder, store, f"cluster.address={cluster.address}", "tracking.enabled=false")
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "pmm_ray.run", *words], stdout=log, stderr=subprocess.STDOUT, env=environment()
        )
        wait_for(
            "a checkpoint",
            lambda: any(store.glob("train_seg/*/checkpoint.pt")) or run.poll() is not None,
            seconds=600,
        )
        cluster.nodes[1].kill()
        run.wait(600)
    output = (tmp_path / "log").read_text()
    assert run.returncode == 0, output
    assert "nodes were lost; training goes on with 1 of 2 workers" in output
    (manifest,) = store.glob("train_seg/*/manifest.json")
    undisturbed = folder / "store" / manifest.relative_to(store)
    facts, expected = (json.loads(path.read_text())["facts"] for path in (manifest, undisturbed))
    for name in ("images", "epochs", "parameters", "failed", "without_mask"):
        assert facts[name] == expected[name]
    found, wanted = (
        [json.loads(line) for line in path.with_name("metrics.jsonl").read_text().splitlines()]
        for path in (manifest, undisturbed)
    )
    assert [figures["epoch"] for figures in found] == [1, 2]
    assert [figures["loss"] for figures in found] == pytest.approx([figures["loss"] for figures in wanted], rel=0.02)


STAGE = """
import sys
sys.path[:0] = [{tests!r}]
import test_on_a_cluster
test_on_a_cluster.make_them({folder!r}, {address!r})
"""
COUNT = 64


def material(folder: Path):
    """Photos with a disc each, and CAMs of them."""
    y, x = np.mgrid[:160, :200]
    photos, maps = [], {}
    for number in range(COUNT):
        noise = np.random.default_rng(number)
        near = np.exp(-((y - 20 - 2 * number) ** 2 + (x - 100) ** 2) / 1500)
        pixels = (120 + 100 * near[..., None] * [1, -1, -1] + noise.normal(0, 8, (160, 200, 3))).clip(0, 255)
        path = folder / "images" / f"{number}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        photos.append(Photo(str(number), str(path), (1,)))
        maps[str(number)] = near[None, ::4, ::4]
    found = Photos(tuple(photos), CLASSES, "photos")
    return found, cam_artefact(folder / "cams", found, maps)


def slowly(row, **settings):
    """What the stage does with an image, with time to lose a node meanwhile; leaves word of the node."""
    import ray

    nodes = settings["out"].parent / "nodes"
    nodes.mkdir(exist_ok=True)
    (nodes / ray.get_runtime_context().get_node_id()).touch()
    time.sleep(0.3)
    return make_masks._make(row, **settings)


def make_them(folder: str, address: str) -> None:
    """The mask stage on the cluster, as a program of its own."""
    import ray

    photos, cams = material(Path(folder))
    # Workers cannot import this file, and know the stage as it is.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    out = context(Path(folder) / "out", address=address)
    with session(ClusterConfig(address=address)), mock.patch.multiple(make_masks, _make=slowly, _BATCH=4):
        make_masks.make_masks(photos=photos, cams=cams, masks=MasksConfig(), context=out)


def test_a_mask_stage_that_loses_a_node_loses_no_image_and_makes_the_same_masks(servers, tmp_path):
    cluster, _ = servers
    cluster.grow_to(2)
    photos, cams = material(tmp_path)
    out = tmp_path / "out"
    script = STAGE.format(tests=str(HERE), folder=str(tmp_path), address=cluster.address)
    with (tmp_path / "log").open("w") as log:
        stage = subprocess.Popen([sys.executable, "-c", script], stdout=log, stderr=log, env=environment())
        nodes = tmp_path / "nodes"
        wait_for("both nodes", lambda: len(list(nodes.glob("*"))) == 2 or stage.poll() is not None)
        wait_for("some masks", lambda: len(list(out.glob("masks/*.png"))) >= 8)
        cluster.nodes[1].kill()
        begun = len(list(out.glob("masks/*.png")))
        stage.wait(600)
    assert stage.returncode == 0, (tmp_path / "log").read_text()
    assert begun < COUNT, "all was done before the node was lost"
    rows = pq.read_table(out / "rows.parquet")
    assert rows["name"].to_pylist() == [photo.name for photo in photos.photos]
    assert set(rows["status"].to_pylist()) == {"ok"}
    assert not list(out.rglob("*.tmp"))
    for photo, place in zip(photos.photos, cam_places(cams, photos), strict=True):
        stored = read_cam(Path(place.file), place.row)
        image, cam = read_image(photo.image), full_size(stored)
        mask = make_masks.made_mask(image, cam, stored.class_ids, masks=MasksConfig()).mask
        with Image.open(out / "masks" / f"{photo.name}.png") as written:
            assert np.array_equal(np.asarray(written), mask), photo.name


def test_a_run_outlives_its_mlflow_server_and_none_begins_without_one(finished, servers, tmp_path, capsys, caplog):
    folder, _ = finished
    _, mlflow = servers
    store = tmp_path / "store"
    copy_stages(("train_cam", "infer_cams"), folder / "store", store)
    words = tiny(folder, f"store={store}", "recipe=ablation", "ablation.segmentation=false", "ablation.seeds=[0]")
    words += [f"tracking.uri={mlflow.uri}", "tracking.experiment=lost"]

    def end_the_server() -> None:
        wait_for("a mask stage", lambda: any(store.glob("make_masks/*/manifest.json")), every=0.01)
        mlflow.kill()

    thread = threading.Thread(target=end_the_server, daemon=True)
    thread.start()
    output = run_here(words)
    thread.join()
    assert "CVS + PPG" in output
    assert "MLflow did not take" in caplog.text and "the work goes on" in caplog.text

    capsys.readouterr()
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: tracking.uri: MLflow cannot use {mlflow.uri}") and error.count("\n") == 1
