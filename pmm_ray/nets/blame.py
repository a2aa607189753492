"""Which setting is to blame for a network that cannot be built."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import nn

from pmm_ray.errors import SettingError, first_line

_logger = logging.getLogger(__name__)
_LARGE = 128
"""The side of crops of which a map has more than one place at any stride."""
_ODD = 13, 50
"""What a photo's sides are longer than the crop's, say: no multiple of anything, and not the same."""


def check_name(backbone: str) -> None:
    """Raise SettingError if timm has no model `backbone`."""
    if not timm.is_model(backbone.split(".")[0]):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingError(f"net.backbone={backbone}: timm has no such model{hint}")


def built(
    build: Callable[..., Any],
    *,
    backbone: str,
    options: Mapping[str, Any],
    output_stride: int,
    weights: str,
    arch: str | None = None,
) -> Any:
    """The network that `build(options=..., output_stride=..., pretrained=...)` returns.

    Raises:
        SettingError: it cannot. To blame is the first setting with another value of which it could; else the backbone.
    """
    check_name(backbone)
    given = {"options": options, "output_stride": output_stride, "pretrained": weights == "pretrained"}
    try:
        return build(**given)
    except Exception as error:
        without = given | {"pretrained": False}
        why = first_line(error)
        what = f"{arch} on {backbone}" if arch else backbone
        if _succeeds(build, without):
            if weights != "pretrained":
                raise  # nothing is wrong with the settings; the memory, maybe
            blame = f"net.weights=pretrained: {why}; without network give a file, or 'none' with net.batch_norm=train"
        elif strides := [other for other in (16, 32, 8) if _succeeds(build, without | {"output_stride": other})]:
            blame = f"net.output_stride={output_stride}: not for {what} ({why}); set {strides[0]}"
        elif _succeeds(build, without | {"options": {}}):
            blame = f"net.options={dict(options)}: not for {what} ({why}); leave out what does not fit"
        else:
            blame = f"net.backbone={backbone}: not for {arch or 'this'} ({why}); choose another"
        raise SettingError(blame) from error


def check_sight(module: nn.Module, *, crop: int, backbone: str, only_whole: bool) -> None:
    """See that a network with CAMs, built on the meta device, sees square crops, and photos of any size.

    One that does not see photos is warned of, or with `only_whole` an error.

    Raises:
        SettingError: it sees no crops, or leaves no place of them to point at.
    """
    square, why = _sight(module, crop, crop)
    if why:
        raise SettingError(
            f"train.crop={crop}: {backbone} sees no such crops ({why}); set its own size, or let net.options change it "
            "(for many transformers {dynamic_img_size: true})"
        )
    if square is not None and max(square) == 1 and crop >= _LARGE:
        raise SettingError(f"net.backbone={backbone}: leaves 1 x 1 of a crop, which is no map; choose another")
    _, why = _sight(module, crop + _ODD[0], crop + _ODD[1])
    if why:
        told = f"{backbone} sees crops but no photos of other sizes ({why}); plain transformers do with net.options: "
        told += "{dynamic_img_size: true}"
        if only_whole:
            raise SettingError(f"net.backbone={told}")
        _logger.warning("%s; without, read its CAMs with cam.infer.mode=multi_crop cam.infer.window=%d", told, crop)


def _sight(module: Any, height: int, width: int) -> tuple[tuple[int, ...] | None, str]:
    """The size of the CAM of such an image, and why there is none; neither where that takes a real image."""
    try:
        with torch.device("meta"), torch.no_grad():
            return tuple(module.eval().cam(torch.empty(1, 3, height, width)).shape[-2:]), ""
    except NotImplementedError:
        return None, ""
    except Exception as error:
        if "meta tensor" in str(error):
            return None, ""
        return None, first_line(error)


def _succeeds(build: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    """Whether it can be built, of no memory."""
    try:
        with torch.device("meta"):
            build(**arguments)
    except Exception:
        return False
    return True
