"""Which setting is to blame for a network that cannot be built."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch

from pmm_ray.errors import SettingError


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
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        what = f"{arch} on {backbone}" if arch else backbone
        if _succeeds(build, without):
            if weights != "pretrained":
                raise  # nothing is wrong with the settings; the memory, maybe
            blame = f"net.weights=pretrained: {why}; without network give a file or 'none'"
        elif strides := [other for other in (16, 32, 8) if _succeeds(build, without | {"output_stride": other})]:
            blame = f"net.output_stride={output_stride}: not for {what} ({why}); set {strides[0]}"
        elif _succeeds(build, without | {"options": {}}):
            blame = f"net.options={dict(options)}: not for {what} ({why}); leave out what does not fit"
        else:
            blame = f"net.backbone={backbone}: not for {arch or 'this'} ({why}); choose another"
        raise SettingError(blame) from error


def _succeeds(build: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    """Whether it can be built, of no memory."""
    try:
        with torch.device("meta"):
            build(**arguments)
    except Exception:
        return False
    return True
