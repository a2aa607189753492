"""Weights from a local file, checked so that a wrong file never loads in silence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pmm_ray.errors import UserError
from pmm_ray.files import local_file, readable


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Load a state dict into `backbone`.

    The file may hold more than the backbone: parts that the backbone does not have at all (a classifier, a last
    convolution that feature extraction leaves out) are ignored. Whatever else differs is a UserError.
    """
    found = _renamed(_read(path), backbone)
    wanted = backbone.state_dict()
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"{path}: no weights for {_few(missing)}; is the file of another network?")
    parts = {key.split(".")[0] for key in wanted}
    strange = [key for key in found if key not in wanted and key.split(".")[0] in parts]
    if strange:
        raise UserError(f"{path}: the network has no place for {_few(strange)}; is the file of a larger network?")
    misfits = [key for key in wanted if key in found and found[key].shape != wanted[key].shape]
    if misfits:
        key = misfits[0]
        shapes = f"{tuple(found[key].shape)} in the file, {tuple(wanted[key].shape)} in the network"
        raise UserError(f"{path}: {_few(misfits)} of another shape ({shapes}); is the file of another network?")
    state = {key: found[key] for key in wanted if key in found}
    # A network on the meta device has no memory that could be copied into.
    backbone.load_state_dict(state, strict=False, assign=any(value.is_meta for value in wanted.values()))


def _read(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a torch file (never unpickling code) or a safetensors file; common wrappings are opened."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; give a file, 'pretrained', or 'none' with batch_norm=train")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            with local_file(path) as file:
                return load_file(file)
        state = torch.load(readable(path), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); correct that or give another file"
        ) from error
    except Exception as error:  # other files raise almost anything, and torch's advice is to run what is in them
        raise UserError(
            f"{path}: not a state dict that can be loaded safely; "
            "save one with torch.save(network.state_dict(), FILE), or give a .safetensors file"
        ) from error
    for wrapping in ("state_dict", "model", "state"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapping), Mapping):
            state = state[wrapping]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict, of names and tensors; save one with network.state_dict()")
    return state


def _renamed(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Names as the backbone has them: no wrapper's prefix, and `stages_1` for `stages.1` in timm's extractors."""
    wanted = backbone.state_dict().keys()
    renamed = {}
    for key, value in state.items():
        plain = key.removeprefix("module.")
        flattened = plain.replace(".", "_", 1)
        renamed[flattened if plain not in wanted and flattened in wanted else plain] = value
    return renamed


def _few(keys: list[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more
