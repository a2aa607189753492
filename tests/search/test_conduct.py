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
from pmm_ray.search import conduct
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


@pytest.mark.parametrize(
    ("trial", "key", "space"),
    [
        ("masks", "cam.npy", ALPHA),
        ("masks", "cam.net.weights", ALPHA),
        ("segmentation", "seg.net.weights", ALPHA),
        ("segmentation", None, {"cam.npy": {"choice": ["files", None]}}),
    ],
)
def test_a_sweep_is_another_with_other_files_at_the_same_place_and_the_same_when_they_are_moved(
    tmp_path, monkeypatch, trial, key, space
):
    monkeypatch.chdir(tmp_path)

    def found(place: str, content: bytes) -> Path:
        file = Path(place) / "a.npy"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        tree: dict = {}
        if key is not None:
            *sections, name = key.split(".")
            section = tree
            for each in sections:
                section = section.setdefault(each, {})
            section[name] = place if name == "npy" else str(file)
        varied = {name: {"choice": [place, None]} if name == "cam.npy" else kind for name, kind in space.items()}
        return sweep(tmp_path, tree, varied, trial=trial).folder

    first = found("files", b"one")
    assert found("files", b"other") != first
    assert found("files", b"one") == first
    assert found("moved", b"one") == first


def test_weights_that_cannot_be_read_count_by_their_name(tmp_path):
    # of a classifier that CAMs made elsewhere stand in for
    one, other = (sweep(tmp_path, {"cam": {"net": {"weights": f"{tmp_path}/{name}.pt"}}}) for name in "ab")
    assert one.folder != other.folder


def test_what_only_other_settings_than_the_bases_read_makes_another_sweep(tmp_path):
    space = {"masks.maker": {"choice": ["ppg", "threshold"]}}
    one, other = (sweep(tmp_path, {"masks": {"threshold": threshold}}, space) for threshold in (0.2, 0.3))
    assert one.folder != other.folder


def test_another_version_of_the_program_makes_another_sweep(tmp_path, monkeypatch):
    before = sweep(tmp_path, {}).folder
    monkeypatch.setattr("pmm_ray.search.conduct.__version__", "another")
    assert sweep(tmp_path, {}).folder != before


def test_the_choice_of_a_checkpoint_makes_another_sweep_of_trainings_and_not_of_masks(tmp_path):
    def same(trial: str) -> bool:
        one, other = (sweep(tmp_path, {"cycles": {"checkpoint": how}}, trial=trial) for how in ("last", "best_val"))
        return one.folder == other.folder

    assert same("masks") and not same("segmentation")


def room(cpus: float, gpu: str = "no"):
    return _room(ClusterConfig(gpu=gpu), SweepConfig(trial="segmentation", cpus=cpus))


def test_trainings_side_by_side_are_as_many_as_the_nodes_have_room_for(monkeypatch):
    monkeypatch.setattr(session, "nodes", lambda: [Resources(3, 0), Resources(3, 1)])
    assert room(2).concurrent == 2
    assert room(2, gpu="auto").concurrent == 1


def test_a_training_that_no_node_has_room_for_is_refused_with_the_largest_there_is(monkeypatch):
    monkeypatch.setattr(session, "nodes", lambda: [Resources(8, 0), Resources(2, 1)])
    monkeypatch.setattr(conduct, "nodes", session.nodes)
    with pytest.raises(UserError, match=r"^sweep\.cpus=9: the largest node has 8 CPUs; lower it$"):
        room(9)
    # the CPUs of one node and the GPU of another are no place
    with pytest.raises(UserError, match=r"^sweep\.cpus=4: the largest node with a GPU has 2 CPUs; lower it$"):
        room(4, gpu="yes")
