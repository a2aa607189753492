"""RRM's recipes as a user runs them, on a handful of drawn images, all in this process."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from tiny_run import run_here

from pmm_ray import predict
from pmm_ray.config import ReliableConfig, RrmConfig
from pmm_ray.pipeline import Runner
from pmm_ray.recipes import rrm_variants
from pmm_ray.run import main

NET = "{backbone: test_resnet, weights: none, batch_norm: train, output_stride: 32}"
ROWS = (
    "CAM of RRM, best threshold",
    "RRM, one step",
    "RRM, labels where CAM and CRF agree",
    "RRM without reliability: plain CRF labels",
    "RRM without dense energy",
    "RRM, two steps",
)


def words(folder: Path, *more: str) -> list[str]:
    return [
        f"store={folder / 'store'}",
        f"data.root={folder / 'shapes'}",
        "data.shapes={train: 6, val: 3}",
        f"rrm.net={NET}",
        "rrm.head={channels: 8, dilation: 1}",
        "rrm.train={epochs: 2, batch_size: 3, crop: 64, lr: 1.0e-3}",
        "rrm.predict={scales: [1.0], flip: false}",
        "cam.infer={scales: [1.0], flip: false}",
        f"seg.net={NET}",
        "seg.arch=unet",
        "seg.train={epochs: 1, batch_size: 3, crop: 64}",
        "seg.predict={scales: [1.0], flip: false}",
        "cycles.count=0",
        "pus.variant=none",
        "ablation.seeds=[0]",
        "eval.min_images=1",
        "cluster={train_workers: 0, infer_workers: 0, mask_workers: 0, gpu: 'no'}",
        "tracking.overlays=1",
        *more,
    ]


@pytest.fixture(scope="module")
def ablation(tmp_path_factory) -> tuple[Path, str]:
    """One run of all variants, without Ray: its folder and its output."""
    folder = tmp_path_factory.mktemp("rrm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "start_ray", lambda self: None)
        return folder, run_here(words(folder, "recipe=rrm_ablation", "name=parts"))


def test_the_ablation_has_a_line_for_each_part_and_its_table_says_whose_masks_were_scored(ablation):
    folder, output = ablation
    table = (folder / "store/tables/parts-ablation.md").read_text()
    assert all(row in output and row in table for row in ROWS)
    assert "train masks of a network in one step are its own" in table
    assert "val + CRF: CRF preset rrm_infer in one step, CRF preset segmentation otherwise" in " ".join(table.split())
    cells = next(line for line in table.splitlines() if "RRM, one step" in line).split("|")[2:-1]
    assert len(cells) == 3 and all(0 <= float(cell) <= 100 for cell in cells)


def test_the_run_ends_with_a_line_that_makes_masks_of_photos_as_it_did_itself(ablation, tmp_path):
    folder, output = ablation
    assert "network (RRM, two steps)" in output
    words = shlex.split(next(line for line in output.splitlines() if "pmm_ray.predict" in line))
    assert words[:3] == ["python", "-m", "pmm_ray.predict"] and words[4:6] == ["PHOTOS", "OUT"]
    entries = (folder / "shapes/ImageSets/Segmentation/val.txt").read_text().split()
    photos = tmp_path / "val.txt"
    photos.write_text("".join(f"{folder}/shapes/JPEGImages/{entry}.jpg\n" for entry in entries))
    for number, model in enumerate((words[3], *(folder / "store").glob("train_rrm/*/model.pt"))):
        here = ("cluster={infer_workers: 0, gpu: 'no'}", "overlays=0")
        assert predict.main([str(model), str(photos), str(tmp_path / str(number)), *words[6:], *here]) == 0
        made = {path.name: path.read_bytes() for path in (tmp_path / str(number)).rglob("masks/**/*.png")}
        by_the_run = [
            {path.name: path.read_bytes() for path in out.glob("*.png")}
            for out in (folder / "store").glob("predict_masks/*/raw")
        ]
        assert len(made) == 3 and made in by_the_run


def test_the_ablation_also_has_the_published_labels_where_others_are_set():
    assert [row for row, _ in rrm_variants(RrmConfig())] == list(ROWS[2:5])
    changed = RrmConfig(labels=ReliableConfig(cam_alpha=2))
    variants = dict(rrm_variants(changed))
    assert variants.pop("RRM, labels as published") == RrmConfig()
    assert {variant.labels.cam_alpha for variant in variants.values()} == {2}
    assert [variant.train.energy_weight for variant in variants.values()] == [1e-7, 1e-7, 0]


@pytest.mark.parametrize("recipe", ["rrm", "rrm_two_step"])
def test_one_step_and_two_steps_are_the_ablations_own_lines_and_nothing_is_done_again(ablation, recipe):
    folder, _ = ablation
    output = run_here(words(folder, f"recipe={recipe}", f"name={recipe}"))
    assert output.count(": done before") >= 9 and "done in" not in output
    lines = {row: cells for row, *cells in _cells(folder / f"store/tables/{recipe}-cycles.md") if row in ROWS}
    assert [*lines] == [*ROWS[:2], *ROWS[5:]][: 2 if recipe == "rrm" else 3]
    of_ablation = {row: cells for row, *cells in _cells(folder / "store/tables/parts-ablation.md")}
    assert all(cells[:3] == of_ablation[row] for row, cells in lines.items())


def _cells(table: Path) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.read_text().splitlines() if "|" in line]


def test_the_second_step_learns_from_the_first_ones_masks_by_its_settings_with_pus_and_cycles(ablation):
    folder, _ = ablation
    changes = ("pus.variant=rescale", "cycles={count: 1, pus: true}")
    changes += ("eval.crf=false", "rrm.label_filter=false", "rrm.crf={preset: ppg}")
    output = run_here(words(folder, "recipe=rrm_two_step", "name=more", *changes))
    assert "+ cycle 1" in output
    read = [json.loads(path.read_text()) for path in (folder / "store").glob("*/*/manifest.json")]
    made = {manifest["fingerprint"]: manifest for manifest in read}
    networks = [one for one in read if one["stage"] == "train_seg" and one["settings"]["pus"]["variant"] != "none"]
    masks = [made[network["inputs"]["masks"]] for network in networks]
    first, second = sorted(masks, key=lambda one: one["settings"]["label_filter"])
    assert first["settings"]["crf"]["preset"] == "ppg" and not first["settings"]["label_filter"]
    assert made[first["inputs"]["model"]]["stage"] == "train_rrm"
    assert made[second["inputs"]["model"]]["inputs"]["masks"] == first["fingerprint"]


def test_a_setting_of_the_labels_is_another_training_and_one_that_plays_no_part_is_not(ablation, capsys):
    folder, _ = ablation

    def state(*more: str) -> str:
        assert main([*words(folder, "recipe=rrm", *more), "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return next(line.split()[0] for line in lines if "/train_rrm/" in line)

    assert state("rrm.labels.top_share=0.5") == state("rrm.train.energy_sxy=50") == "would"
    assert state("rrm.train.energy_weight=0", "rrm.train.energy_sxy=50") == "done"
    assert state("rrm.labels.rule=crf", "rrm.labels.top_share=0.5") == "done"


def test_mlflow_has_the_shares_of_labelled_pixels_by_class_and_the_pictures(ablation):
    from mlflow.tracking import MlflowClient

    folder, _ = ablation
    client = MlflowClient(f"sqlite:///{folder}/store/mlflow.db")
    experiment = client.get_experiment_by_name("pmm_ray").experiment_id
    (parts,) = client.search_runs([experiment], "tags.mlflow.runName = 'parts'")
    own = f"tags.`pmm_ray.root` = '{parts.info.run_id}'"
    (run,) = client.search_runs([experiment], f"{own} and tags.stage = 'train_rrm' and tags.mlflow.runName = 'RRM'")
    shares = {name: value for name, value in run.data.metrics.items() if name.startswith("reliable")}
    assert {"reliable", "reliable/background"} < shares.keys() and len(shares) >= 7
    assert run.data.metrics["loss_energy"] < 0
    assert "negative by construction" in run.data.tags["mlflow.note.content"]
    assert [item.path for item in client.list_artifacts(run.info.run_id, "labels")] == ["labels/epoch-0002.png"]
