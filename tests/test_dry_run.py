"""What a plan tells before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from pmm_ray import run, sweep

NET = "{backbone: resnet10t, weights: none, batch_norm: train, output_stride: 32}"
NETWORKS = [f"cam.net={NET}", f"seg.net={NET}", "seg.arch=unet"]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """Settings of a small drawn data set."""
    folder = tmp_path_factory.mktemp("dry")
    return [f"store={folder / 'store'}", f"data.root={folder / 'shapes'}", "data.shapes={train: 4, val: 1}", *NETWORKS]


@pytest.fixture
def photos(tmp_path) -> list[str]:
    """Settings of a folder of two photos without ground truth, of which one has no label."""
    (tmp_path / "photos").mkdir()
    for name in ("cat", "stray"):
        Image.new("RGB", (8, 6)).save(tmp_path / "photos" / f"{name}.jpg")
    (tmp_path / "photos" / "labels.csv").write_text("image,label\ncat.jpg,cat\ngone.jpg,cat\n")
    data = ["data.kind=folder", f"data.root={tmp_path / 'photos'}", "data.images=.", "data.labels=labels.csv"]
    return [*data, "data.masks=null", "data.train_list=null", "data.val_list=null", f"store={tmp_path / 'store'}"]


def sweep_file(folder: Path, trial: str) -> str:
    space = {"masks.s": {"uniform": [0, 1]}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"sweep": {"trial": trial, "space": space}}))
    return str(folder / "sweep.yaml")


@pytest.mark.parametrize(
    ("trial", "word", "told"),
    [
        ("masks", "cam.npy=/nonexistent", "cam.npy=/nonexistent: no such folder"),
        ("masks", "cam.net.weights=/nope.pth", "cam.net.weights=/nope.pth: No such file"),
        ("segmentation", "seg.net.backbone=resnet5000", "seg.net.backbone=resnet5000: timm has no such model"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_sweep_tells_before_its_first_trial_what_all_would_fail_of(words, tmp_path, trial, word, told, more, capsys):
    assert sweep.main([sweep_file(tmp_path, trial), *words, word, *more]) == 1
    assert f"error: {told}" in capsys.readouterr().err


@pytest.mark.parametrize(("trial", "stages"), [("masks", ["train_cam", "infer_cams"]), ("segmentation", ["train_seg"])])
def test_the_plan_of_a_sweep_has_the_stages_that_its_trials_need(words, tmp_path, trial, stages, capsys):
    # no trial on masks trains the network that would be wrong
    wrong = ["seg.net.backbone=resnet5000"] if trial == "masks" else []
    assert sweep.main([sweep_file(tmp_path, trial), *words, *wrong, "--dry-run"]) == 0
    planned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("would run")]
    for stage in stages:
        assert any(f"/{stage}/" in line for line in planned)
    assert any("/train_seg/" in line for line in planned) == (trial == "segmentation")


def test_what_is_wrong_with_a_data_set_is_told_before_the_plan(photos, tmp_path, capsys):
    assert run.main([*photos, *NETWORKS, "--dry-run"]) == 0
    output = capsys.readouterr().out
    told, plan = output[: output.index("would run")], output[output.index("would run") :]
    assert "nothing will be scored: photos has no ground truth" in told
    for name in ("stray", "gone"):
        assert name in told and name not in plan
    assert sweep.main([sweep_file(tmp_path, "masks"), *photos, *NETWORKS, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "stray" in output and "ranked by contrast, which needs no ground truth" in output


def test_a_data_set_that_has_to_be_drawn_is_told_of_once(tmp_path, capsys):
    words = [
        f"store={tmp_path / 'store'}",
        f"data.root={tmp_path / 'new'}",
        "data.shapes={train: 4, val: 1}",
        *NETWORKS,
    ]
    for drawn in (True, False):
        assert run.main([*words, "--dry-run"]) == 0
        assert (f"drawing {tmp_path / 'new'}: 5/5" in capsys.readouterr().err) == drawn
