"""What a plan tells before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pmm_ray import sweep

NET = "{backbone: resnet10t, weights: none, output_stride: 32}"


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """Settings of a small drawn data set."""
    folder = tmp_path_factory.mktemp("dry")
    networks = [f"cam.net={NET}", f"seg.net={NET}", "seg.arch=unet"]
    return [f"store={folder / 'store'}", f"data.root={folder / 'shapes'}", "data.shapes={train: 4, val: 1}", *networks]


def sweep_file(folder: Path, trial: str) -> str:
    space = {"masks.s": {"uniform": [0, 1]}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"sweep": {"trial": trial, "space": space}}))
    return str(folder / "sweep.yaml")


@pytest.mark.parametrize(
    ("trial", "word", "told"),
    [
        ("masks", "cam.npy=/nonexistent", "/nonexistent: no such folder"),
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
