"""Labels to classifier."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pmm_ray.config import CamTrainConfig, ClusterConfig, D2CamConfig, NetConfig
from pmm_ray.data.dataset import Classes, Photo, Photos
from pmm_ray.data.images import read_image
from pmm_ray.losses.classification import multilabel_soft_margin
from pmm_ray.losses.d2cam import (
    UNSURE,
    category_decoupling,
    exclusivity,
    foreground_decoupling,
    stability,
    sums_of_classes,
    sure_pixels,
)
from pmm_ray.nets.build import build_classifier, load_model
from pmm_ray.nets.classifier import class_scores
from pmm_ray.nets.inputs import normalise
from pmm_ray.stages import fitting, train_cam
from pmm_ray.stages.d2cam_objective import D2CamObjective
from pmm_ray.stages.stage import Context
from pmm_ray.teams import LocalTeam

NET = NetConfig(backbone="test_resnet", weights="none", output_stride=32, batch_norm="train")
TRAIN = CamTrainConfig(epochs=2, batch_size=4, crop=32, lr=1e-3)

CLASSES = Classes(("background", "red", "green"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class FileLog:
    """Appends to a file."""

    def __init__(self, path: Path):
        self.path = path

    def metrics(self, values, step=None):
        with self.path.open("a") as file:
            file.write(json.dumps([step, dict(values)]) + "\n")

    def picture(self, path, name): ...


def photos_in(folder: Path) -> Photos:
    """Six images that are red or green, and one that is none."""
    photos = []
    for index in range(6):
        image = np.random.default_rng(index).integers(0, 60, (40, 50, 3), dtype=np.uint8)
        image[:, :, index % 2] += 180
        Image.fromarray(image).save(folder / f"{index}.png")
        photos.append(Photo(str(index), str(folder / f"{index}.png"), (1 + index % 2,)))
    (folder / "bad.png").write_bytes(b"no image")
    return Photos((*photos, Photo("bad", str(folder / "bad.png"), (1,))), CLASSES, "f")


def work(folder: Path, train: CamTrainConfig, rough_masks=None) -> tuple[torch.nn.Module, dict]:
    out = folder / "out"
    train_cam._work(LocalTeam(), photos=photos_in(folder), rough_masks=rough_masks or {}, net=NET, train=train, out=out,
                    plan=fitting._plan(train, seed=0, amp=False), log=FileLog(folder / "log"))  # fmt: skip
    return load_model(out / "model.pt")


def test_stage_leaves_model_metrics_and_facts_and_is_done_when_asked_again(tmp_path):
    context = Context(out=tmp_path / "out", seed=0, cluster=ClusterConfig(gpu="no", train_workers=0),
                      log=FileLog(tmp_path / "log"), title="cam")  # fmt: skip
    given = {"photos": photos_in(tmp_path), "rough_masks": None, "net": NET, "train": TRAIN}
    facts = train_cam.train_cam(**given, context=context)
    assert facts["images"] == 7 and facts["epochs"] == 2 and facts["failed"][0][0] == "bad"
    assert sorted(path.name for path in context.out.iterdir()) == ["metrics.jsonl", "model.pt"]
    assert [json.loads(line)[0] for line in (tmp_path / "log").read_text().splitlines()] == [1, 2]
    assert train_cam.train_cam(**given, context=replace(context, log=None)) == facts
    module, info = load_model(context.out / "model.pt")
    assert info["classes"] == list(CLASSES.names) and info["mean"] == (0.5, 0.5, 0.5)
    assert module.cam(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 2, 2)


def test_the_classifier_learns_what_its_labels_say(tmp_path):
    module, info = work(tmp_path, TRAIN.model_copy(update={"epochs": 25}))
    assert info["facts"]["loss"] < 0.4
    for photo in photos_in(tmp_path).photos[:-1]:
        image = torch.from_numpy(read_image(photo.image)).movedim(-1, 0)[None, :, :32, :32]
        logits = module(normalise(image, mean=info["mean"], std=info["std"]))
        assert logits.argmax() + 1 == photo.labels[0]


def test_equivariance_trains_and_its_classifier_is_rebuilt_with_its_correlation(tmp_path):
    module, info = work(tmp_path, TRAIN.model_copy(update={"equivariance": 1.0, "equivariance_scale": 0.5}))
    assert info["net"]["correlation"] and module.correlation is not None
    cam = module.cam(torch.randn(1, 3, 64, 64))
    assert cam.shape == (1, 2, 2, 2) and cam.min() >= 0


def test_multi_crop_reads_the_rough_masks(tmp_path):
    Image.fromarray(np.ones((40, 50), np.uint8)).save(tmp_path / "rough.png")
    Image.fromarray(np.ones((9, 9), np.uint8)).save(tmp_path / "small.png")
    _, info = work(tmp_path, TRAIN, {"0": tmp_path / "rough.png", "2": tmp_path / "small.png"})
    assert [name for name, _ in info["facts"]["failed"]] == ["2", "bad"]


def test_the_share_that_confirms_a_crops_label_is_that_of_the_settings(tmp_path, monkeypatch):
    seen = []

    def spy(photos, make, *, seed):
        seen.append(make.share)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_cam, "Examples", spy)
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, TRAIN.model_copy(update={"multi_crop": True, "multi_crop_share": 0.37}))
    assert seen == [0.37]


def objective(**options) -> train_cam.CamObjective:
    torch.manual_seed(0)
    net = build_classifier(**fitting.network(NET), weights="none", num_classes=2, correlation="equivariance" in options)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    return train_cam.CamObjective(net, mean=(0.5,) * 3, std=(0.5,) * 3, team=LocalTeam(), **options)


def whole(images: torch.Tensor) -> torch.Tensor:
    """The area of crops without anything filled in."""
    return torch.ones_like(images[:, 0], dtype=torch.bool)


def test_loss_is_the_mean_over_images():
    target, images = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    one = objective().eval()
    logits = one.net(images.float() / 127.5 - 1)
    loss = one(images, (target, whole(images)))["loss"]
    assert torch.allclose(loss, multilabel_soft_margin(logits, target).mean(), atol=1e-6)


def test_with_equivariance_every_parameter_has_a_gradient_and_the_parts_add_up():
    images, labels = torch.randint(0, 255, (2, 3, 96, 96), dtype=torch.uint8), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    two_views = objective(equivariance=0.5, scale=0.7)
    figures = two_views(images, (labels, whole(images)))
    figures["loss"].backward()
    assert all(parameter.grad is not None for parameter in two_views.parameters())
    expected = figures["loss_classification"] + 0.5 * (figures["loss_er"] + figures["loss_ecr"])
    assert torch.allclose(figures["loss"], expected)


def test_the_parts_of_two_views_by_their_formulas():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (2, 3, 256, 256), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    two_views = objective(equivariance=0.5, scale=0.5)
    figures = two_views(images, (labels, whole(images)))
    large = images.float() / 127.5 - 1
    small = F.interpolate(large, size=(128, 128), mode="bilinear", align_corners=False, antialias=True)
    (maps, refined), (maps_of_small, refined_of_small) = (
        two_views.net.maps_and_refined(x, labels) for x in (large, small)
    )

    of_view = [F.multilabel_soft_margin_loss(m.mean(dim=(2, 3)), labels) for m in (maps, maps_of_small)]
    assert abs(of_view[0] - of_view[1]) > 1e-3
    # half the size bilinearly is the mean of four
    plain, refined = F.avg_pool2d(class_scores(maps, labels), 2), F.avg_pool2d(refined, 2)
    plain_of_small = class_scores(maps_of_small, labels)

    def hardest(difference: torch.Tensor) -> torch.Tensor:
        """The mean of a fifth of the 3 x 4 x 4 values of an image."""
        return difference.abs().flatten(1).sort(dim=1).values[:, -10:].mean()

    expected = {
        "loss_classification": sum(of_view) / 2,
        "loss_er": (plain - plain_of_small).abs().mean(),
        "loss_ecr": hardest(plain - refined_of_small) + hardest(plain_of_small - refined),
    }
    for name, value in expected.items():
        assert figures[name].item() == pytest.approx(value.item(), rel=1e-4), name


D2CAM = {"category": 0.3, "foreground": 0.2, "stability": 0.5, "exclusivity": 0.4}


def d2cam(num_classes: int = 2, **options) -> D2CamObjective:
    torch.manual_seed(0)
    net = build_classifier(**fitting.network(NET), weights="none", num_classes=num_classes)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    with torch.no_grad():
        # towards the mean feature, so that every class is found: of one that is not nothing is sure
        mean = net.eval().features(batch()[0].float() / 127.5 - 1).mean(dim=(0, 2, 3))
        net.train().head.weight.add_((mean / mean.square().sum())[None, :, None, None])
    settings = D2CamConfig(**{**D2CAM, "begin": 0.0, "high": 0.4, "low": 0.2, **options}).model_dump()
    return D2CamObjective(net, mean=(0.5,) * 3, std=(0.5,) * 3, team=LocalTeam(), num_classes=num_classes,
                          channels=net.channels, **settings)  # fmt: skip


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (3, 3, 96, 96), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])


def test_d2cams_parts_add_up_by_their_weights_and_those_of_weight_0_are_not_there():
    images, labels = batch()
    objective = d2cam()
    figures = objective(images, (labels, whole(images)))
    parts = {f"loss_{name}" for name in D2CAM}
    assert figures.keys() == {"loss", "loss_classification", "sure"} | parts
    assert 0 < figures["sure"] < 1 and figures["loss_exclusivity"] > 0 and figures["loss_category"] > 0
    expected = figures["loss_classification"] + sum(D2CAM[name] * figures[f"loss_{name}"] for name in D2CAM)
    assert torch.allclose(figures["loss"], expected)
    figures["loss"].backward()
    assert all(parameter.grad is not None for parameter in objective.net.parameters())
    for name in D2CAM:
        less = d2cam(**{name: 0.0})(images, (labels, whole(images)))
        assert figures.keys() - less.keys() == {f"loss_{name}"}


def test_each_figure_is_its_loss_by_its_own_numbers_over_the_pixels_it_is_about():
    """The second step of a training, whose network, average and prototypes are by then three different things."""
    objective = d2cam(num_classes=3, temperature=0.3, momentum=0.7, high=0.35, low=0.25, average=0.5)
    net, generator = objective.net, torch.Generator().manual_seed(2)
    # a class that is never found, though at single pixels its map is above 0
    net.head.weight.data[2].neg_().add_(0.5 * torch.randn(net.channels, 1, 1, generator=generator))
    images = torch.randint(0, 255, (5, 3, 160, 160), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 0]])
    area = whole(images)
    area[1:3, 70:], area[4, :, :100] = False, False
    objective(images.flip(3), (labels, area.flip(2)))
    before = objective.prototypes.vectors.clone()
    net.head.weight.data.add_(0.1 * torch.randn(net.head.weight.shape, generator=generator))
    figures = objective(images, (labels, area))

    features = net.features(images.float() / 127.5 - 1)
    maps = net.maps(features)
    inside = torch.stack([a.unflatten(0, (5, 32)).unflatten(2, (5, 32)).all(dim=3).all(dim=1) for a in area])
    missed = labels.bool() & (maps.mean(dim=(2, 3)) <= 0)
    assert missed.nonzero().tolist() == [[3, 2]] and maps[3, 2].max() > 0 and not inside.all()
    scores = class_scores(maps, labels)
    sure = sure_pixels(scores, inside, missed, high=0.35, low=0.25)
    assert set(sure.unique().tolist()) == {UNSURE, 0, 1, 2}
    assert figures["sure"].item() == pytest.approx((sure != UNSURE).float().mean().item())

    sums, counts = sums_of_classes(features, sure, num_classes=3)
    moved = F.normalize(0.7 * before + 0.3 * F.normalize(sums, dim=1), dim=1)
    known = torch.tensor([True, True, False])
    assert (counts > 0).tolist() == known.tolist() and not torch.allclose(before[:2], moved[:2], atol=1e-3)
    torch.testing.assert_close(objective.prototypes.vectors[:2], moved[:2])
    contrast = category_decoupling(features, sure, moved, known, temperature=0.3)
    sides, counted = foreground_decoupling(features, sure, temperature=0.3)
    assert 0 < counted.sum() < (sure != UNSURE).sum()
    net_of_average = objective.averaged.module
    assert not net_of_average.training
    averaged = class_scores(net_of_average.cam(images.float() / 127.5 - 1), labels)
    several = inside & (labels.sum(dim=1) > 1)[:, None, None]
    expected = {
        "loss_category": contrast[sure > 0].mean(),
        "loss_foreground": sides[counted].mean(),
        "loss_stability": stability(scores, averaged, labels).mean(),
        "loss_exclusivity": exclusivity(scores)[several].mean(),
    }
    for name, value in expected.items():
        assert value > 1e-3 and figures[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_before_it_begins_d2cam_is_the_classifier_alone():
    images, labels = batch()
    objective = d2cam(begin=0.5)
    plain = objective(images, (labels, whole(images)))
    assert plain.keys() == {"loss", "loss_classification"}
    logits = d2cam().net(images.float() / 127.5 - 1)
    assert torch.allclose(plain["loss"], multilabel_soft_margin(logits, labels).mean(), atol=1e-6)
    assert not objective.prototypes.met.any() and objective.averaged.n_averaged == 1


def test_the_moving_average_begins_as_the_network_follows_it_and_costs_no_gradient():
    images, labels = batch()
    objective = d2cam(average=0.6)
    for norm in (module for module in objective.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.eval()
    assert objective(images, (labels, whole(images)))["loss_stability"].item() == pytest.approx(0, abs=1e-6)
    before = objective.averaged.module.head.weight.clone()
    with torch.no_grad():
        objective.net.head.weight.add_(1)
    assert objective(images, (labels, whole(images)))["loss_stability"] > 0
    # a short past counts for little: (1 + n) / (10 + n) of it, until that reaches 0.6
    head = objective.averaged.module.head
    assert torch.allclose(head.weight, before + 9 / 11)
    for step in range(2, 25):
        head.weight.data.copy_(before)
        objective(images, (labels, whole(images)))
        assert torch.allclose(head.weight, before + max(9 / (10 + step), 0.4))
    assert not any(parameter.requires_grad for parameter in objective.averaged.parameters())


def test_what_was_filled_is_never_sure():
    images, labels = batch()
    area = torch.zeros(3, 96, 96, dtype=torch.bool)
    assert d2cam()(images, (labels, area))["sure"] == 0
    area[:, :64] = True
    some, all_of_it = (d2cam()(images, (labels, shown))["sure"] for shown in (area, whole(images)))
    assert 0 < some < all_of_it


def test_d2cams_losses_are_of_full_precision_whatever_the_network_is():
    images, labels = batch()
    full = d2cam()(images, (labels, whole(images)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective = d2cam()
        half = objective(images, (labels, whole(images)))
    assert {value.dtype for name, value in half.items()} == {torch.float32}
    assert objective.prototypes.vectors.dtype == torch.float32
    # the network's own rounding is left
    assert half["loss_foreground"].item() == pytest.approx(full["loss_foreground"].item(), abs=0.02)


def test_a_d2cam_classifier_is_trained_and_read_like_any(tmp_path):
    settings = D2CamConfig(**D2CAM, begin=0.5)
    module, info = work(tmp_path, TRAIN.model_copy(update={"d2cam": settings}))
    assert info["facts"]["epochs"] == 2 and module.cam(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 2, 2)
    history = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert "sure" not in history[0] and {"sure", "loss_stability"} <= history[1].keys()
    Image.fromarray(np.ones((40, 50), np.uint8)).save(tmp_path / "rough.png")
    other = tmp_path / "crops"
    other.mkdir()
    work(other, TRAIN.model_copy(update={"d2cam": settings}), {"0": tmp_path / "rough.png"})


def test_without_d2cam_a_training_is_the_one_it_was_before_there_was_any():
    assert "d2cam" not in CamTrainConfig(d2cam=D2CamConfig(high=0.9)).identity()
    some = D2CamConfig(category=1.0, high=0.9)
    assert "average" not in some.identity() and some.identity()["high"] == 0.9
    assert CamTrainConfig(d2cam=some).identity() != CamTrainConfig().identity()
    with pytest.raises(ValueError, match="two ways to train a CAM"):
        CamTrainConfig(equivariance=1.0, d2cam=some)
