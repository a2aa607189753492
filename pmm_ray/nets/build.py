"""The one place where names and sizes meet constructors; and where a trained model is read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from pmm_ray.errors import SettingError, UserError
from pmm_ray.files import atomic_path, readable
from pmm_ray.nets.batch_norm import batch_norms
from pmm_ray.nets.blame import built, check_sight
from pmm_ray.nets.classifier import Classifier
from pmm_ray.nets.joint import Joint
from pmm_ray.nets.segmenter import Segmenter
from pmm_ray.nets.weights import load_backbone
from pmm_ray.places import place

_ARCHS = {"deeplabv3plus": smp.DeepLabV3Plus, "pspnet": smp.PSPNet, "unet": smp.Unet, "fpn": smp.FPN}
_ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
"""DeepLabV3+'s own rates for each output stride."""


def build_classifier(
    *,
    backbone: str,
    options: Mapping[str, Any],
    output_stride: int,
    weights: str,
    num_classes: int,
    batch_norm: str = "frozen",
    correlation: bool = False,
) -> Classifier:
    """A classifier of `num_classes` (without background) on the timm model `backbone`.

    `weights` is 'pretrained', 'none' or a state-dict file; `batch_norm` ('frozen', 'train') is the backbone's policy;
    `correlation` adds SEAM's pixel correlation module to the CAMs.
    """
    body, channels = _features(backbone, options, output_stride, weights)
    return Classifier(
        body, channels=channels, num_classes=num_classes, frozen=batch_norm == "frozen", correlation=correlation
    )


def build_joint(
    *,
    backbone: str,
    options: Mapping[str, Any],
    output_stride: int,
    weights: str,
    num_classes: int,
    channels: int,
    dilation: int,
    batch_norm: str = "frozen",
) -> Joint:
    """RRM's network on the timm model `backbone`: a CAM head and a segmentation head, both new.

    `num_classes` counts the background (C + 1), of which the CAM head knows nothing; `channels` and `dilation` are
    those of the segmentation head; the others as for the classifier.
    """
    body, features = _features(backbone, options, output_stride, weights)
    classifier = Classifier(body, channels=features, num_classes=num_classes - 1, frozen=batch_norm == "frozen")
    return Joint(classifier, features=features, num_classes=num_classes, channels=channels, dilation=dilation)


def _features(backbone: str, options: Mapping[str, Any], output_stride: int, weights: str) -> tuple[nn.Module, int]:
    """A timm model without pooling and classifier, with its weights, and the channels that it ends in."""

    def build(options: Mapping[str, Any], output_stride: int, pretrained: bool) -> nn.Module:
        arguments = {"pretrained": pretrained, "num_classes": 0, "global_pool": "", **options}
        if output_stride == 32:
            return timm.create_model(backbone, **arguments)
        try:
            return timm.create_model(backbone, **arguments, output_stride=output_stride)
        except TypeError as error:
            # Transformers take no output stride. Some have the wanted one anyhow.
            if "output_stride" not in str(error):
                raise
        body: Any = timm.create_model(backbone, **arguments)
        natural = body.feature_info[-1]["reduction"]
        if natural != output_stride:
            raise ValueError(f"its stride is always {natural}")
        return body

    body = built(build, backbone=backbone, options=options, output_stride=output_stride, weights=weights)
    _load(body, weights)
    channels: Any = getattr(body, "head_hidden_size", None) or body.num_features
    return body, channels


def build_segmenter(
    *,
    arch: str,
    backbone: str,
    options: Mapping[str, Any],
    output_stride: int,
    weights: str,
    num_classes: int,
    aux: bool,
    batch_norm: str = "frozen",
) -> Segmenter:
    """A segmenter of `num_classes` with the background (C + 1), on the timm model `backbone`.

    `arch` is deeplabv3plus (output stride 8 or 16), pspnet or unet (any), or fpn (32). `weights` and `batch_norm` as
    for the classifier; decoder and heads start at random and always learn their batch norm.
    """

    def build(options: Mapping[str, Any], output_stride: int, pretrained: bool) -> Any:
        strides = {"deeplabv3plus": (8, 16), "fpn": (32,)}.get(arch, (8, 16, 32))
        if output_stride not in strides:
            raise ValueError(f"{arch} takes output stride {' or '.join(map(str, strides))}, not {output_stride}")
        if arch == "deeplabv3plus":
            sizes = {"encoder_output_stride": output_stride, "decoder_atrous_rates": _ATROUS_RATES[output_stride]}
        elif arch == "pspnet":
            sizes = {"encoder_depth": 5, "output_stride": output_stride, "upsampling": output_stride}
        else:
            sizes = {"output_stride": output_stride}
        return _ARCHS[arch](
            encoder_name=f"tu-{backbone}",
            encoder_weights="imagenet" if pretrained else None,
            in_channels=3,
            classes=num_classes,
            **sizes,
            **options,
        )

    model = built(build, backbone=backbone, options=options, output_stride=output_stride, weights=weights, arch=arch)
    _load(model.encoder.model, weights)
    return Segmenter(model, num_classes=num_classes, aux=aux, frozen=batch_norm == "frozen")


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "classifier": build_classifier,
    "segmenter": build_segmenter,
    "joint": build_joint,
}
"""What builds a network of each kind, and rebuilds it from its model file."""

_PARTS = {"kind", "state", "net", "mean", "std", "classes"}
"""What every model file has."""
_NO_MODEL = "no model of this package, or a damaged one: give the model.pt that a training left"


def build_network(kind: str, *, weights: str, **net: Any) -> nn.Module:
    """A network of the kind 'classifier', 'segmenter' or 'joint' by its builder, which takes the other arguments."""
    return _BUILDERS[kind](weights=weights, **net)


def save_model(path: Path, *, kind: str, module: nn.Module, net: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Write a model that `load_model` rebuilds without a download: `net` holds the builder's arguments but `weights`.

    `info` (mean, std, classes, and more) must be of plain types: the file is read with weights_only=True.
    """
    state = {name: value.cpu() for name, value in module.state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save({"kind": kind, "state": state, "net": dict(net), **info}, temporary)


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The module in `path`, in eval mode on the CPU, and what else was saved: kind, net, mean, std, classes, facts."""
    info = _read_model(path)
    state = info.pop("state")
    module = build_network(info["kind"], weights="none", **info["net"])
    module.load_state_dict(state)
    return module.eval(), info


def model_info(path: Path) -> dict[str, Any]:
    """What was saved with the model in `path`, without building it: kind, net, mean, std, classes, facts.

    Raises:
        UserError: there is no such file, or it is no model of this package.
    """
    return {name: value for name, value in _read_model(path).items() if name != "state"}


def _read_model(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such model")
    try:
        info = torch.load(readable(path), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # other files raise almost anything
        raise UserError(f"{path}: {_NO_MODEL} ({type(error).__name__})") from error
    if not isinstance(info, dict) or info.get("kind") not in _BUILDERS or not info.keys() >= _PARTS:
        raise UserError(f"{path}: {_NO_MODEL}")
    return info


def check_network(kind: str, *, weights: str, crop: int, **net: Any) -> None:
    """See that `build_network` can build a network that sees crops of side `crop` and can learn, once in a process.

    It takes no memory and downloads nothing; of pretrained weights only a file is looked into. A classifier that sees
    no other images is warned of: its CAMs can be read from crops. A joint network has to see photos whole.

    Raises:
        SettingError: it cannot.
    """
    _check(kind, weights, crop, json.dumps(net, default=str))


@cache
def _check(kind: str, weights: str, crop: int, net: str) -> None:
    arguments = json.loads(net)
    with torch.device("meta"):
        module: Any = build_network(kind, weights="none" if weights == "pretrained" else weights, **arguments)
    if weights == "none" and any(not norm.training for norm in batch_norms(module.backbone)):
        # timm starts the last scale of residual branches at 0: frozen there, they would never open
        raise SettingError(
            "net.batch_norm=frozen: without weights there is nothing to freeze; set net.batch_norm=train"
        )
    if weights == "pretrained" and not timm.models.is_model_pretrained(arguments["backbone"]):
        raise SettingError(
            f"net.weights=pretrained: timm has none of {arguments['backbone']}; "
            "give a file, or 'none' with net.batch_norm=train"
        )
    # those two rest on a bare backbone; the decoders of segmenters take any that they can be built on
    if kind in ("classifier", "joint"):
        # weights of a file have been read
        check_sight(module.to("meta"), crop=crop, backbone=arguments["backbone"], only_whole=kind == "joint")


def _load(backbone: nn.Module, weights: str) -> None:
    """Weights of a file, if one is named."""
    if weights in ("pretrained", "none"):
        return
    try:
        load_backbone(backbone, place(weights))
    except UserError as error:
        raise SettingError(f"net.weights={error}") from error
