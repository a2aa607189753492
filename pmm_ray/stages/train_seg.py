"""Stage: pseudo-masks -> segmentation network, with pretended under-fitting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pmm_ray.artefacts import Artefact
from pmm_ray.config import NetConfig, PusConfig, SegTrainConfig
from pmm_ray.data.dataset import Photos
from pmm_ray.data.loading import Examples, WithMasks
from pmm_ray.errors import UserError
from pmm_ray.losses.pus import Variant, pretended_underfitting
from pmm_ray.losses.segmentation import PIXEL_LOSSES, valid_pixels
from pmm_ray.nets.build import check_network
from pmm_ray.nets.inputs import Colour, normalise
from pmm_ray.nets.segmenter import Segmenter
from pmm_ray.stages import fitting
from pmm_ray.stages.mask_files import mask_paths
from pmm_ray.stages.stage import MODEL, Context, Facts, snapshot
from pmm_ray.teams import Team, global_mean
from pmm_ray.training import Objective, Plan
from pmm_ray.training import train as train_plan


def train_seg(
    *,
    photos: Photos,
    masks: Artefact,
    arch: str,
    net: NetConfig,
    train: SegTrainConfig,
    pus: PusConfig,
    context: Context,
    snapshots: bool = False,
) -> Facts:
    """Train on the photos that `masks` has a mask of; the others are counted as `without_mask`.

    With `snapshots` the network after each epoch is kept as a model artefact of its own, `snapshots/<0001...>/`. The
    fact `pus_active` is the share of steps on which PUS acted on the main head.
    """
    paths = mask_paths(masks)
    usable = tuple(photo for photo in photos.photos if photo.name in paths)
    if not usable:
        raise UserError(f"{masks.path}: none of the {len(photos)} training images has a mask; see rows.parquet there")
    settings = {
        "photos": Photos(usable, photos.classes, photos.fingerprint),
        "masks": {photo.name: paths[photo.name] for photo in usable},
        "arch": arch,
        "net": fitting.located(net),
        "train": train,
        "pus": pus,
        "snapshots": snapshots,
    }
    facts = fitting.fit_model(_work, settings, train=train, context=context)
    return facts | {"without_mask": len(photos) - len(usable)}


def check(*, photos: Photos, arch: str, net: NetConfig, train: SegTrainConfig, **_: Any) -> None:
    """See that the network can be built; the arguments are the stage's."""
    check_network("segmenter", weights=net.weights, crop=train.crop, **_shape(photos, arch, net, train))


def _shape(photos: Photos, arch: str, net: NetConfig, train: SegTrainConfig) -> dict[str, Any]:
    return {**fitting.network(net), "arch": arch, "num_classes": len(photos.classes), "aux": train.aux_weight > 0}


def _work(
    team: Team,
    *,
    photos: Photos,
    masks: Mapping[str, Path],
    arch: str,
    net: NetConfig,
    train: SegTrainConfig,
    pus: PusConfig,
    snapshots: bool,
    out: Path,
    plan: Plan,
    log: Any,
) -> None:
    """The work of one member of the team."""
    shape = _shape(photos, arch, net, train)
    trainee = fitting.Trainee.built("segmenter", shape, net=net, classes=photos.classes.names, seed=plan.seed)
    make = WithMasks(fitting.augmentation(train, mean=trainee.mean), masks, num_classes=len(photos.classes))
    examples = Examples(photos.photos, make, seed=plan.seed)
    objective = SegObjective(
        trainee.module,
        mean=trainee.mean,
        std=trainee.std,
        team=team,
        loss=train.loss,
        aux_weight=train.aux_weight,
        variant=pus.variant,
        beta=pus.beta,
        kappa=pus.kappa,
        gate=pus.gate,
        count_ignored=pus.count_ignored,
    )

    to_log = fitting.reporter(log)

    def report(figures: dict[str, float]) -> None:
        to_log(figures)
        if snapshots:
            trainee.write(snapshot(out, int(figures["epoch"])), dict(figures))

    record = train_plan(objective, examples, plan=plan, team=team, out=out, report=report)
    if team.rank == 0:
        facts = fitting.facts_of(record, images=len(examples), module=trainee.module)
        facts["pus_active"] = sum(epoch["pus_active"] for epoch in record.history) / len(record.history)
        trainee.write(snapshot(out, plan.until) if plan.until else out / MODEL, facts)


class SegObjective(Objective):
    """Per-pixel loss with pretended under-fitting on the main head, plus `aux_weight` times that on the auxiliary one.

    The mean of the loss is over the valid pixels of the global batch; `gate` says which mean PUS compares with beta:
    the same ('global'), or that of the worker's own part of the batch ('local', as released, so that a result depends
    on the number of workers). With `count_ignored` ignored pixels count as zeros in both. `pus_active` is 1 on a step
    on which PUS acted on the main head, `pus_active_aux` the same of the auxiliary one.
    """

    def __init__(
        self,
        net: Segmenter,
        *,
        mean: Colour,
        std: Colour,
        team: Team,
        loss: str,
        aux_weight: float,
        variant: str,
        beta: float,
        kappa: float,
        gate: str,
        count_ignored: bool,
    ):
        super().__init__()
        self.net = net
        self._mean, self._std, self._team = mean, std, team
        self._pixel_loss, self._aux_weight = PIXEL_LOSSES[loss], aux_weight
        self._variant, self._beta, self._kappa = variant, beta, kappa
        self._gate, self._count_ignored = gate, count_ignored

    def forward(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) uint8 and masks (N, H, W) int64 to loss and figures."""
        logits = self.net(normalise(images, mean=self._mean, std=self._std))
        main, active = self._reduced(logits["main"], masks)
        figures = {"loss": main, "loss_main": main, "pus_active": active}
        if "aux" in logits:
            aux, aux_active = self._reduced(logits["aux"], masks)
            figures |= {"loss": main + self._aux_weight * aux, "loss_aux": aux, "pus_active_aux": aux_active}
        return figures

    def _reduced(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """One head's loss, and whether PUS acted."""
        loss, valid = self._pixel_loss(logits, masks), valid_pixels(masks)
        if self._count_ignored:
            valid = torch.ones_like(valid)
        active = torch.zeros((), dtype=torch.bool, device=loss.device)
        if self._variant != "none":
            everywhere = global_mean(loss.detach(), count=valid.sum(), team=self._team)
            gate_mean = self._team.sum(everywhere) / self._team.size if self._gate == "global" else None
            loss, active = pretended_underfitting(
                loss, valid, variant=cast(Variant, self._variant), beta=self._beta, kappa=self._kappa, mean=gate_mean
            )
        return global_mean(loss, count=valid.sum(), team=self._team), active
