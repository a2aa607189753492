"""Labels to RRM's network."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import stage_kit
import torch
from PIL import Image
from ray import cloudpickle
from stage_kit import CLASSES, artefact, context, draw, scene

from pmm_ray.config import CamInferConfig, HeadConfig, NetConfig, PredictConfig, ReliableConfig, RrmTrainConfig
from pmm_ray.data.images import read_label
from pmm_ray.losses.dense_energy import LatticeFilter, dense_energy
from pmm_ray.losses.segmentation import cross_entropy
from pmm_ray.nets.build import build_joint, load_model
from pmm_ray.stages import fitting
from pmm_ray.stages.infer_cams import infer_cams
from pmm_ray.stages.label_crops import LabelledCrop, Labeller, label_maker
from pmm_ray.stages.predict_masks import predict_masks
from pmm_ray.stages.rrm_objective import RrmObjective
from pmm_ray.stages.train_rrm import train_rrm
from pmm_ray.teams import LocalTeam

NET = NetConfig(backbone="test_resnet", weights="none", output_stride=32, batch_norm="train")
HEAD = HeadConfig(channels=8, dilation=2)
TRAIN = RrmTrainConfig(epochs=3, batch_size=2, crop=64, resize=(0.8, 1.2), lr=1e-3)
HERE = {"gpu": "no", "train_workers": 0, "infer_workers": 0}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photos_in(folder: Path):
    boxes = {"a": (1, 5, 5, 30, 30), "b": (2, 10, 20, 35, 55), "c/d": (1, 2, 30, 20, 58), "e": (2, 4, 4, 36, 40)}
    return draw(folder, {name: scene(box) for name, box in boxes.items()})[0]


def test_the_stage_leaves_a_network_that_makes_cams_and_masks_and_shows_its_labels(tmp_path):
    photos = photos_in(tmp_path)
    given = {"photos": photos, "net": NET, "head": HEAD, "train": TRAIN, "labels": ReliableConfig()}
    facts = train_rrm(**given, context=context(tmp_path / "rrm", **HERE))
    history = [json.loads(line) for line in (tmp_path / "rrm/metrics.jsonl").read_text().splitlines()]
    assert [("loss_foreground" in epoch, "reliable" in epoch) for epoch in history] == [
        (False, False),
        (True, True),  # the second half begins within this epoch
        (True, True),
    ]
    assert history[-1]["loss_energy"] < 0
    shares = facts["reliable"]
    assert shares.keys() == {"reliable", "reliable/background", "reliable/red", "reliable/blue"}
    assert shares["reliable"] == pytest.approx(sum(shares.values()) - shares["reliable"]) and shares["reliable"] <= 1
    sheets = sorted(path.name for path in (tmp_path / "rrm/labels").iterdir())
    assert sheets == ["epoch-0002.png", "epoch-0003.png"]
    with Image.open(tmp_path / "rrm/labels/epoch-0003.png") as sheet:
        assert sheet.width > 500 and sheet.height > 500
    module, info = load_model(tmp_path / "rrm/model.pt")
    assert info["kind"] == "joint" and (info["net"]["channels"], info["net"]["dilation"]) == (8, 2)
    assert module.segmentation[0].out_channels == 8 and module.segmentation[0].dilation == (2, 2)

    model = artefact(tmp_path / "rrm")
    found = infer_cams(
        photos=photos, model=model, infer=CamInferConfig(scales=(1.0,)), context=context(tmp_path / "cams", **HERE)
    )
    assert found == {"images": 4, "failed": []}
    predict_masks(photos=photos, model=model, predict=PredictConfig(scales=(1.0,)), label_filter=True, crf=None,
                  context=context(tmp_path / "masks", **HERE))  # fmt: skip
    mask = read_label(tmp_path / "masks/masks/c/d.png")
    assert mask.shape == (40, 60) and set(np.unique(mask)) <= {0, 1}


@pytest.mark.ray
def test_two_workers_train_the_network_that_one_does(ray_session, tmp_path):
    cloudpickle.register_pickle_by_value(stage_kit)
    given = {"photos": photos_in(tmp_path), "net": NET, "head": HEAD, "train": TRAIN, "labels": ReliableConfig()}
    places = ((0, tmp_path / "here"), (2, tmp_path / "workers"))
    for workers, out in places:
        train_rrm(**given, context=context(out, gpu="no", train_workers=workers))
    one, two = ([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for _, out in places)
    for epoch, same in zip(one, two, strict=True):
        assert {**same, "seconds": 0} == pytest.approx({**epoch, "seconds": 0}, rel=1e-4)
    one, two = (load_model(out / "model.pt")[0].state_dict() for _, out in places)
    # in the mean: AdamW makes a whole step of a gradient that is rounding alone
    assert all((two[name] - value).float().abs().mean() < 1e-4 for name, value in one.items())


class Stops:
    """A log that ends the run when it is told of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def metrics(self, values, step=None):
        if step == self.epoch:
            raise KeyboardInterrupt

    def picture(self, path, name): ...


def test_a_training_stopped_in_either_half_goes_on_to_the_same_network(tmp_path):
    given = {"photos": photos_in(tmp_path), "net": NET, "head": HEAD, "train": TRAIN, "labels": ReliableConfig()}
    train_rrm(**given, context=context(tmp_path / "whole", **HERE))
    stopped = context(tmp_path / "stopped", **HERE)
    for epoch in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            train_rrm(**given, context=replace(stopped, log=Stops(epoch)))
    train_rrm(**given, context=stopped)
    whole, again = (load_model(tmp_path / name / "model.pt")[0].state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_every_setting_of_the_training_reaches_the_objective(tmp_path, monkeypatch):
    seen = {}

    def spy(net, **given):
        seen.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr("pmm_ray.stages.train_rrm.RrmObjective", spy)
    for name in ("label_maker", "Examples"):
        note = partial(lambda name, *given, **more: seen.update({name: (given, more)}), name)
        monkeypatch.setattr(f"pmm_ray.stages.train_rrm.{name}", note)
    own = {"mean": (0.2, 0.4, 0.6), "std": (0.1, 0.2, 0.3)}
    labels = ReliableConfig(scales=(0.75, 1.0), top_share=0.3)
    train = TRAIN.model_copy(update={"energy_weight": 3e-8, "energy_gradient": "exact", "energy_sxy": 40.0,
                                     "energy_srgb": 9.0, "joint_from": 0.25})  # fmt: skip
    given = {"photos": photos_in(tmp_path), "net": NET.model_copy(update=own), "head": HEAD, "train": train,
             "labels": labels}  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        train_rrm(**given, context=replace(context(tmp_path / "rrm", **HERE), seed=5))
    assert seen["label_maker"] == ((labels,), {}) and seen["Examples"][1] == {"seed": 5}
    assert seen["Examples"][0][1].augment.fill == (51, 102, 153)
    assert (seen["mean"], seen["std"]) == ((0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
    assert (seen["energy_weight"], seen["energy_gradient"], seen["joint_from"]) == (3e-8, "exact", 0.25)
    assert seen["scales"] == (0.75, 1.0) and seen["names"] == CLASSES.names
    # of the crop at half its size
    assert (seen["make_filter"].keywords["sxy"], seen["make_filter"].keywords["srgb"]) == (20.0, 9.0)


class Written:
    """A labeller that answers with given masks, and keeps what it was given."""

    def __init__(self, masks: torch.Tensor):
        self.masks, self.cams = masks.numpy().astype(np.uint8), []

    def begin(self, images, cams, class_ids, inside):
        self.cams, self.images, self.inside, futures = cams, images, inside, []
        for image, cam, ids, mask in zip(images, cams, class_ids, self.masks, strict=True):
            futures.append(Future())
            futures[-1].set_result(LabelledCrop(image.movedim(0, -1).numpy(), cam.numpy(), ids, mask))
        return futures


LABELS = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
INSIDE = torch.ones(2, 64, 64, dtype=torch.bool)


def objective(masks: torch.Tensor, *, progress: float = 0.5, **changes) -> RrmObjective:
    torch.manual_seed(0)
    net = build_joint(**fitting.network(NET), weights="none", num_classes=3, channels=8, dilation=1)
    torch.nn.init.normal_(net.classifier.head.weight, std=0.1)
    given = {"scales": (0.5, 1.0), "joint_from": 0.5, "energy_weight": 0.0, "energy_gradient": "published",
             "make_filter": lambda images: lambda values: values} | changes  # fmt: skip
    made = RrmObjective(net, mean=(0.5,) * 3, std=(0.5,) * 3, team=LocalTeam(), labeller=Written(masks),
                        names=CLASSES.names, **given)  # fmt: skip
    made.progress = progress
    return made


def batch() -> torch.Tensor:
    return torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def masks_with(*values: tuple[int, int]) -> torch.Tensor:
    """Masks (2, 64, 64) of 255, but so many pixels of these labels in the first image: (label, pixels)."""
    flat = torch.full((2, 64 * 64), 255)
    start = 0
    for label, pixels in values:
        flat[0, start : start + pixels] = label
        start += pixels
    return flat.view(2, 64, 64)


def test_background_and_foreground_are_averaged_each_on_its_own_and_all_losses_are_added():
    masks = masks_with((0, 900), (1, 7), (2, 3))
    made = objective(masks, energy_weight=1e-3).eval()
    figures = made(batch(), (LABELS, INSIDE))
    pixel = cross_entropy(made.net(batch().float() / 127.5 - 1)["main"], masks)[0].flatten()
    torch.testing.assert_close(figures["loss_background"], pixel[:900].mean())
    torch.testing.assert_close(figures["loss_foreground"], pixel[900:910].mean())
    parts = [value for name, value in figures.items() if name.startswith("loss_")]
    assert len(parts) == 4 and figures["loss_energy"] < 0
    torch.testing.assert_close(figures["loss"], torch.stack(parts).sum())
    shares = {name: float(value) for name, value in figures.items() if name.startswith("reliable")}
    assert shares == {
        "reliable": pytest.approx(910 / 8192),
        "reliable/background": pytest.approx(900 / 8192),
        "reliable/red": pytest.approx(7 / 8192),
        "reliable/blue": pytest.approx(3 / 8192),
    }


def test_the_energy_is_that_of_crop_masks_and_area_at_half_size_and_labels_are_made_of_the_crop_itself():
    masks, inside, seen = masks_with((0, 901), (1, 700)), INSIDE.clone(), []
    inside[1, :, 41:] = False

    def make_filter(images):
        seen.append(images)
        return lambda values: values.cumsum(dim=3)

    made = objective(masks, energy_weight=1e-3, make_filter=make_filter).eval()
    figures = made(batch(), (LABELS, inside))
    assert torch.equal(made._labeller.images, batch()) and torch.equal(made._labeller.inside, inside)

    def half(values):
        return torch.nn.functional.interpolate(
            values, size=(32, 32), mode="bilinear", align_corners=False, antialias=True
        )

    (images,) = seen
    assert torch.equal(images, half(batch().float()).round().to(torch.uint8))
    p = half(made.net(batch().float() / 127.5 - 1)["main"].softmax(dim=1))
    # of the four pixels of one at half size one that is unknown, or outside, is enough
    small, inner = torch.full((2, 32, 32), 255), torch.zeros(2, 32, 32, dtype=torch.bool)
    for n, y, x in np.ndindex(2, 32, 32):
        four = masks[n, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        if (four != 255).all():
            small[n, y, x] = four[0, 0]
        inner[n, y, x] = inside[n, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].all()
    energies = dense_energy(p, small, inner, filter=lambda values: values.cumsum(dim=3))
    torch.testing.assert_close(figures["loss_energy"], 1e-3 * energies.mean())


def test_what_the_segmentation_learns_reaches_the_backbone():
    made = objective(masks_with((0, 900), (1, 7)))
    figures = made(batch(), (LABELS, INSIDE))
    (figures["loss_background"] + figures["loss_foreground"]).backward()
    assert any((parameter.grad != 0).any() for parameter in made.net.backbone.parameters())


def test_the_gradient_of_the_energy_is_the_one_asked_for_with_the_same_value():
    def lopsided(values):
        return values.cumsum(dim=3)  # far from its own transpose, which the exact gradient is made of

    values, gradients = [], []
    masks = torch.full((2, 64, 64), 255)
    masks[:, :, :20] = 0  # so that the gate differs along the filter
    for gradient in ("published", "exact"):
        made = objective(masks, energy_weight=1.0, energy_gradient=gradient,
                         make_filter=lambda images: lopsided)  # fmt: skip
        figures = made(batch(), (LABELS, INSIDE))
        figures["loss_energy"].backward()
        values.append(figures["loss_energy"].detach())
        gradients.append(made.net.segmentation[-1].weight.grad)
    torch.testing.assert_close(*values)
    assert not torch.allclose(*gradients, rtol=0.01)


def test_crops_of_the_last_step_alone_are_shown():
    made = objective(masks_with((0, 9)))
    made(batch(), (LABELS, INSIDE))
    first = made.seen
    made._labeller = Written(masks_with((1, 5)))
    made(batch(), (LABELS, INSIDE))
    assert len(first) == len(made.seen) == 2
    assert (made.seen[0].mask == 1).sum() == 5 and not (made.seen[0].mask == 0).any()


@pytest.mark.parametrize("values", [(), ((0, 5),), ((2, 5),)])
def test_an_empty_set_of_pixels_costs_0_and_every_gradient_is_a_number(values):
    made = objective(masks_with(*values))
    figures = made(batch(), (LABELS, INSIDE))
    assert (figures["loss_background"] == 0) == (values != ((0, 5),))
    assert (figures["loss_foreground"] == 0) == (values != ((2, 5),))
    figures["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


def test_before_the_joint_part_only_classification_learns_and_every_parameter_has_a_gradient():
    made = objective(masks_with((0, 9)), progress=0.49)
    figures = made(batch(), (LABELS, INSIDE))
    assert figures.keys() == {"loss", "loss_classification"} and made.seen == []
    figures["loss"].backward()
    assert all((parameter.grad == 0).all() for parameter in made.net.segmentation.parameters())
    assert made.idle() == list(made.net.segmentation.parameters()) and objective(masks_with()).idle() == []
    assert any((parameter.grad != 0).any() for parameter in made.net.backbone.parameters())


def test_labels_are_made_of_the_mean_of_all_scales_for_the_images_own_classes_without_gradient():
    made = objective(masks_with((0, 9))).eval()
    made(batch(), (LABELS, INSIDE))
    inputs, resized = batch().float() / 127.5 - 1, torch.nn.functional.interpolate
    small = resized(inputs, size=(32, 32), mode="bilinear", align_corners=False, antialias=True)
    views = [
        resized(made.net.cam(view), size=(64, 64), mode="bilinear", align_corners=False) for view in (inputs, small)
    ]
    mean = (views[0] + views[1]) / 2
    first, second = made._labeller.cams
    assert not second.requires_grad and first.shape == (1, 64, 64)
    torch.testing.assert_close(first, mean[0, :1].detach())
    torch.testing.assert_close(second, mean[1].detach())


def test_every_scale_sees_whole_cells():
    seen = []
    made = objective(masks_with((0, 9)), scales=(0.4, 1.0, 1.25))
    made.net.backbone.register_forward_pre_hook(lambda _, images: seen.append(tuple(images[0].shape[-2:])))
    made(batch(), (LABELS, INSIDE))
    assert sorted(seen) == [(32, 32), (64, 64), (64, 64)]


def test_the_cam_of_scale_1_is_the_one_in_training_which_sees_by_its_batchs_statistics():
    made = objective(masks_with((0, 9)), scales=(1.0,))
    made(batch(), (LABELS, INSIDE))
    inputs = batch().float() / 127.5 - 1
    in_training, stored = (
        torch.nn.functional.interpolate(cam, size=(64, 64), mode="bilinear", align_corners=False)[1]
        for cam in (made.net.cam(inputs), made.net.eval().cam(inputs))
    )
    torch.testing.assert_close(made._labeller.cams[1], in_training.detach())
    assert not torch.allclose(in_training, stored, atol=1e-2)


def test_other_scales_leave_the_batch_norm_of_scale_1_alone():
    statistics = []
    for scales in ((1.0,), (0.5, 1.0, 2.0)):
        made = objective(masks_with((0, 9)), scales=scales)
        made(batch(), (LABELS, INSIDE))
        assert made.net.training
        statistics.append({name: buffer.clone() for name, buffer in made.named_buffers()})
    assert statistics[0] and all(torch.equal(value, statistics[1][name]) for name, value in statistics[0].items())


def test_filled_in_pixels_do_not_count_in_the_shares():
    inside = INSIDE.clone()
    inside[1] = False
    assert float(objective(masks_with((1, 4096)))(batch(), (LABELS, inside))["reliable"]) == 1


def test_a_cam_of_another_scale_that_is_no_number_is_not_passed_over(monkeypatch):
    made = objective(masks_with((0, 9)))
    monkeypatch.setattr(made, "_activations", lambda inputs, scale: torch.full((2, 2, 2, 2), torch.inf))
    with ThreadPoolExecutor(1) as pool:
        made._labeller = Labeller(label_maker(ReliableConfig()), pool)
        assert made(batch(), (LABELS, INSIDE))["loss"].isnan()


@pytest.mark.parametrize("head", ["classifier.head", "segmentation.2"])
def test_a_network_that_says_no_number_has_such_a_loss_and_no_other_error(head):
    made = objective(masks_with((0, 9)), energy_weight=1e-3, make_filter=partial(LatticeFilter, sxy=9.0, srgb=9.0))
    torch.nn.init.constant_(made.net.get_submodule(head).weight, torch.nan)
    with ThreadPoolExecutor(1) as pool:
        made._labeller = Labeller(label_maker(ReliableConfig()), pool)
        assert made(batch(), (LABELS, INSIDE))["loss"].isnan()
