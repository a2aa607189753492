"""What each recipe hands from stage to stage, without any stage being run."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from pmm_ray.artefacts import Artefact, Store
from pmm_ray.config import Config, CrfConfig, MasksConfig, PredictConfig, PusConfig
from pmm_ray.data.dataset import Classes
from pmm_ray.pipeline import Runner
from pmm_ray.recipes import RECIPES, mask_makers, matting_rivals, rrm_variants
from pmm_ray.tracking import RunHandle

POW = {"variant": "pow", "count_ignored": True}
NO_PUS = PusConfig(**POW | {"variant": "none"})
CLASSES = Classes(("background", "cat"), ((0, 0, 0), (9, 9, 9)))


def split(name: str) -> SimpleNamespace:
    photos = SimpleNamespace(fingerprint=f"photos of {name}", classes=CLASSES, photos=())
    return SimpleNamespace(name=name, photos=photos, truth=SimpleNamespace(protocol="drawn", fingerprint=name))


DATA = SimpleNamespace(name="set", train=split("train"), val=split("val"))


@dataclass
class Recorder(Runner):
    """Writes down which stage is asked for what; each artefact is its own number, and every score the same."""

    asked: list[SimpleNamespace] = field(default_factory=list)
    miou = staticmethod(lambda stage, title: 0.5)

    def __call__(self, stage, *, title, seed=None, **arguments):
        self.asked.append(SimpleNamespace(stage=stage, title=title, seed=seed, **arguments))
        number = len(self.asked)
        path = self.store.root / str(number)
        path.mkdir(parents=True)
        facts = {"miou": self.miou(stage, title), "miou_frequent": 0.4, "pus_active": 0.3, "pictures": ["a photo"]}
        (path / "manifest.json").write_text(json.dumps({"facts": facts}))
        self.asked[-1].made = Artefact(stage, str(number), path)
        return self.asked[-1].made

    def of(self, stage, **wanted):
        """What that stage was asked for, in order; `wanted` are arguments it must have been given."""
        found = [one for one in self.asked if one.stage == stage]
        return [one for one in found if all(getattr(one, name) == value for name, value in wanted.items())]


@dataclass
class Page:
    """What MLflow would be told of a run and of those in it."""

    inherited: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    panels: dict[str, Path] = field(default_factory=dict)
    children: list[Page] = field(default_factory=list)

    @contextlib.contextmanager
    def child(self, name, *, tags, params=None, key=None):
        tags = {**self.inherited, **tags}
        self.children.append(Page(tags, {**tags}))
        yield self.children[-1]

    def tag(self, name, value):
        self.tags[name] = value

    def metrics(self, values, step=None):
        pass

    def panel(self, path, name):
        self.panels.setdefault(name, path)  # as MLflow's runs do

    @property
    def all(self) -> list[Page]:
        return [self, *(page for child in self.children for page in child.all)]


def recorded(folder, recipe: str, *, page=None, **sections) -> tuple[Recorder, Config, list]:
    config = Config.model_validate({"recipe": recipe, **sections})
    run = Recorder(config, Store(folder), page or RunHandle())
    return run, config, RECIPES[recipe](run, config, DATA)


CYCLES = ["cycle 0", "cycle 1"]
D2CAM_ROWS = [f"segmentation: {maker} on {cam}" for cam in ("CAM", "D2CAM") for maker in ("PPG", "matting")]


@pytest.mark.parametrize(
    ("recipe", "rows"),
    [
        ("pmm", CYCLES),
        ("mat_label", CYCLES),
        ("rrm_two_step", ["RRM, one step", "+ cycle 1"]),
        ("ablation", ["masks as configured", "+ cycle 1"]),
        ("mat_label_ablation", D2CAM_ROWS),
    ],
)
def test_the_masks_of_a_row_are_shown_beside_those_of_the_others(tmp_path, recipe, rows):
    page, d2cam = Page(), {"category": 0.1}
    run, _, _ = recorded(
        tmp_path, recipe, page=page, ablation={"seeds": [0]}, cycles={"count": 1}, cam={"train": {"d2cam": d2cam}}
    )
    shown = {one.tags.get("row"): one.panels for one in page.all if one.panels}
    drawn = run.of("draw_overlays")
    assert shown == {
        row: {"masks/a photo": one.made.path / "panels/a photo.png"} for row, one in zip(rows, drawn, strict=True)
    }
    assert len({one.masks.fingerprint for one in drawn}) == len(rows)


def test_pmm_goes_from_cams_to_masks_to_a_network_and_each_cycle_from_the_network_before(tmp_path):
    run, config, scores = recorded(tmp_path, "pmm", seed=5, cycles={"count": 2}, pus=POW)
    (classifier,), (cams,), (masks,) = run.of("train_cam"), run.of("infer_cams"), run.of("make_masks")
    assert cams.model == classifier.made and masks.cams == cams.made and masks.masks == config.masks
    first, second, third = run.of("train_seg")
    assert [one.pus for one in (first, second, third)] == [config.pus, NO_PUS, NO_PUS]
    assert [one.seed for one in (classifier, first, second, third)] == [5] * 4
    one, two = run.of("predict_masks", photos=DATA.train.photos)
    assert [first.masks, second.masks, third.masks] == [masks.made, one.made, two.made]
    assert [one.model, two.model] == [first.made, second.made]
    assert [score.row for score in scores] == ["CAM, best threshold", "cycle 0", "cycle 1", "cycle 2"]
    # a cycle's masks are those that its network was trained on
    assert [one.masks for one in run.of("evaluate_masks", photos=DATA.train.photos)] == [
        masks.made,
        one.made,
        two.made,
    ]
    assert all({"train masks", "val", "val + CRF"} <= score.values.keys() for score in scores[1:])
    pus, _, _ = recorded(tmp_path / "pus", "pmm", cycles={"count": 1, "pus": True}, pus={"variant": "pow"})
    assert [one.pus.variant for one in pus.of("train_seg")] == ["pow", "pow"]


def test_val_is_scored_before_and_after_the_crf_without_its_labels(tmp_path):
    run, _, _ = recorded(tmp_path, "pmm", cycles={"count": 0})
    (predicted,) = run.of("predict_masks", photos=DATA.val.photos)
    assert not predicted.label_filter and predicted.crf == CrfConfig(preset="segmentation")
    plain, refined = run.of("evaluate_masks", photos=DATA.val.photos)
    assert (plain.folder, refined.folder) == ("raw", "masks")
    assert plain.masks == refined.masks == predicted.made and plain.truth == refined.truth == DATA.val.truth
    assert "no labels given, no CRF" in plain.protocol and "CRF preset segmentation" in refined.protocol
    less, _, scores = recorded(tmp_path / "less", "pmm", cycles={"count": 0}, eval={"crf": False})
    assert less.of("predict_masks")[0].crf is None and "val + CRF" not in scores[-1].values


ODD = {
    "seed": 3,
    "cam": {"infer": {"scales": [1.0]}, "net": {"backbone": "resnet18"}},
    "seg": {"predict": {"scales": [0.5], "flip": False}, "arch": "pspnet"},
    "cycles": {"count": 1, "label_filter": False, "crf": {"preset": "irn"}},
    "rrm": {"predict": {"scales": [0.75]}, "label_filter": False, "crf": {"preset": "ppg"}},
    "eval": {"thresholds": [0.1, 0.7], "min_images": 2, "boundary": 0.03},
}


def test_every_setting_of_pmm_arrives_at_its_stage(tmp_path):
    run, config, _ = recorded(tmp_path, "pmm", **ODD)
    assert run.of("train_cam")[0].net == config.cam.net and run.of("train_cam")[0].train == config.cam.train
    assert run.of("infer_cams")[0].infer == config.cam.infer
    seg = config.seg
    assert all((one.arch, one.net, one.train) == ("pspnet", seg.net, seg.train) for one in run.of("train_seg"))
    predict = PredictConfig(scales=(0.5,), flip=False)
    assert (
        {one.predict for one in run.of("predict_masks")} == {network.predict for network in run.networks} == {predict}
    )
    (own,) = run.of("predict_masks", photos=DATA.train.photos)
    assert (own.label_filter, own.crf.preset) == (False, "irn")
    (curve,) = run.of("evaluate_cams")
    assert (curve.thresholds, curve.min_images, curve.boundary) == ((0.1, 0.7), 2, 0.03)
    assert {(one.min_images, one.boundary) for one in run.of("evaluate_masks")} == {(2, 0.03)}


def test_every_setting_of_rrm_arrives_at_its_stage_and_its_second_step_has_those_of_segmentation(tmp_path):
    run, config, _ = recorded(tmp_path, "rrm_two_step", **ODD)
    rrm = config.rrm
    (joint,) = run.of("train_rrm")
    assert (joint.seed, joint.net, joint.head, joint.train, joint.labels) == (
        3,
        rrm.net,
        rrm.head,
        rrm.train,
        rrm.labels,
    )
    by_joint = run.of("predict_masks", model=joint.made)
    assert {(one.predict, one.crf) for one in by_joint} == {(rrm.predict, rrm.crf)} and len(by_joint) == 2
    (own,) = run.of("predict_masks", model=joint.made, photos=DATA.train.photos)
    assert not own.label_filter and run.of("infer_cams")[0].model == joint.made
    second, third = run.of("train_seg")
    assert second.masks == own.made and second.seed == 3
    of_second = run.of("predict_masks", model=second.made)
    assert {one.predict for one in of_second} == {config.seg.predict}
    assert third.masks == run.of("predict_masks", model=second.made, photos=DATA.train.photos)[0].made
    assert [network.predict for network in run.networks] == [rrm.predict, config.seg.predict, config.seg.predict]


def test_classifiers_on_crops_read_masks_of_a_plain_classifiers_cams(tmp_path):
    train = {"multi_crop": True, "multi_crop_alpha": 7}
    run, config, _ = recorded(tmp_path, "pmm", cam={"train": train}, cycles={"count": 0})
    plain, on_crops = run.of("train_cam")
    assert not plain.train.multi_crop and plain.rough_masks is None
    rough, masks = run.of("make_masks")
    assert rough.masks == MasksConfig(maker="baseline", cvs=False, alpha=7, crf=CrfConfig(preset="baseline"))
    assert on_crops.rough_masks == rough.made and on_crops.train == config.cam.train
    assert [one.model for one in run.of("infer_cams")] == [plain.made, on_crops.made]
    assert [rough.cams, masks.cams] == [one.made for one in run.of("infer_cams")]


def test_the_ablation_trains_once_for_each_seed_and_each_row_is_what_it_says(tmp_path):
    ablation = {"seeds": [1, 2], "alphas": [2, 4], "upper_bound": True}
    sections = {"pus": POW, "cycles": {"count": 1}}
    run, config, scores = recorded(tmp_path, "ablation", ablation=ablation, **sections)
    assert [one.seed for one in run.of("train_cam")] == [1, 2]
    assert [score.seed for score in scores if score.row == "segmentation"] == [1, 2]
    trained = run.of("train_seg")
    assert [one.seed for one in trained] == [1] * 4 + [2] * 4
    (truth, _), masks = run.of("truth_masks"), trained[0].masks
    assert [(one.title, one.pus) for one in trained[:4]] == [
        ("segmentation", NO_PUS),
        ("+ PUS", config.pus),
        ("segmentation, cycle 1", NO_PUS),
        ("upper bound", NO_PUS),
    ]
    (cycle, _) = run.of("predict_masks", photos=DATA.train.photos)
    assert [one.masks for one in trained[:4]] == [masks, masks, cycle.made, truth.made]
    assert cycle.model == trained[1].made
    assert next(one.masks for one in run.asked if one.stage == "make_masks" and one.made == masks) == config.masks
    assert [(row, variant, one.maker, one.cvs, one.alpha) for row, variant, one in mask_makers(config)] == [
        ("CRF baseline", "alpha 2", "baseline", False, 2),
        ("+ CVS", "alpha 2", "baseline", True, 2),
        ("+ PPG", "alpha 2", "ppg", True, 2),
        ("CRF baseline", "alpha 4", "baseline", False, 4),
        ("+ CVS", "alpha 4", "baseline", True, 4),
        ("+ PPG", "alpha 4", "ppg", True, 4),
        ("CVS + PPG as published (s 0.3, t 0.05, alpha 11)", "", "ppg", True, 11),
    ]
    assert [one.masks for one in run.of("make_masks")[:7]] == [setting for _, _, setting in mask_makers(config)]


def test_rrms_ablation_changes_one_thing_a_row_for_each_seed(tmp_path):
    run, config, _ = recorded(tmp_path, "rrm_ablation", ablation={"seeds": [1, 2]}, rrm={"labels": {"cam_alpha": 2}})
    assert [one.seed for one in run.of("train_rrm")] == [1] * 5 + [2] * 5
    own = config.rrm
    changes = [(one.labels.rule, one.labels.cam_alpha, one.train.energy_weight) for _, one in rrm_variants(own)]
    weight = own.train.energy_weight
    assert changes == [("union", 32, weight), ("agreement", 2, weight), ("crf", 2, weight), ("union", 2, 0)]
    assert [one.labels for one in run.of("train_rrm")[1:5]] == [one.labels for _, one in rrm_variants(own)]


def test_mat_labels_ablation_makes_masks_of_each_cam_and_trains_on_those_of_ppg_and_of_matting(tmp_path):
    d2cam = {"category": 0.1, "stability": 0.1}
    sections = {"cam": {"train": {"d2cam": d2cam}}, "ablation": {"seeds": [4]}, "masks": {"maker": "matting"}}
    run, config, _ = recorded(tmp_path, "mat_label_ablation", **sections, pus={"variant": "none"})
    makers = [(setting.maker, setting.cvs) for _, _, setting in matting_rivals(config, "CAM")]
    assert makers == [("baseline", False), ("ppg", True), ("matting", False), ("matting", False)]
    plain, by_d2cam, *parts = run.of("infer_cams")
    trained = run.of("train_cam")
    assert [one.train.d2cam.on for one in trained] == [False, True, True, True] and len(parts) == 2
    assert [one.model for one in run.of("infer_cams")] == [one.made for one in trained]
    by_name = {one.made: one for one in run.of("make_masks")}
    learned = [by_name[one.masks] for one in run.of("train_seg") if one.title != "upper bound"]
    assert [(one.cams, one.masks.maker, one.masks.cvs) for one in learned] == [
        (plain.made, "ppg", True),
        (plain.made, "matting", False),
        (by_d2cam.made, "ppg", True),
        (by_d2cam.made, "matting", False),
    ]


@pytest.mark.parametrize(("by_epoch", "chosen"), [((0.2, 0.5, 0.3), "0002"), ((0.2, 0.3, 0.5), "0003")])
def test_best_val_chooses_the_epoch_that_is_best_on_val_and_goes_on_with_it(tmp_path, monkeypatch, by_epoch, chosen):
    def miou(stage, title):
        """Of the first training's epochs; 0.1 else."""
        words = title.split()
        return by_epoch[int(words[2]) - 1] if title.startswith("segmentation, epoch") and "score" in words else 0.1

    monkeypatch.setattr(Recorder, "miou", staticmethod(miou))
    cycles = {"count": 1, "checkpoint": "best_val"}
    run, _, _ = recorded(tmp_path, "pmm", cycles=cycles, seg={"train": {"epochs": 3}})
    first, _ = run.of("train_seg")
    assert first.snapshots
    (cycle,) = run.of("predict_masks", photos=DATA.train.photos)
    assert cycle.model.path == first.made.path / "snapshots" / chosen
    plain, _, _ = recorded(tmp_path / "last", "pmm", cycles={"count": 1})
    assert not any(one.snapshots for one in plain.of("train_seg"))
