"""Settings to plans, augmentation and networks: each number arrives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pmm_ray.config import ClusterConfig, NetConfig, TrainConfig
from pmm_ray.data.transforms import Augment
from pmm_ray.nets.build import build_classifier, load_model
from pmm_ray.stages import fitting
from pmm_ray.stages.stage import Context, snapshot
from pmm_ray.training import Plan

NET = NetConfig(backbone="test_resnet", weights="none", output_stride=32)


@pytest.mark.parametrize("amp", [True, False])
def test_every_number_of_the_settings_is_in_the_plan(amp):
    numbers = {
        "epochs": 7,
        "batch_size": 6,
        "optimizer": "sgd",
        "lr": 0.3,
        "head_lr_factor": 5.0,
        "momentum": 0.6,
        "weight_decay": 0.2,
        "poly_power": 2.0,
        "warmup": 9,
        "checkpoint_every": 3,
        "loader_workers": 2,
    }
    assert all(TrainConfig.model_fields[name].default != value for name, value in numbers.items())
    plan = fitting._plan(TrainConfig(**numbers), seed=11, amp=amp, until=4)
    assert plan == Plan(**numbers, seed=11, amp=amp, until=4)


def test_every_number_of_the_settings_is_in_the_augmentation_and_what_is_beyond_the_photo_has_the_mean_colour():
    train = TrainConfig(crop=64, resize=(0.4, 0.6), flip=False, jitter=0.3)
    expected = Augment(crop=64, resize=(0.4, 0.6), flip=False, jitter=0.3, fill=(51, 102, 153))
    assert fitting.augmentation(train, mean=(0.2, 0.4, 0.6)) == expected


def test_a_network_has_the_weights_of_its_file_its_own_mean_and_std_and_a_batch_norm_as_asked(tmp_path):
    def built(net: NetConfig, seed: int = 0) -> fitting.Trainee:
        shape = {**fitting.network(net), "num_classes": 2}
        return fitting.Trainee.built("classifier", shape, net=net, classes=("background", "a", "b"), seed=seed)

    other = build_classifier(**fitting.network(NET), weights="none", num_classes=2).backbone
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    own = {"weights": str(tmp_path / "weights.pth"), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    trainee = built(NET.model_copy(update={**own, "batch_norm": "frozen"}))
    found = trainee.module.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in other.state_dict().items())
    assert (trainee.mean, trainee.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    trainee.write(tmp_path / "model.pt", {"loss": 1.0})
    _, info = load_model(tmp_path / "model.pt")
    assert info["net"]["batch_norm"] == "frozen" and (info["mean"], info["std"]) == (trainee.mean, trainee.std)
    assert not any(norm.training for norm in trainee.module.train().modules() if "BatchNorm" in type(norm).__name__)
    learning = built(NET.model_copy(update={"batch_norm": "train"})).module.train()
    assert all(norm.training for norm in learning.modules() if "BatchNorm" in type(norm).__name__)
    drawn = [next(built(NET, seed).module.backbone.parameters()) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("until", [None, 2])
def test_the_checkpoint_is_kept_for_what_is_left_of_a_training_and_goes_with_its_end(tmp_path, monkeypatch, until):
    log = SimpleNamespace(metrics=lambda *given, **more: None)
    context = Context(out=tmp_path, seed=0, cluster=ClusterConfig(gpu="no"), log=log, title="", until=until)

    def trained(work, settings, **given):
        """What a team leaves: its last checkpoint, and the model that was asked for."""
        assert settings["plan"].until == until
        (tmp_path / "checkpoint.pt").touch()
        model = snapshot(tmp_path, until) if until else tmp_path / "model.pt"
        fitting.Trainee.built("classifier", {**fitting.network(NET), "num_classes": 2}, net=NET,
                              classes=("background", "a", "b"), seed=0).write(model, {"epochs": 2})  # fmt: skip

    monkeypatch.setattr(fitting, "fit", trained)
    assert fitting.fit_model(print, {}, train=TrainConfig(epochs=4), context=context) == {"epochs": 2}
    assert (tmp_path / "checkpoint.pt").exists() == bool(until)
