"""What the training stages share: settings to plans, a team to train on, and the model artefact."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from pmm_ray import checkpoints
from pmm_ray.checkpoints import Record
from pmm_ray.cluster.fit import fit, room
from pmm_ray.config import NetConfig, TrainConfig
from pmm_ray.data.transforms import Augment
from pmm_ray.errors import UserError
from pmm_ray.nets.blame import check_name
from pmm_ray.nets.build import build_network, model_info, save_model
from pmm_ray.nets.inputs import Colour, normalisation
from pmm_ray.places import Remote, place
from pmm_ray.progress import progress
from pmm_ray.stages.stage import MODEL, Context, Facts, snapshot
from pmm_ray.training import Plan

_ASK_DISK, _ASK_STORE = 0.5, 5.0  # seconds between looks at the history; asking object storage is not free


def fit_model(work: Callable[..., None], settings: Mapping[str, Any], *, train: TrainConfig, context: Context) -> Facts:
    """Run `work` on a team until `model.pt` is in the stage's folder, and return the facts written with it.

    `work` is also given `out`, `plan` and `log`. A model that an interrupted attempt had finished is taken as it is.
    With `context.until` the model is that of `snapshot`.
    """
    model = snapshot(context.out, context.until) if context.until else context.out / MODEL
    if not model.is_file():
        with _shown(context.title, context.out, context.until or train.epochs):
            plan = _plan(train, seed=context.seed, amp=context.cluster.amp, until=context.until)
            fit(
                work,
                {**settings, "out": context.out.absolute(), "plan": plan, "log": context.log},
                find_room=partial(room, context.cluster),
                max_failures=context.cluster.max_failures,
                scratch=context.out / "ray",
            )
    if not context.until:
        checkpoints.discard(context.out)
    return model_info(model)["facts"]


def network(net: NetConfig) -> dict[str, Any]:
    """The builder's arguments but `weights`, of plain types, as they go into the model file."""
    return {
        "backbone": net.backbone,
        "options": dict(net.options),
        "output_stride": net.output_stride,
        "batch_norm": net.batch_norm,
    }


def located(net: NetConfig) -> NetConfig:
    """The same with an absolute place of a weights file: workers run in folders of their own.

    Raises:
        SettingError: there is no such backbone, told here before workers are started.
    """
    check_name(net.backbone)
    if net.weights_file is None:
        return net
    return net.model_copy(update={"weights": str(place(net.weights_file).resolve())})


@dataclass(frozen=True)
class Trainee:
    """A network that is to be trained, and what its model file has to say of it.

    `kind` and `shape`, the builder's arguments but the weights, tell how to build it again; `mean` and `std`, RGB in
    [0, 1], how to feed it; `classes` are the names of the ids 0..C.
    """

    module: Any
    kind: str
    shape: Mapping[str, Any]
    mean: Colour
    std: Colour
    classes: tuple[str, ...]

    @classmethod
    def built(cls, kind: str, shape: Mapping[str, Any], *, net: NetConfig, classes: Sequence[str], seed: int) -> Self:
        """A new one with the weights that the settings name; what has none is drawn by the seed."""
        torch.manual_seed(seed)
        mean, std = normalisation(backbone=net.backbone, mean=net.mean, std=net.std)
        module = build_network(kind, weights=net.weights, **shape)
        return cls(module, kind, shape, mean, std, tuple(classes))

    def write(self, path: Path, facts: Facts) -> None:
        """Write the model artefact as the network is now."""
        info = {"mean": self.mean, "std": self.std, "classes": list(self.classes), "facts": facts}
        save_model(path, kind=self.kind, module=self.module, net=self.shape, info=info)


def augmentation(train: TrainConfig, *, mean: Colour) -> Augment:
    """The augmentation that the settings ask for; crops beyond the image show the mean colour."""
    red, green, blue = (round(255 * value) for value in mean)
    return Augment(crop=train.crop, resize=train.resize, flip=train.flip, jitter=train.jitter, fill=(red, green, blue))


def reporter(log: Any) -> Callable[[Mapping[str, float]], None]:
    """Hand an epoch's figures to the run's log, the epoch as their step."""

    def report(figures: Mapping[str, float]) -> None:
        log.metrics({name: value for name, value in figures.items() if name != "epoch"}, step=int(figures["epoch"]))

    return report


def facts_of(record: Record, *, images: int, module: nn.Module) -> Facts:
    """What a training reports of itself. `failed` lists images that could not be used, with the reason."""
    return {
        "images": images,
        "epochs": len(record.history),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "seconds_of_epochs": round(sum(figures["seconds"] for figures in record.history), 1),
        "failed": sorted([name, why] for name, why in record.problems.items()),
        "loss": record.history[-1]["loss"],
    }


def _plan(train: TrainConfig, *, seed: int, amp: bool, until: int | None = None) -> Plan:
    return Plan(
        epochs=train.epochs,
        batch_size=train.batch_size,
        optimizer=train.optimizer,
        lr=train.lr,
        head_lr_factor=train.head_lr_factor,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        poly_power=train.poly_power,
        warmup=train.warmup,
        checkpoint_every=train.checkpoint_every,
        loader_workers=train.loader_workers,
        amp=amp,
        seed=seed,
        until=until,
    )


@contextmanager
def _shown(title: str, out: Path, epochs: int) -> Iterator[None]:
    """Show the epochs as rank 0 writes them to `metrics.jsonl`, wherever it runs."""
    ended = threading.Event()
    pause = _ASK_STORE if isinstance(out, Remote) else _ASK_DISK

    def watch() -> None:
        shown = 0
        with progress(title, epochs) as bar:
            while True:
                last, history = ended.wait(pause), []
                # What is wrong with the storage, the training itself tells.
                with contextlib.suppress(UserError, FileNotFoundError):
                    history = list(checkpoints.read_history(out))
                if len(history) > shown:
                    bar.advance(len(history) - shown, note=f"loss {history[-1]['loss']:.4f}")
                    shown = len(history)
                if last:
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
