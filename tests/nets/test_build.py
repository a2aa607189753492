"""Building, loading and reading back networks."""

import pickle
from pathlib import Path

import pytest
import timm
import torch

from pmm_ray.errors import SettingError, UserError
from pmm_ray.files import write_atomic
from pmm_ray.nets.build import (
    build_classifier,
    build_joint,
    build_segmenter,
    check_network,
    load_model,
    model_info,
    save_model,
)
from pmm_ray.nets.inputs import normalisation, normalise, pad_to_multiple, resize
from pmm_ray.places import Remote

TINY = {"backbone": "test_resnet.r160_in1k", "options": {}, "output_stride": 32}
MOBILE = {"backbone": "mobilenetv2_050", "options": {}, "output_stride": 16}
INFO = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "classes": ["a", "b", "c"]}


def test_classifier_starts_undecided_and_its_logits_are_the_means_of_its_maps():
    net = build_classifier(**TINY, weights="none", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 96)
    assert torch.equal(net(images), torch.zeros(2, 3))
    torch.nn.init.normal_(net.head.weight)
    maps = net.maps(net.features(images))
    assert maps.shape == (2, 3, 2, 3)
    assert torch.allclose(net(images), maps.mean(dim=(2, 3)))
    assert torch.equal(net.cam(images), maps.clamp(min=0))


def test_output_stride_16_doubles_the_map():
    net = build_classifier(**MOBILE, weights="none", num_classes=3).eval()
    assert net.cam(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 4, 4)


VIT = {"backbone": "vit_tiny_patch16_224", "output_stride": 16, "num_classes": 3}
SMALL = {"img_size": 64, "embed_dim": 12, "depth": 1, "num_heads": 1}
ANY_SIZE = {"dynamic_img_size": True}


def test_transformer_features_come_channels_first():
    options = {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    swin = build_classifier(
        backbone="swin_tiny_patch4_window7_224", options=options, output_stride=32, weights="none", num_classes=3
    )
    assert swin.cam(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 2, 2)
    plain = build_classifier(**VIT, options=SMALL, weights="none")
    assert plain.cam(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 4, 4)


def test_the_patches_of_a_plain_transformer_lie_as_in_the_image():
    vit = build_classifier(**VIT, options=SMALL | ANY_SIZE, weights="none").eval()
    image = torch.zeros(1, 3, 64, 128)
    image[..., 64:80] = 1  # of the eight columns of patches the fifth
    features = vit.features(image)
    assert features.shape == (1, 12, 4, 8)
    tokens = vit.backbone(image)[:, vit.backbone.num_prefix_tokens :]
    torch.testing.assert_close(features[0, :, 2, 4], tokens[0, 2 * 8 + 4])


@pytest.mark.parametrize("pads", [False, True])
def test_the_patches_of_a_plain_transformer_cover_a_photo_of_any_size_and_no_more(pads):
    torch.manual_seed(0)
    vit = build_classifier(**VIT, options=SMALL | ANY_SIZE | {"dynamic_img_pad": pads}, weights="none").eval()
    photo = resize(torch.randn(1, 3, 4, 8), (64, 128))
    whole, smaller = vit.features(photo), vit.features(resize(photo, (57, 121)))
    # the same field of the same photo, seen by as many patches
    assert smaller.shape == whole.shape == (1, 12, 4, 8)
    assert (smaller - whole).abs().mean() < 0.1 * whole.std()


def test_a_backbone_that_does_not_see_the_crops_or_the_photos_is_told_of_before_the_training(caplog):
    given = VIT | {"weights": "none", "options": SMALL}
    with pytest.raises(SettingError, match=r"^train\.crop=96: vit_tiny_patch16_224 sees no such crops .*96.*64"):
        check_network("classifier", **given, crop=96)
    with pytest.raises(SettingError, match=r"^net\.backbone=vgg11: leaves 1 x 1"):
        check_network("classifier", backbone="vgg11", options={}, output_stride=32, num_classes=3, weights="none",
                      crop=224)  # fmt: skip
    head = {"channels": 4, "dilation": 1}
    with pytest.raises(SettingError, match=r"^net\.backbone=vit.* no photos of other sizes .*dynamic_img_size: true"):
        check_network("joint", **given, **head, crop=64)
    assert not caplog.records
    check_network("classifier", **given, crop=64)
    assert "cam.infer.mode=multi_crop cam.infer.window=64" in caplog.text
    caplog.clear()
    check_network("joint", **(given | {"options": SMALL | ANY_SIZE}), **head, crop=96)
    assert not caplog.records


def test_frozen_batch_norm_stays_frozen_in_training_mode_and_the_decoders_learns():
    net = build_segmenter(arch="deeplabv3plus", **MOBILE, weights="none", num_classes=3, aux=True).eval().train()
    norms = {name: m for name, m in net.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    assert all(norm.training != ("encoder" in name) for name, norm in norms.items())
    free = build_segmenter(
        arch="deeplabv3plus", **MOBILE, weights="none", num_classes=3, aux=False, batch_norm="train"
    ).train()
    assert all(m.training for m in free.modules())


@pytest.mark.parametrize(
    ("arch", "stride"), [("deeplabv3plus", 16), ("pspnet", 8), ("pspnet", 16), ("unet", 16), ("unet", 32), ("fpn", 32)]
)
def test_segmenters_answer_at_input_size_whatever_the_size(arch, stride):
    net = build_segmenter(arch=arch, **{**MOBILE, "output_stride": stride}, weights="none", num_classes=5, aux=True)
    logits = net(torch.randn(2, 3, 65, 90))
    assert {name: value.shape for name, value in logits.items()} == {"main": (2, 5, 65, 90), "aux": (2, 5, 65, 90)}
    assert set(net.eval()(torch.randn(1, 3, 32, 32))) == {"main"}


@pytest.mark.parametrize("height", [95, 70, 20])
def test_what_convnext_sees_lies_where_it_is_however_long_the_image(height):
    # by itself it leaves out what its patches do not cover, and its map would be stretched over that
    torch.manual_seed(0)
    net = build_classifier(backbone="convnext_atto", options={}, output_stride=32, weights="none", num_classes=1).eval()
    torch.nn.init.normal_(net.head.weight)
    images = torch.zeros(1, 3, height, 64).requires_grad_()
    cells = net.maps(net.features(images))[0, 0].sum(dim=1)
    assert len(cells) == max(1, round(height / 32))
    for k, cell in enumerate(cells):
        (grad,) = torch.autograd.grad(cell, images, retain_graph=True)
        weight = grad[0].abs().sum(dim=(0, 2))
        seen = (weight * (torch.arange(height) + 0.5)).sum() / weight.sum()
        assert seen == pytest.approx((k + 0.5) * height / len(cells), abs=5)
        assert (weight[:1] > 0 or k) and (weight[-1:] > 0 or k < len(cells) - 1)


def test_the_joint_network_answers_at_input_size_and_shows_the_cam_of_its_classifier():
    net = build_joint(**MOBILE, weights="none", num_classes=5, channels=16, dilation=2)
    images = torch.randn(2, 3, 65, 90)
    logits, cam = net(images), net.cam(images)
    assert {name: value.shape for name, value in logits.items()} == {"main": (2, 5, 65, 90)}
    assert torch.equal(cam, net.classifier.cam(images)) and cam.shape == (2, 4, 5, 6)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and not any(norm.training for norm in norms)


def test_the_segmentation_head_sees_as_far_as_two_dilated_convolutions():
    torch.manual_seed(0)  # one head in 16 begins with a ReLU that lets nothing through
    net = build_joint(**MOBILE, weights="none", num_classes=3, channels=4, dilation=3)
    features = torch.zeros(1, net.classifier.head.in_channels, 21, 21).requires_grad_()
    net.segmentation(features)[0, :, 10, 10].sum().backward()
    seen = features.grad[0].abs().sum(dim=0).nonzero().unique().tolist()
    assert seen == [4, 7, 10, 13, 16]


def test_a_joint_network_read_back_says_the_same(tmp_path: Path):
    net = build_joint(**MOBILE, weights="none", num_classes=3, channels=16, dilation=2)
    torch.nn.init.normal_(net.classifier.head.weight)
    shape = {**MOBILE, "num_classes": 3, "channels": 16, "dilation": 2}
    save_model(tmp_path / "model.pt", kind="joint", module=net, net=shape, info=INFO)
    back, _ = load_model(tmp_path / "model.pt")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(back(images)["main"], net.eval()(images)["main"])
    assert torch.equal(back.cam(images), net.cam(images))


def test_a_model_read_back_says_the_same_and_needs_no_weights_file(anywhere: Path):
    net = build_segmenter(arch="unet", **MOBILE, weights="none", num_classes=3, aux=True)
    shape = {**MOBILE, "arch": "unet", "num_classes": 3, "aux": True}
    save_model(anywhere / "model.pt", kind="segmenter", module=net, net=shape, info=INFO)
    back, info = load_model(anywhere / "model.pt")
    images = torch.randn(1, 3, 32, 32)
    assert not back.training and info["classes"] == ["a", "b", "c"]
    assert model_info(anywhere / "model.pt") == info == {"kind": "segmenter", "net": shape, **INFO}
    assert torch.equal(back(images)["main"], net.eval()(images)["main"])


def test_a_file_that_is_no_model_is_one_line(tmp_path: Path):
    weights, text, half = tmp_path / "weights.pt", tmp_path / "text.pt", tmp_path / "half.pt"
    torch.save({"layer": torch.zeros(3)}, weights)
    text.write_text("not torch at all")
    half.write_bytes(weights.read_bytes()[:300])
    parts = {"kind": "segmenter", "state": {}, "net": {}, **INFO}
    for missing in parts:
        torch.save({name: value for name, value in parts.items() if name != missing}, tmp_path / f"no-{missing}.pt")
    for path in (weights, text, half, *(tmp_path / f"no-{missing}.pt" for missing in parts)):
        for read in (load_model, model_info):
            with pytest.raises(UserError, match=rf"{path.name}: no model of this package") as error:
                read(path)
            assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"gone\.pt: no such model"):
        model_info(tmp_path / "gone.pt")


def test_weights_of_a_file_load_into_classifier_and_encoder_alike(tmp_path: Path, bucket: Remote):
    source = timm.create_model("mobilenetv2_050", num_classes=7)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pth")
    write_atomic(bucket / "w.pth", (tmp_path / "w.pth").read_bytes())
    classifier = build_classifier(**MOBILE, weights=f"{bucket}/w.pth", num_classes=3)
    segmenter = build_segmenter(arch="fpn", **{**MOBILE, "output_stride": 32}, weights=str(tmp_path / "w.pth"),
                                num_classes=3, aux=False)  # fmt: skip
    assert torch.equal(classifier.backbone.conv_stem.weight, source.conv_stem.weight)
    assert torch.equal(segmenter.backbone.model.blocks[2][0].conv_pw.weight, source.blocks[2][0].conv_pw.weight)


def test_names_flattened_by_feature_extraction_are_found(tmp_path: Path):
    source = timm.create_model("convnext_atto")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = build_segmenter(arch="unet", backbone="convnext_atto", options={}, output_stride=32,
                          weights=str(tmp_path / "w.pth"), num_classes=3, aux=False)  # fmt: skip
    found = net.backbone.model.state_dict()["stages_1.blocks.0.conv_dw.weight"]
    assert torch.equal(found, source.stages[1].blocks[0].conv_dw.weight)


def test_wrong_weights_are_one_line_that_names_file_and_keys(tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(UserError, match=r"w\.pth: no weights for conv_stem\.weight"):
        build_classifier(**MOBILE, weights=str(path), num_classes=3)
    torch.save(timm.create_model("mobilenetv2_100").state_dict(), path)
    with pytest.raises(UserError, match=r"w\.pth: .* of another shape"):
        build_classifier(**MOBILE, weights=str(path), num_classes=3)
    torch.save(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(UserError, match=r"w\.pth: the network has no place for layer1\.2"):
        build_classifier(backbone="resnet18", options={}, output_stride=32, weights=str(path), num_classes=3)
    path.write_bytes(b"not torch at all")
    with pytest.raises(UserError, match=r"w\.pth: not a state dict"):
        build_classifier(**MOBILE, weights=str(path), num_classes=3)
    with pytest.raises(UserError, match="no such weights file"):
        build_classifier(**MOBILE, weights=str(tmp_path / "absent.pth"), num_classes=3)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path):
    torch.save({"x": Path("/")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="loaded safely"):
        build_classifier(**MOBILE, weights=str(tmp_path / "w.pth"), num_classes=3)


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html><html>", b"hello", b"PK\x03\x04 no zip", pickle.dumps(Path())],
    ids=["empty", "page", "text", "zip", "pickle"],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_of_a_file_without_weights_is_said_what_to_give_and_not_to_load_it_unsafely(tmp_path, content, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    told = rf"^net\.weights={path}: not a state dict that can be loaded safely; save one with .* a \.safetensors file$"
    with pytest.raises(SettingError, match=told):
        build_classifier(**TINY, weights=str(path), num_classes=3)


def test_impossible_networks_are_named_with_the_mend():
    with pytest.raises(UserError, match="did you mean resnet18"):
        build_classifier(backbone="resnet81", options={}, output_stride=32, weights="none", num_classes=3)
    with pytest.raises(UserError, match="output stride 8 or 16, not 32"):
        build_segmenter(arch="deeplabv3plus", **TINY, weights="none", num_classes=3, aux=False)
    with pytest.raises(UserError, match=r"^net\.output_stride=8: .*; set 32$"):
        build_classifier(backbone="swin_tiny_patch4_window7_224", options={}, output_stride=8, weights="none",
                         num_classes=3)  # fmt: skip
    with pytest.raises(UserError, match=r"^net\.options=.*no_such_option"):
        build_classifier(**{**MOBILE, "options": {"no_such_option": 1}}, weights="none", num_classes=3)


SEGMENTER = {"kind": "segmenter", "weights": "none", "batch_norm": "train", "num_classes": 3, "aux": True, "crop": 96}


@pytest.mark.parametrize("arch", ["deeplabv3plus", "pspnet", "unet", "fpn"])
def test_what_is_wrong_with_a_segmenter_is_told_by_the_setting_to_blame(arch):
    good = SEGMENTER | MOBILE | {"arch": arch, "output_stride": 32 if arch == "fpn" else 16}
    check_network(**good)
    changes = {
        r"net\.backbone=mobilenetv9: timm has no such model": {"backbone": "mobilenetv9"},
        rf"net\.backbone=vit_tiny_patch16_224: not for {arch} .*; choose another": {"backbone": "vit_tiny_patch16_224"},
        rf"net\.options=\{{'no_such_option': 1\}}: not for {arch} on ": {"options": {"no_such_option": 1}},
    }
    if arch in ("deeplabv3plus", "fpn"):
        wrong, right = (32, 16) if arch == "deeplabv3plus" else (16, 32)
        changes[rf"net\.output_stride={wrong}: not for {arch} on .*; set {right}$"] = {"output_stride": wrong}
    for told, change in changes.items():
        with pytest.raises(SettingError, match=f"^{told}"):
            check_network(**(good | change))


def test_a_check_takes_no_memory_and_looks_into_a_file_of_weights(tmp_path: Path):
    huge = {"backbone": "mobilenetv2_050", "options": {}, "output_stride": 32, "num_classes": 1 << 24, "crop": 96}
    check_network("classifier", weights="pretrained", **huge)  # the head alone would have 80 GB
    torch.save(timm.create_model("mobilenetv2_050").state_dict(), tmp_path / "right.pth")
    check_network("classifier", weights=str(tmp_path / "right.pth"), **huge)
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "wrong.pth")
    with pytest.raises(SettingError, match=r"^net\.weights=.*wrong\.pth: no weights for conv_stem\.weight"):
        check_network("classifier", weights=str(tmp_path / "wrong.pth"), **huge)
    with pytest.raises(SettingError, match=r"^net\.weights=pretrained: timm has none of botnet50ts_256"):
        check_network("classifier", weights="pretrained", **{**huge, "backbone": "botnet50ts_256"})


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "joint"])
def test_batch_norm_is_not_frozen_before_it_has_learned_anything(kind: str, tmp_path: Path):
    def check(**given: object) -> None:
        more = {"segmenter": {"arch": "unet", "aux": False}, "joint": {"channels": 4, "dilation": 1}}.get(kind, {})
        check_network(kind, **{**TINY, "num_classes": 3, "crop": 96, "batch_norm": "frozen", **more, **given})

    with pytest.raises(SettingError, match=r"^net\.batch_norm=frozen: without weights .* set net\.batch_norm=train"):
        check(weights="none")
    check(weights="none", batch_norm="train")
    if kind == "classifier":
        check(weights="none", backbone="vgg11")  # has none
    torch.save(timm.create_model(TINY["backbone"]).state_dict(), tmp_path / "weights.pth")
    check(weights=str(tmp_path / "weights.pth"))


def test_weights_that_cannot_be_fetched_are_to_blame_and_not_the_backbone(monkeypatch: pytest.MonkeyPatch):
    create = timm.create_model

    def offline(*names: str, pretrained: bool, **arguments: object) -> torch.nn.Module:
        if pretrained:
            raise OSError("no route to host")
        return create(*names, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        SettingError,
        match=r"^net\.weights=pretrained: .*no route to host.*give a file, or 'none' with net\.batch_norm=train$",
    ):
        build_classifier(**MOBILE, weights="pretrained", num_classes=3)


def test_mobilenet_weights_of_the_project_load(shared: Path):
    weights = str(shared / "weights" / "mobilenetv2_100.pth")
    shape = {"backbone": "mobilenetv2_100", "options": {"pad_type": "same"}, "output_stride": 16, "weights": weights}
    classifier = build_classifier(**shape, num_classes=20)
    segmenter = build_segmenter(arch="deeplabv3plus", **shape, num_classes=21, aux=True)
    assert torch.equal(classifier.backbone.conv_stem.weight, segmenter.backbone.model.conv_stem.weight)


def test_normalisation_is_the_backbones_unless_given():
    assert normalisation(backbone="mobilenetv2_100") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation(backbone="mobilenetv2_100", mean=(0.5,) * 3)[0] == (0.5, 0.5, 0.5)
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert torch.equal(normalise(white, mean=(0.5,) * 3, std=(0.5,) * 3), torch.ones(1, 3, 1, 1))
    colour = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    normalised = normalise(colour, mean=(0.5, 0.25, 0.0), std=(0.5, 0.125, 0.1))
    assert normalised.flatten().tolist() == pytest.approx([1, -2, 2])


def test_padding_is_below_and_right_and_only_where_needed():
    padded = pad_to_multiple(torch.ones(1, 1, 3, 4), multiple=4)
    assert padded.shape == (1, 1, 4, 4) and padded[0, 0, 3].sum() == 0 and padded.sum() == 12
