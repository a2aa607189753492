"""Mat-Label's recipes as a user runs them, on a handful of drawn images, all in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import run_here

from pmm_ray import sweep
from pmm_ray.config import AblationConfig, CamConfig, CamTrainConfig, Config, CrfConfig, D2CamConfig, TrimapConfig
from pmm_ray.pipeline import Runner
from pmm_ray.recipes import cam_trainings, d2cam_parts, matting_rivals
from pmm_ray.run import main

NET = "{backbone: test_resnet, weights: none, batch_norm: train, output_stride: 32}"
RECIPES = Path(__file__).parents[1] / "conf/recipe"
MASKS = tuple(
    row.format(cam=cam)
    for cam in ("CAM", "D2CAM")
    for row in ("CRF baseline on {cam}", "PPG on {cam}", "matting on {cam}", "matting on {cam}, trimap of two CRFs")
)
CAMS = ("CAM, best threshold", "D2CAM, best threshold")
NETWORKS = tuple(f"segmentation: {maker} on {cam}" for cam in ("CAM", "D2CAM") for maker in ("PPG", "matting"))

ABLATION = ("recipe=mat_label_ablation", "ablation.seeds=[0]", "ablation.upper_bound=false", "ablation.parts=false")


def words(folder: Path, *more: str) -> list[str]:
    return [
        str(RECIPES / "mat_label.yaml"),
        f"store={folder / 'store'}",
        f"data.root={folder / 'shapes'}",
        "data.shapes={train: 6, val: 3}",
        f"cam.net={NET}",
        "cam.train={epochs: 2, batch_size: 3, crop: 64, optimizer: adamw, lr: 1.0e-3}",
        "cam.infer={scales: [1.0], flip: false}",
        "masks.matting.size=64",
        f"seg.net={NET}",
        "seg.arch=unet",
        "seg.train={epochs: 1, batch_size: 3, crop: 64}",
        "seg.predict={scales: [1.0], flip: false}",
        "cycles.count=0",
        "pus.variant=none",
        "eval.min_images=1",
        "eval.crf=false",
        "cluster={train_workers: 0, infer_workers: 0, mask_workers: 0, gpu: 'no'}",
        "tracking.overlays=0",
        *more,
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, str, str]:
    """The recipe, and the ablation's CAMs and masks, without Ray: their folder and what they printed."""
    folder = tmp_path_factory.mktemp("mat")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "start_ray", lambda self: None)
        recipe = run_here(words(folder, "name=mat"))
        return folder, recipe, run_here(words(folder, *ABLATION, "name=parts", "ablation.segmentation=false"))


def plan(folder: Path, capsys, *more: str) -> list[str]:
    assert main([*words(folder, *more), "--dry-run"]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("done", "would run"))]


def test_the_recipe_ends_in_a_table_with_a_column_along_outlines(runs):
    folder, output, _ = runs
    table = (folder / "store/tables/mat-cycles.md").read_text()
    head, line = (next(line for line in table.splitlines() if line.startswith(f"| {row}")) for row in ("  ", "cycle 0"))
    cells = dict(zip(map(str.strip, head.split("|")), map(str.strip, line.split("|")), strict=True))
    for column in ("train masks", "train masks (boundary)", "val", "val (boundary)"):
        assert 0 <= float(cells[column]) <= 100
    assert "D2CAM, best threshold" in table and "pseudo-masks by matting: done in" in output


def test_the_ablation_has_a_line_for_each_cam_and_each_mask_and_makes_none_of_the_recipes_again(runs):
    folder, _, output = runs
    table = (folder / "store/tables/parts-ablation.md").read_text()
    assert all(row in output and row in table for row in (*MASKS, *CAMS))
    for title in ("CAM classifier by D2CAM", "CAMs by D2CAM", "matting on D2CAM"):
        assert f"{title}: done before" in output


def test_the_ablation_trains_on_ppgs_and_on_mattings_masks_of_each_cam(runs, capsys):
    folder, _, _ = runs
    steps = plan(folder, capsys, *ABLATION)
    networks = [line for line in steps if "/train_seg/" in line]
    assert [next(name for name in NETWORKS if name in line) for line in networks] == [*NETWORKS]
    # the last is the recipe's own
    assert [line.split()[0] for line in networks] == ["would", "would", "would", "done"]


@pytest.mark.parametrize("maker", ["ppg", "baseline", "threshold", "matting"])
def test_any_maker_works_on_the_same_cams_by_one_setting(runs, capsys, maker):
    folder, _, _ = runs
    steps = plan(folder, capsys, f"masks.maker={maker}", "masks.matting.margin=0.2", "masks.alpha=7")
    of_cams = [line.split()[0] for line in steps if "/infer_cams/" in line]
    of_masks = [line.split()[0] for line in steps if "/make_masks/" in line]
    assert (of_cams, of_masks) == (["done"], ["would"])


def test_each_part_of_d2cam_that_is_on_is_left_out_once():
    plain = D2CamConfig(category=1.0, stability=2.0, exclusivity=3.0)
    config = Config(recipe="mat_label_ablation", cam=CamConfig(train=CamTrainConfig(d2cam=plain)))
    found = {name: train.d2cam for name, train in d2cam_parts(config)}
    assert found == {
        "D2CAM without category decoupling": D2CamConfig(stability=2.0, exclusivity=3.0),
        "D2CAM without stability": D2CamConfig(category=1.0, exclusivity=3.0),
        "D2CAM without exclusivity": D2CamConfig(category=1.0, stability=2.0),
    }
    for change in ({"ablation": AblationConfig(parts=False)}, {"cam": CamConfig(npy="cams", train=config.cam.train)}):
        assert not list(d2cam_parts(config.model_copy(update=change)))
    assert [name for name, _ in cam_trainings(config.model_copy(update={"cam": CamConfig(npy="cams")}))] == ["CAM"]


def test_alphas_and_trimaps_are_each_tried_on_a_cam_and_by_default_the_configured_ones():
    own = Config(recipe="mat_label_ablation")
    assert [(row, variant) for row, variant, _ in matting_rivals(own, "CAM")] == [
        ("CRF baseline on CAM", "alpha 11"),
        ("PPG on CAM", "alpha 11"),
        ("matting on CAM", "trimap 0.45 / 0.1"),
        ("matting on CAM, trimap of two CRFs", "alpha 4 and 32"),
    ]
    trimaps = (TrimapConfig(high=0.6), TrimapConfig(source="crf", foreground_alpha=1.5), TrimapConfig(low=0.2))
    several = own.model_copy(update={"ablation": AblationConfig(alphas=(1, 2), trimaps=trimaps)})
    found = list(matting_rivals(several, "D2CAM"))
    assert [setting.alpha for _, _, setting in found if setting.maker != "matting"] == [1, 1, 2, 2]
    assert [(row, variant) for row, variant, setting in found if setting.maker == "matting"] == [
        ("matting on D2CAM", "trimap 0.6 / 0.1"),
        ("matting on D2CAM, trimap of two CRFs", "alpha 1.5 and 32"),
        ("matting on D2CAM", "trimap 0.45 / 0.2"),
    ]
    assert [setting.trimap for _, _, setting in found if setting.maker == "matting"] == [*trimaps]


def test_no_two_trimaps_are_one_line():
    other_crf = CrfConfig(preset="ppg", iterations=3)
    trimaps = (
        {"source": "crf"},
        {"source": "crf", "min_probability": 0.5},
        {"source": "crf", "crf": other_crf},
        {"source": "crf", "min_probability": 0.5, "crf": other_crf},
        {"source": "cam"},
    )
    config = Config.model_validate({"recipe": "mat_label_ablation", "ablation": {"trimaps": trimaps}})
    lines = [(row, variant) for row, variant, setting in matting_rivals(config, "CAM") if setting.maker == "matting"]
    assert len(set(lines)) == len(trimaps)
    assert lines[3][1] == "alpha 4 and 32, min_probability 0.5, CRF preset ppg, iterations 3"


def test_a_weight_is_another_training_and_one_that_plays_no_part_is_not(runs, capsys):
    folder, _, _ = runs

    def state(*more: str) -> str:
        return next(line.split()[0] for line in plan(folder, capsys, *more) if "/train_cam/" in line)

    assert state("cam.train.d2cam.category=0.5") == "would"
    off = "{category: 0, foreground: 0, stability: 0, exclusivity: 0, temperature: 3}"
    assert state(f"cam.train.d2cam={off}") == "done"


def test_mlflow_has_what_the_trimaps_knew_by_class_and_the_losses(runs):
    from mlflow.tracking import MlflowClient

    folder, _, _ = runs
    client = MlflowClient(f"sqlite:///{folder}/store/mlflow.db")
    experiment = client.get_experiment_by_name("pmm_ray").experiment_id
    (run,) = client.search_runs(
        [experiment], "tags.mlflow.runName = 'matting on D2CAM, trimap 0.45 / 0.1' and tags.stage = 'make_masks'"
    )
    known = {name for name in run.data.metrics if name.startswith("certain")}
    assert {"certain/background", "certain/unknown"} < known and "fell_back_in_all" in run.data.metrics
    run = client.search_runs([experiment], "tags.mlflow.runName = 'CAM classifier by D2CAM'", order_by=["start_time"])[
        0
    ]
    assert {"sure", "loss_category", "loss_foreground", "loss_stability", "loss_exclusivity"} <= run.data.metrics.keys()
    manifest = next((folder / "store/make_masks").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["facts"]["images"] == 6


def test_the_sweep_of_the_trimap_is_of_keys_that_there_are(tmp_path, capsys):
    assert sweep.main([str(RECIPES.parents[1] / "sweeps/trimap.yaml"), *words(tmp_path)[1:], "--dry-run"]) == 0
    assert "masks.trimap.high" in capsys.readouterr().out
