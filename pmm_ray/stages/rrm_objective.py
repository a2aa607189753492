"""What RRM's network is trained for: its CAMs make the labels that its segmentation learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmm_ray.data.dataset import IGNORE
from pmm_ray.losses.classification import multilabel_soft_margin
from pmm_ray.losses.dense_energy import Filter, Gradient, dense_energy
from pmm_ray.losses.segmentation import background_pixels, cross_entropy, foreground_pixels
from pmm_ray.nets.inputs import LARGEST_STRIDE, Colour, nearest_multiple, normalise, resize
from pmm_ray.nets.joint import Joint
from pmm_ray.stages.label_crops import LabelledCrop, Labeller, masks_of
from pmm_ray.teams import Team, global_mean
from pmm_ray.training import Objective

_SEEN = 6

SHARE = "reliable"
"""The figure with the share of pixels that got a label; those of the classes are `reliable/<name>`."""


class RrmObjective(Objective):
    """RRM's losses; all means are over the global batch, an empty set counts 0.

    Up to `joint_from` of the training: multi-label soft margin loss. Then also cross-entropy over the pixels labelled
    background, the same over those labelled foreground, and `energy_weight` x the dense energy at half size, averaged
    over the images. The labels come from CAMs averaged over `scales` of the crop, of which only scale 1 takes part in
    learning, by its classification; the others see the crop with stored batch norm statistics and leave them alone.

    `loss_energy` is negative by construction, and so may be `loss`: with every pixel that agrees with its look-alikes
    it falls further, and its size says nothing but by comparison.

    `seen` holds some crops of the last joint step with their labels.
    """

    def __init__(
        self,
        net: Joint,
        *,
        mean: Colour,
        std: Colour,
        team: Team,
        labeller: Labeller,
        scales: Sequence[float],
        names: Sequence[str],
        joint_from: float,
        make_filter: Callable[[Tensor], Filter],
        energy_weight: float,
        energy_gradient: Gradient,
    ):
        super().__init__()
        self.net = net
        self._mean, self._std, self._team = mean, std, team
        self._labeller, self._scales, self._names = labeller, tuple(scales), tuple(names)
        self._joint_from = joint_from
        self._make_filter, self._weight, self._gradient = make_filter, energy_weight, energy_gradient
        self.seen: list[LabelledCrop] = []

    def forward(self, images: Tensor, targets: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Images (N, 3, H, W) uint8, labels (N, C) and area (N, H, W) bool, False where filled, to loss and figures."""
        labels, inside = targets
        inputs = normalise(images, mean=self._mean, std=self._std)
        features = self.net.classifier.features(inputs)
        maps = self.net.classifier.maps(features)
        classification = self._mean_of_images(multilabel_soft_margin(maps.mean(dim=(2, 3)), labels))
        if idle := self.idle():
            # What takes no part in a loss would keep distributed training waiting for its gradient.
            nothing = 0 * torch.stack([parameter.sum() for parameter in idle]).sum()
            return {"loss": classification + nothing, "loss_classification": classification}
        class_ids = [tuple((row.nonzero().flatten() + 1).tolist()) for row in labels]
        begun = self._labeller.begin(images, self._cams(inputs, maps, class_ids), class_ids, inside)
        logits = self.net.logits(features, size=images.shape[-2:])
        crops = [future.result() for future in begun]
        self.seen = crops[:_SEEN]
        masks = masks_of(crops, images.device)
        losses = {"loss_classification": classification, **self._segmentation(logits, masks)}
        if not all(crop.finite for crop in crops):
            # the training stops at a loss that is no number, on every worker at once
            losses["loss_foreground"] = losses["loss_foreground"] * torch.nan
        if self._weight:
            losses["loss_energy"] = self._weight * self._energy(images, logits, masks, inside)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses, **self._shares(masks, inside)}

    def idle(self) -> list[nn.Parameter]:
        """Those of the segmentation head until it joins in."""
        return list(self.net.segmentation.parameters()) if self.progress < self._joint_from else []

    @torch.no_grad()
    def _cams(self, inputs: Tensor, maps: Tensor, class_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """(K, H, W) of each image: the activations of its classes, averaged over the scales; `maps` are scale 1's."""
        height, width = inputs.shape[-2:]
        with _evaluating(self.net):
            found = [maps.relu() if scale == 1 else self._activations(inputs, scale) for scale in self._scales]
        channels = [[label - 1 for label in ids] for ids in class_ids]
        return [
            torch.stack([resize(scale[n][None, wanted].float(), (height, width))[0] for scale in found]).mean(dim=0)
            for n, wanted in enumerate(channels)
        ]

    def _activations(self, inputs: Tensor, scale: float) -> Tensor:
        # whole cells at every scale: the features of others do not cover the crop evenly
        height, width = (nearest_multiple(scale * side, multiple=LARGEST_STRIDE) for side in inputs.shape[-2:])
        return self.net.cam(resize(inputs, (height, width)))

    def _segmentation(self, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
        loss = cross_entropy(logits, masks)
        sets = {"loss_background": background_pixels(masks), "loss_foreground": foreground_pixels(masks)}
        return {
            name: global_mean(torch.where(pixels, loss, 0.0), count=pixels.sum(), team=self._team)
            for name, pixels in sets.items()
        }

    def _energy(self, images: Tensor, logits: Tensor, masks: Tensor, inside: Tensor) -> Tensor:
        """The dense energy at half size, averaged over the images."""
        # a pixel of half size covers four, so it is labelled, and inside, where all of them are
        unknown, outside = (F.max_pool2d(away.float(), 2) > 0 for away in (masks == IGNORE, ~inside))
        masks, inside = masks[:, ::2, ::2].masked_fill(unknown, IGNORE), ~outside
        height, width = masks.shape[-2:]
        small = resize(images.float(), (height, width)).round().clamp(0, 255).to(torch.uint8)
        probabilities = resize(logits.float().softmax(dim=1), (height, width))
        filter = self._make_filter(small)
        return self._mean_of_images(dense_energy(probabilities, masks, inside, filter=filter, gradient=self._gradient))

    def _shares(self, masks: Tensor, inside: Tensor) -> dict[str, Tensor]:
        """Share of the photos' pixels that got a label, in all and of each class."""
        counts = masks.flatten().bincount(minlength=256)[: len(self._names)]
        pixels = self._team.sum(inside.sum(dtype=torch.float64)).clamp(min=1)
        shares = counts * (self._team.size / pixels)
        of_classes = {f"{SHARE}/{name}": share for name, share in zip(self._names, shares, strict=True)}
        return {SHARE: shares.sum(), **of_classes}

    def _mean_of_images(self, values: Tensor) -> Tensor:
        return global_mean(values, count=len(values), team=self._team)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode inside the block, and as it was after it."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)
