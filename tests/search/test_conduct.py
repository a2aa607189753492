"""What makes a sweep the one it is, how many settings it has, and what room its trainings need."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_ray.artefacts import Store
from pmm_ray.cluster import session
from pmm_ray.cluster.session import Resources
from pmm_ray.config import ClusterConfig, SweepConfig
from pmm_ray.data.dataset import Classes, Dataset, Photo, Photos, Split
from pmm_ray.errors import UserError
from pmm_ray.search.conduct import Sweep, _room
from pmm_ray.search.space import parse
from pmm_ray.settings import build

CLASSES = Classes(("background", "cat"), ((0, 0, 0), (128, 0, 0)))
DATA = Dataset("one", CLASSES, Split("train", Photos((Photo("a", "a.jpg", (1,)),), CLASSES, "photos")))
ALPHA = {"masks.alpha": {"uniform": [1, 32]}}


def sweep(folder: Path, tree: dict, space: dict = ALPHA, **how: object) -> Sweep:
    config, how = build(tree), SweepConfig(**how)
    return Sweep(config, how, parse(space, config, trial=how.trial), DATA, Store(folder / "store"))


@pytest.mark.parametrize("values", [{"grid": [4, 11, 32]}, {"int": [10, 12]}])
def test_a_grid_counts_the_default_once_however_its_number_is_written(tmp_path, values):
    assert sweep(tmp_path, {"masks": {"alpha": 11}}, {"masks.alpha": values}, searcher="grid").count == 3
