"""What a data set is: photos with image-level labels; and, apart from them, ground truth for evaluation.

The two are separate types on purpose. Whatever trains or makes masks receives `Photos`, which has no way to the
ground truth; only evaluation receives `Truth`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

IGNORE = 255
"""The id of a pixel that counts neither in a loss nor in a score."""


@dataclass(frozen=True)
class Classes:
    """Names and colours. Index 0 is the background, 1..C the classes; `palette` has (r, g, b) in 0..255 for each."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        """Number of ids with the background: C + 1."""
        return len(self.names)


@dataclass(frozen=True)
class Photo:
    """One image.

    `name` is unique, relative and without suffix ('a/b' for a/b.jpg), unless two images differ in their suffix alone.
    `labels` are ids 1..C, sorted.
    """

    name: str
    image: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """An entry of a data set that could not be used: its name and one line that says why and what to do.

    Or the rest of a long list of them, `count` in all.
    """

    name: str
    why: str
    count: int = 1


@dataclass(frozen=True)
class Photos:
    """Image-level supervision: all that training and mask making may see."""

    photos: tuple[Photo, ...]
    classes: Classes
    fingerprint: str

    def __len__(self) -> int:
        return len(self.photos)


@dataclass(frozen=True)
class Truth:
    """Ground-truth masks (name -> path of a label PNG), for evaluation only; `protocol` names their source."""

    masks: Mapping[str, str]
    protocol: str
    fingerprint: str


@dataclass(frozen=True)
class Split:
    """One list of a data set ('train' or 'val'). `truth` is None where there is no ground truth."""

    name: str
    photos: Photos
    truth: Truth | None = None

    @property
    def known(self) -> int:
        """How many of its photos have ground truth."""
        return sum(photo.name in self.truth.masks for photo in self.photos.photos) if self.truth else 0


@dataclass(frozen=True)
class Dataset:
    """A data set as read. A run shows what it lists first and goes on.

    `problems` had to be left out; `notes` are about what is there and may be wrong.
    """

    name: str
    classes: Classes
    train: Split
    val: Split | None = None
    problems: tuple[Problem, ...] = field(default=())
    notes: tuple[Problem, ...] = field(default=())
