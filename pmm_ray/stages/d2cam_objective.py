"""What a D2CAM classifier is trained for: its labels, and features and maps that keep things apart."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
from pmm_ray.nets.classifier import Classifier, class_scores
from pmm_ray.nets.inputs import Colour, normalise
from pmm_ray.nets.prototypes import Prototypes
from pmm_ray.teams import Team, global_mean
from pmm_ray.training import Objective


class D2CamObjective(Objective):
    """Multi-label soft margin loss; and from `begin` of the training on D2CAM's four losses, by their weights.

    A weight of 0 leaves its loss out. All means are over the global batch: of the contrasts over the pixels that are
    sure, of `exclusivity` over the pixels of images with several labels, of `stability` over the images. Prototypes are
    made of all workers' pixels.
    """

    def __init__(
        self,
        net: Classifier,
        *,
        mean: Colour,
        std: Colour,
        team: Team,
        num_classes: int,
        channels: int,
        category: float,
        foreground: float,
        stability: float,
        exclusivity: float,
        begin: float,
        high: float,
        low: float,
        temperature: float,
        momentum: float,
        average: float,
    ):
        """`channels`: of the classifier's features. `average`: see `_follow`.

        The others as in `losses.d2cam` and `Prototypes.follow`.
        """
        super().__init__()
        self.net = net
        self._mean, self._std, self._team = mean, std, team
        self._weights = {
            "loss_category": category,
            "loss_foreground": foreground,
            "loss_stability": stability,
            "loss_exclusivity": exclusivity,
        }
        self._begin, self._high, self._low = begin, high, low
        self._temperature, self._momentum = temperature, momentum
        self.prototypes = Prototypes(num_classes, channels) if category else None
        self.averaged: AveragedModel | None = None
        if stability:
            self.averaged = AveragedModel(net, multi_avg_fn=partial(_follow, average)).requires_grad_(False)

    def forward(self, images: Tensor, targets: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Images (N, 3, H, W) uint8, labels (N, C) and area (N, H, W) bool, False where filled, to loss and figures."""
        labels, area = targets
        inputs = normalise(images, mean=self._mean, std=self._std)
        features = self.net.features(inputs)
        maps = self.net.maps(features)
        classification = self._mean_of_images(multilabel_soft_margin(maps.mean(dim=(2, 3)), labels))
        if self.averaged is not None and self.training:
            self.averaged.update_parameters(self.net)
        if self.progress < self._begin:
            return {"loss": classification, "loss_classification": classification}
        averaged = None if self.averaged is None else self._averaged_maps(inputs)
        # in full precision: the contrasts divide by a temperature, and prototypes are sums over many pixels
        with torch.autocast(images.device.type, enabled=False):
            maps, inside = maps.float(), _whole(area, maps)
            scores = class_scores(maps, labels)
            missed = (labels > 0) & (maps.mean(dim=(2, 3)) <= 0)
            sure = sure_pixels(scores, inside, missed, high=self._high, low=self._low)
            losses = {
                **self._contrasts(features.float(), sure),
                **self._constraints(scores, averaged, labels, inside),
            }
        weighted = [self._weights[name] * losses[name] for name in self._weights if name in losses]
        return {"loss": torch.stack([classification, *weighted]).sum(), "loss_classification": classification, **losses}

    def _contrasts(self, features: Tensor, sure: Tensor) -> dict[str, Tensor]:
        """Category and foreground-background decoupling; and the share of the features' pixels that are sure."""
        losses = {"sure": self._mean_of((sure != UNSURE).float(), torch.ones_like(sure, dtype=torch.bool))}
        if self.prototypes is not None:
            sums, counts = sums_of_classes(features, sure, num_classes=len(self.prototypes.met))
            found = self._team.sum(torch.cat([sums, counts[:, None]], dim=1))
            # first, so that whatever class is sure here has a prototype
            self.prototypes.follow(found[:, :-1], found[:, -1], momentum=self._momentum)
            contrast = category_decoupling(
                features, sure, self.prototypes.vectors, self.prototypes.known, temperature=self._temperature
            )
            losses["loss_category"] = self._mean_of(contrast, sure > 0)
        if self._weights["loss_foreground"]:
            contrast, counted = foreground_decoupling(features, sure, temperature=self._temperature)
            losses["loss_foreground"] = self._mean_of(contrast, counted)
        return losses

    def _constraints(
        self, scores: Tensor, averaged: Tensor | None, labels: Tensor, inside: Tensor
    ) -> dict[str, Tensor]:
        """Stability, to the `averaged` network's maps, and exclusivity."""
        losses = {}
        if averaged is not None:
            other = class_scores(averaged.float(), labels)
            losses["loss_stability"] = self._mean_of_images(stability(scores, other, labels))
        if self._weights["loss_exclusivity"]:
            several = inside & (labels.sum(dim=1) > 1)[:, None, None]
            losses["loss_exclusivity"] = self._mean_of(exclusivity(scores), several)
        return losses

    @torch.no_grad()
    def _averaged_maps(self, inputs: Tensor) -> Tensor:
        """The averaged network's maps; it sees with stored batch norm statistics and leaves them alone."""
        assert self.averaged is not None
        net: Any = self.averaged.module.eval()
        return net.maps(net.features(inputs))

    def _mean_of(self, values: Tensor, counted: Tensor) -> Tensor:
        return global_mean(torch.where(counted, values, 0.0), count=counted.sum(), team=self._team)

    def _mean_of_images(self, values: Tensor) -> Tensor:
        return global_mean(values, count=len(values), team=self._team)


def _follow(decay: float, averaged: Any, current: Any, steps: Tensor | int) -> None:
    """`average <- d average + (1 - d) current` with `d = min(decay, (1 + n) / (10 + n))` after n steps.

    With `decay` from the start, a training of a few hundred steps would be held to what the network began as.
    """
    step = get_ema_multi_avg_fn(min(decay, (1 + int(steps)) / (10 + int(steps))))
    step(averaged, current, steps)


def _whole(area: Tensor, maps: Tensor) -> Tensor:
    """(N, h, w) bool: which pixels of the maps show the photo alone. `area` is (N, H, W) bool."""
    height, width = maps.shape[-2:]
    return F.adaptive_avg_pool2d(area.float(), (height, width)) == 1
