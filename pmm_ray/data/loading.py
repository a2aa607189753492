"""Photos as batches, composed the same way whatever the number of workers.

Which images form a batch follows from (seed, epoch), how an image is augmented from (seed, epoch, its place in the
epoch). Worker r of n takes the images r, r + n, r + 2n, ... of each global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pmm_ray.data.dataset import IGNORE, Photo
from pmm_ray.data.images import ImageError, check_same_size, read_label, read_resizable
from pmm_ray.data.transforms import Augment, crop_with_labels
from pmm_ray.errors import SettingError, UserError

Targets = Tensor | tuple[Tensor, ...]
"""What an image, or a batch of them, is to be learned with: a tensor or several."""


class Draw(NamedTuple):
    """One image of an epoch: its `position` in the epoch's order, and the number of its `photo`."""

    epoch: int
    position: int
    photo: int


class Example(NamedTuple):
    """One augmented image (3, h, w) uint8, its target, and what went wrong while it was read: (name, why) pairs."""

    image: Tensor
    target: Targets
    problems: tuple[tuple[str, str], ...]


class Batch(NamedTuple):
    """Images (N, 3, h, w) uint8 and targets: labels (N, C) float32, or masks (N, h, w) int64; or several tensors."""

    images: Tensor
    targets: Targets
    problems: tuple[tuple[str, str], ...]


class GlobalBatches(Sampler[list[Draw]]):
    """One worker's share of every global batch of an epoch. Set `epoch` before each pass.

    Every batch is full: the last one is filled up with the first images of the epoch's order, augmented anew. So no
    image is left out, and no batch norm ever meets a rest of one image.
    """

    def __init__(self, *, count: int, batch_size: int, seed: int, rank: int = 0, workers: int = 1):
        if count < 1:
            raise UserError("there is no image to train on")
        if batch_size < workers:
            raise SettingError(f"train.batch_size={batch_size}: give at least 1 for each of {workers} training workers")
        self.epoch = 0
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._rank, self._workers = rank, workers

    def __len__(self) -> int:
        """Steps in an epoch."""
        return -(-self._count // self._batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in self.whole():
            yield batch[self._rank :: self._workers]

    def whole(self) -> list[list[Draw]]:
        """The epoch's global batches."""
        order = np.random.default_rng([self._seed, self.epoch]).permutation(self._count)
        filled = np.resize(order, len(self) * self._batch_size)
        draws = [Draw(self.epoch, position, int(photo)) for position, photo in enumerate(filled)]
        return [draws[start : start + self._batch_size] for start in range(0, len(draws), self._batch_size)]


class Examples(Dataset[Example]):
    """Photos made into examples. An image that cannot be read is replaced by the next one and told of."""

    def __init__(self, photos: Sequence[Photo], make: Callable[[Photo], tuple[Tensor, Targets]], *, seed: int):
        """`make` turns a photo into an augmented image and its target, drawing from torch's default generator."""
        self.photos = tuple(photos)
        self._make, self._seed = make, seed

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, draw: Draw) -> Example:
        problems: list[tuple[str, str]] = []
        for offset in range(len(self)):
            photo = self.photos[(draw.photo + offset) % len(self)]
            try:
                with _seeded(self._seed, draw.epoch, draw.position):
                    return Example(*self._make(photo), tuple(problems))
            except ImageError as error:
                problems.append((photo.name, str(error)))
        raise UserError(f"none of the {len(self)} training images can be used: {problems[0][1]}")


@dataclass(frozen=True)
class WithLabels:
    """A photo as an image, its image-level labels (C,), 1 for each class that is there, and (h, w) bool, its area.

    The area is where the crop shows the photo: elsewhere it reached beyond and was filled, of which nothing can be
    learned about a pixel. Where `rough_masks` has the photo, the crop keeps only the labels it deserves (multi-crop
    training).
    """

    augment: Augment
    num_classes: int
    rough_masks: Mapping[str, Path] = field(default_factory=dict)
    share: float = 0.0

    def __call__(self, photo: Photo) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The example of a photo."""
        image, labels = read_resizable(photo.image), photo.labels
        if (rough := self.rough_masks.get(photo.name)) is None:
            crop, mask = self.augment(image, np.zeros(image.shape[:2], np.uint8))
        else:
            crop, mask, labels = crop_with_labels(self.augment, image, labels, _mask_of(image, rough), share=self.share)
        present = torch.zeros(self.num_classes)
        present[[label - 1 for label in labels]] = 1
        return crop, (present, mask != IGNORE)


@dataclass(frozen=True)
class WithMasks:
    """A photo as an image and its mask (h, w) int64 with ids 0..C and 255; `num_classes` is C + 1."""

    augment: Augment
    masks: Mapping[str, Path]
    num_classes: int

    def __call__(self, photo: Photo) -> tuple[Tensor, Tensor]:
        """The example of a photo."""
        image = read_resizable(photo.image)
        whole = _mask_of(image, self.masks[photo.name])
        largest = whole.max(initial=0, where=whole != IGNORE)
        if largest >= self.num_classes:
            raise ImageError(f"{self.masks[photo.name]}: id {largest}, but the largest class is {self.num_classes - 1}")
        crop, mask = self.augment(image, whole)
        return crop, mask.long()


def loader(examples: Examples, batches: GlobalBatches, *, processes: int, pin: bool) -> Iterable[Batch]:
    """Batches of `examples` in the order of `batches`, read by `processes` (0: by the caller), in each pass anew."""
    return _Passes(
        DataLoader(
            examples,
            batch_sampler=batches,
            num_workers=processes,
            collate_fn=_collate,
            pin_memory=pin,
            persistent_workers=processes > 0,
        )
    )


@dataclass(frozen=True)
class _Passes:
    """A loader whose errors for the user are the one line that they were where they were raised.

    Of an error in a process torch raises a copy whose message is the whole traceback, with that line at its end.
    """

    batches: DataLoader[Example]

    def __iter__(self) -> Iterator[Batch]:
        # begun at once, and not with the first batch: it draws from torch's generator
        return self._pass(iter(self.batches))

    @staticmethod
    def _pass(batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            yield from batches
        except UserError as error:
            kind = type(error)
            line = str(error).strip().splitlines()[-1]
            raise kind(line.removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")) from None


def _collate(examples: list[Example]) -> Batch:
    images, targets, problems = zip(*examples, strict=True)
    several = isinstance(targets[0], tuple)
    stacked = tuple(map(torch.stack, zip(*targets, strict=True))) if several else torch.stack(targets)
    return Batch(torch.stack(images), stacked, tuple(problem for some in problems for problem in some))


def _mask_of(image: np.ndarray, path: Path) -> np.ndarray:
    mask = read_label(path)
    check_same_size(mask, image.shape[:2], path=path)
    return mask


def torch_seed(*numbers: int) -> int:
    """A seed for torch's generators, in [0, 2^63), that depends on all the numbers and their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Torch's generator on the CPU starts from these numbers inside the block and is as before after it.

    Those of GPUs are left alone: a network draws from them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(*numbers))
        yield
