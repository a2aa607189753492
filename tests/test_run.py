"""The command line as a user meets it, on a handful of drawn images."""

from __future__ import annotations

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
from tiny_run import copy_stages, masks, tiny

from pmm_ray.files import write_atomic
from pmm_ray.run import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pmm_ray.run", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def finish(words: list[str], **environment: str) -> str:
    process = start(words, **environment)
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output
    return output


def stop_when(words: list[str], reached: Callable[[], bool], number: int, **environment: str) -> tuple[int, str]:
    """Start a run and send it a signal as soon as `reached`; its exit code and what it printed."""
    process = start(words, **environment)
    deadline = time.monotonic() + 600
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the point was never reached"
        time.sleep(0.01)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def blind(folder: Path, copy: Path) -> list[str]:
    """Settings that read a copy of the run's photos, without their ground truth."""
    shutil.copytree(folder / "shapes", copy)
    shutil.rmtree(copy / "SegmentationClass")
    names = json.loads((folder / "shapes/classes.json").read_text())["names"]
    return [
        "data.kind=voc",
        f"data.root={copy}",
        "data.masks=null",
        "data.labels=image_labels.json",
        f"data.classes=[{', '.join(names)}]",
    ]


def test_a_run_goes_from_labels_to_a_table_of_cycles(finished):
    folder, output = finished
    for row in ("CAM, best threshold", "cycle 0", "cycle 1"):
        assert row in output
    assert (folder / "store/tables/pmm-cycles.md").exists()
    assert len(masks(folder / "store")) > 10


def test_a_finished_run_again_does_nothing_again(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "store").rglob("*.p*")}
    output = finish(tiny(folder))
    assert "done in" not in output
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_mask_setting_keeps_the_cams(finished, capsys):
    folder, _ = finished
    assert main([*tiny(folder, "masks.alpha=4"), "--dry-run"]) == 0
    plan = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("done", "would run"))]
    state = {line.split("/")[-2]: line.split()[0] for line in plan if "cycle" not in line}
    assert state["train_cam"] == state["infer_cams"] == "done"
    assert state["make_masks"] == state["train_seg"] == "would"


def test_a_run_without_ground_truth_stopped_twice_goes_on_to_the_same_masks(finished, tmp_path):
    import ray

    folder, _ = finished
    store = tmp_path / "store"
    words = tiny(folder, f"store={store}", *blind(folder, tmp_path / "photos"))
    copy_stages(("train_cam",), folder / "store", store)
    # The runs join the tests' own Ray, which is left to clear up after them.
    environment = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    points = ("infer_cams/*/cams/*.parquet", "train_seg/*/checkpoint.pt")
    for point in points:
        # The first time it is asked to end, as by Ctrl-C or a scheduler; then it is killed.
        number = signal.SIGTERM if point == points[0] else signal.SIGKILL
        code, output = stop_when(words, lambda point=point: any(store.glob(point)), number, **environment)
        if number == signal.SIGTERM:
            assert code == 130 and "goes on where this one stopped" in output
        stage = point.split("/")[0]
        assert not list((store / stage).glob("*/manifest.json")), f"{stage} had finished before the end"
    assert "no ground truth" in finish(words, **environment)
    assert masks(store) == masks(folder / "store")


def test_in_object_storage_a_killed_run_goes_on_to_the_masks_of_the_disk(finished, tmp_path, bucket):
    folder, _ = finished
    store = bucket / "store"
    tracking = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    words = tiny(folder, f"store={store}", f"data.root={bucket}/shapes", tracking, "cycles.count=0")
    words += ["cluster.infer_workers=0"]
    # A store may be copied: what was done on the disk is done.
    for path in (folder / "store/train_cam").rglob("*.*"):
        write_atomic(store / path.relative_to(folder / "store").as_posix(), path.read_bytes())

    def stored(pattern: str) -> set[str]:
        paths = (path.relative_to(store) for path in store.all_files())
        return {str(path) for path in paths if path.match(pattern)}

    stop_when(words, lambda: bool(stored("make_masks/*/masks/*.png")), signal.SIGKILL)
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
