"""What a sweep has tried, in files of its own: one for each setting, written when it ends."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pmm_ray.artefacts import digest
from pmm_ray.cluster.search import Ending
from pmm_ray.files import write_atomic
from pmm_ray.search.space import Values

_FOLDER = "tried"


@dataclass(frozen=True)
class Tried:
    """One setting and what came of it.

    Attributes:
        number: In the order of being proposed, from 1.
        values: Dotted key -> value.
        default: Whether it is the base config's own.
        ending: 'done' on all of the work, 'stopped' early, or 'failed'.
        score: Of the work done, in [0, 1]; None if it failed.
        share: Of the work that was done, in [0, 1].
        figures: Others, by their names in MLflow.
        error: One line, of one that failed.
        seconds: From its start to its end.
        artefact: The folder of its scores (masks); empty if there is none.
    """

    number: int
    values: Values
    default: bool
    ending: Ending
    score: float | None
    share: float
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    artefact: str = ""


class Record:
    """The settings that ended, in the order of their numbers; a file each below `<folder>/tried`."""

    def __init__(self, folder: Path):
        self._folder = folder / _FOLDER
        self._tried = {}
        for file in sorted(self._folder.glob("*.json")):
            tried = Tried(**json.loads(file.read_text()))
            self._tried[digest(tried.values)] = tried

    def add(self, tried: Tried) -> None:
        """Keep one more; an earlier ending of the same setting is replaced."""
        key = digest(tried.values)
        self._tried[key] = tried
        write_atomic(self._folder / f"{key[:16]}.json", json.dumps(asdict(tried), indent=1))

    def find(self, values: Values) -> Tried | None:
        """What came of these values."""
        return self._tried.get(digest(values))

    @property
    def all(self) -> list[Tried]:
        """All, by number."""
        return sorted(self._tried.values(), key=lambda tried: tried.number)

    def best(self) -> Tried | None:
        """The best of those that were tried on all of the work."""
        done = [tried for tried in self.all if tried.ending == "done" and tried.score is not None]
        return max(done, key=lambda tried: (tried.score, -tried.number), default=None)
