"""Stage: image-level labels -> CAM classifier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pmm_ray.artefacts import Artefact
from pmm_ray.config import CamTrainConfig, NetConfig
from pmm_ray.data.dataset import Photos
from pmm_ray.data.loading import Examples, WithLabels
from pmm_ray.losses.classification import multilabel_soft_margin
from pmm_ray.losses.equivariance import cross_regularisation, equivariance_regularisation
from pmm_ray.nets.build import check_network
from pmm_ray.nets.classifier import Classifier, class_scores
from pmm_ray.nets.inputs import Colour, normalise
from pmm_ray.stages import fitting
from pmm_ray.stages.d2cam_objective import D2CamObjective
from pmm_ray.stages.mask_files import mask_paths
from pmm_ray.stages.stage import MODEL, Context, Facts
from pmm_ray.teams import Team, global_mean
from pmm_ray.training import Objective, Plan
from pmm_ray.training import train as train_plan


def train_cam(
    *, photos: Photos, rough_masks: Artefact | None, net: NetConfig, train: CamTrainConfig, context: Context
) -> Facts:
    """Train the classifier, with D2CAM's losses where `train.d2cam` gives them weights.

    With `train.multi_crop` it learns from crops whose labels `rough_masks` confirms.
    """
    masks = mask_paths(rough_masks) if rough_masks is not None and train.multi_crop else {}
    settings = {"photos": photos, "rough_masks": masks, "net": fitting.located(net), "train": train}
    return fitting.fit_model(_work, settings, train=train, context=context)


def check(*, photos: Photos, net: NetConfig, train: CamTrainConfig, **_: Any) -> None:
    """See that the classifier can be built; the arguments are the stage's."""
    check_network("classifier", weights=net.weights, crop=train.crop, **_shape(photos, net, train))


def _shape(photos: Photos, net: NetConfig, train: CamTrainConfig) -> dict[str, Any]:
    return {**fitting.network(net), "num_classes": len(photos.classes) - 1, "correlation": train.equivariance > 0}


def _work(
    team: Team,
    *,
    photos: Photos,
    rough_masks: Mapping[str, Path],
    net: NetConfig,
    train: CamTrainConfig,
    out: Path,
    plan: Plan,
    log: Any,
) -> None:
    """The work of one member of the team."""
    shape = _shape(photos, net, train)
    trainee = fitting.Trainee.built("classifier", shape, net=net, classes=photos.classes.names, seed=plan.seed)
    classifier, num_classes = trainee.module, shape["num_classes"]
    given: dict[str, Any] = {"mean": trainee.mean, "std": trainee.std, "team": team}
    objective: Objective
    if train.d2cam.on:
        given |= {"num_classes": num_classes, "channels": classifier.channels, **train.d2cam.model_dump()}
        objective = D2CamObjective(classifier, **given)
    else:
        scale = train.equivariance_scale
        objective = CamObjective(classifier, **given, equivariance=train.equivariance, scale=scale)
    augment = fitting.augmentation(train, mean=trainee.mean)
    make = WithLabels(augment, num_classes, rough_masks=rough_masks, share=train.multi_crop_share)
    examples = Examples(photos.photos, make, seed=plan.seed)
    record = train_plan(objective, examples, plan=plan, team=team, out=out, report=fitting.reporter(log))
    if team.rank == 0:
        trainee.write(out / MODEL, fitting.facts_of(record, images=len(examples), module=classifier))


class CamObjective(Objective):
    """Multi-label soft margin loss; with `equivariance` > 0 that of two views, and `equivariance` x (ER + ECR) of SEAM.

    The second view is the image resized by `scale`. All means are over the global batch.
    """

    def __init__(
        self, net: Classifier, *, mean: Colour, std: Colour, team: Team, equivariance: float = 0.0, scale: float = 0.3
    ):
        super().__init__()
        self.net = net
        self._mean, self._std, self._team = mean, std, team
        self._equivariance, self._scale = equivariance, scale

    def forward(self, images: Tensor, targets: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Images (N, 3, H, W) uint8 and labels (N, C), with an area that is not read, to loss and figures."""
        labels, _ = targets
        inputs = normalise(images, mean=self._mean, std=self._std)
        if not self._equivariance:
            return {"loss": self._mean_of(multilabel_soft_margin(self.net(inputs), labels))}
        return self._of_two_views(inputs, labels)

    def _of_two_views(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        small = F.interpolate(inputs, scale_factor=self._scale, mode="bilinear", align_corners=False, antialias=True)
        maps, refined = self.net.maps_and_refined(inputs, labels)
        maps_of_small, refined_of_small = self.net.maps_and_refined(small, labels)
        size = maps_of_small.shape[-2:]
        scores, scores_of_small = _resized(class_scores(maps, labels), size), class_scores(maps_of_small, labels)
        first, second = (multilabel_soft_margin(view.mean(dim=(2, 3)), labels) for view in (maps, maps_of_small))
        classification = self._mean_of((first + second) / 2)
        er = self._mean_of(equivariance_regularisation(scores, scores_of_small))
        ecr = self._mean_of(
            cross_regularisation(
                scores,
                scores_of_small,
                refined_resized=_resized(refined, size),
                refined_of_resized=refined_of_small,
            )
        )
        loss = classification + self._equivariance * (er + ecr)
        return {"loss": loss, "loss_classification": classification, "loss_er": er, "loss_ecr": ecr}

    def _mean_of(self, values: Tensor) -> Tensor:
        return global_mean(values, count=len(values), team=self._team)


def _resized(scores: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
