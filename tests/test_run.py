"""The command line as a user meets it, on a handful of drawn images."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pmm_ray.files import write_atomic
from pmm_ray.run import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NET = "{backbone: resnet10t, weights: none, batch_norm: train, output_stride: 32}"


def tiny(folder: Path, *more: str, store: str = "store") -> list[str]:
    """Settings of a whole PMM run that takes seconds."""
    return [
        f"store={folder / store}",
        f"data.root={folder / 'shapes'}",
        "data.shapes={train: 10, val: 4}",
        f"cam.net={NET}",
        "cam.train={epochs: 2, batch_size: 4, crop: 64}",
        "cam.infer={scales: [1.0], flip: false}",
        f"seg.net={NET}",
        "seg.arch=unet",
        "seg.train={epochs: 2, batch_size: 4, crop: 64}",
        "seg.predict={scales: [1.0], flip: false}",
        "cycles.count=1",
        "cluster.num_cpus=2",
        "tracking.overlays=2",
        *more,
    ]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pmm_ray.run", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(words: list[str]) -> str:
    process = start(words)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    return output


def kill_when(words: list[str], reached: Callable[[], bool]) -> None:
    """Start a run and end it with SIGKILL as soon as `reached`."""
    process = start(words)
    deadline = time.monotonic() + 200
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the point was never reached"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def masks(store: Path) -> dict[str, str]:
    """Content hash of every mask, by stage and image (artefacts' folders have names that depend on their inputs)."""
    return {
        f"{path.parts[-4]}/{path.name}/{hashlib.sha256(path.read_bytes()).hexdigest()}": path.name
        for stage in ("make_masks", "predict_masks")
        for path in (store / stage).glob("*/masks/*.png")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """One uninterrupted run that the tests below compare with: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    return folder, finish(tiny(folder))


def test_a_run_goes_from_labels_to_a_table_of_cycles(finished):
    folder, output = finished
    for row in ("CAM, best threshold", "cycle 0", "cycle 1"):
        assert row in output
    assert (folder / "store/tables/pmm-cycles.md").exists()
    assert len(masks(folder / "store")) > 10


def test_a_finished_run_again_does_nothing_again(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "store").rglob("*.p*")}
    start_time = time.monotonic()
    output = finish(tiny(folder))
    assert time.monotonic() - start_time < 30
    assert "done in" not in output
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_mask_setting_keeps_the_cams(finished, capsys):
    folder, _ = finished
    assert main([*tiny(folder, "masks.alpha=4"), "--dry-run"]) == 0
    plan = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("done", "would run"))]
    state = {line.split("/")[-2]: line.split()[0] for line in plan if "cycle" not in line}
    assert state["train_cam"] == state["infer_cams"] == "done"
    assert state["make_masks"] == state["train_seg"] == "would"


def test_a_run_killed_five_times_goes_on_to_the_same_masks(finished, tmp_path):
    folder, _ = finished
    words = tiny(folder, f"store={tmp_path / 'store'}")
    points = (
        "train_cam/*/checkpoint.pt",
        "infer_cams/*/cams/*.parquet",
        "make_masks/*/masks/*.png",
        "train_seg/*/checkpoint.pt",
        "predict_masks/*/raw/*.png",
    )
    for point in points:
        kill_when(words, lambda point=point: any((tmp_path / "store").glob(point)))
        stage = point.split("/")[0]
        assert not list((tmp_path / "store" / stage).glob("*/manifest.json")), f"{stage} had finished before the kill"
    finish(words)
    assert masks(tmp_path / "store") == masks(folder / "store")


def test_in_object_storage_a_killed_run_goes_on_to_the_masks_of_the_disk(finished, tmp_path, bucket):
    folder, _ = finished
    store = bucket / "store"
    tracking = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    words = tiny(folder, f"store={store}", f"data.root={bucket}/shapes", tracking, "cycles.count=0")
    # A store may be copied: what was done on the disk is done.
    for path in (folder / "store/train_cam").rglob("*.*"):
        write_atomic(store / path.relative_to(folder / "store").as_posix(), path.read_bytes())

    def stored(pattern: str) -> set[str]:
        paths = (path.relative_to(store) for path in store.all_files())
        return {str(path) for path in paths if path.match(pattern)}

    kill_when(words, lambda: bool(stored("make_masks/*/masks/*.png")))
    assert not stored("make_masks/*/manifest.json"), "the stage had finished before the kill"
    output = finish(words)
    assert "CAM classifier: done before" in output and "pseudo-masks: done in" in output
    for stage, images in (("make_masks", 10), ("predict_masks", 4)):
        found = stored(f"{stage}/*/masks/*.png")
        assert len(found) >= images
        for name in found:
            assert (store / name).read_bytes() == (folder / "store" / name).read_bytes(), name
    manifests = {str(path.relative_to(folder / "store")) for path in (folder / "store").glob("*/*/manifest.json")}
    assert len(stored("*/*/manifest.json")) > 5 and stored("*/*/manifest.json") <= manifests
    # No URL was taken for a local path, and nothing unfinished was left in the store.
    assert not Path("s3:").exists() and not stored("journal/*") and not stored("ray/*/*")
    assert list((tmp_path / "mlflow-artifacts").rglob("contact.png"))


def test_without_ground_truth_the_masks_are_the_same(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder / "shapes", tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos/SegmentationClass")
    names = json.loads((folder / "shapes/classes.json").read_text())["names"]
    blind = [
        "data.kind=voc",
        f"data.root={tmp_path / 'photos'}",
        "data.masks=null",
        "data.labels=image_labels.json",
        f"data.classes=[{', '.join(names)}]",
    ]
    output = finish(tiny(folder, f"store={tmp_path / 'store'}", *blind))
    assert "no ground truth" in output
    assert masks(tmp_path / "store") == masks(folder / "store")


def test_two_workers_come_to_what_one_comes_to(finished, tmp_path):
    folder, _ = finished
    # Equal CAMs and masks, so that only the number of workers differs in what is trained here.
    for stage in ("infer_cams", "make_masks"):
        shutil.copytree(folder / "store" / stage, tmp_path / "store" / stage)
    finish(tiny(folder, f"store={tmp_path / 'store'}", "cluster.train_workers=2", "cycles.count=0"))
    for stage in ("train_cam", "train_seg"):
        (two,) = (tmp_path / "store").glob(f"{stage}/*/metrics.jsonl")
        one = folder / "store" / two.relative_to(tmp_path / "store")
        losses = [[json.loads(line)["loss"] for line in path.read_text().splitlines()] for path in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_an_interrupt_says_how_to_go_on(finished, tmp_path):
    folder, _ = finished
    process = start(tiny(folder, f"store={tmp_path / 'store'}"))
    while not any((tmp_path / "store").glob("train_cam/*/checkpoint.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "goes on where this one stopped" in output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["masks.alfa=1"], "did you mean masks.alpha?"),
        (["data.kind=voc", "data.root=/nowhere"], "/nowhere"),
        (["cam.net.weights=/nowhere.pth"], "/nowhere.pth"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_1(finished, tmp_path, capsys, words, says):
    folder, _ = finished
    assert main(tiny(folder, f"store={tmp_path / 'store'}", *words)) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("error: ") and "Traceback" not in error
