"""How many actors run a network, and what each takes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from pmm_ray.cluster import session
from pmm_ray.config import ClusterConfig
from pmm_ray.data.dataset import Photo, Photos
from pmm_ray.errors import UserError
from pmm_ray.settings import all_keys
from pmm_ray.stages.network import NetworkWorker, network_actors, photo_rows
from pmm_ray.stages.row_work import Actors


@pytest.mark.parametrize(
    ("cpus", "gpus", "cluster", "per_gpu", "expected"),
    [
        (2, 0, {}, 1, Actors(2, 1, 0)),
        (8, 0, {"infer_workers": 2}, 1, Actors(2, 4, 0)),
        (2, 0, {"infer_workers": 5}, 1, Actors(2, 1, 0)),
        (16, 2, {}, 1, Actors(2, 1, 1)),
        (16, 2, {"gpu": "no"}, 1, Actors(16, 1, 0)),
        (16, 2, {}, 4, Actors(8, 1, 0.25)),
        (6, 2, {}, 4, Actors(6, 1, 1 / 3)),
        (16, 2, {"infer_workers": 1}, 4, Actors(1, 1, 1)),
        (16, 2, {"infer_workers": 3}, 1, Actors(3, 1, 0.5)),
    ],
)
def test_actors_fill_the_machine_and_share_gpus_evenly(monkeypatch, cpus, gpus, cluster, per_gpu, expected):
    monkeypatch.setattr(session, "nodes", lambda: [session.Resources(cpus, gpus)])
    assert network_actors(ClusterConfig(**cluster), per_gpu=per_gpu) == expected


@pytest.mark.parametrize(
    ("infer_workers", "expected"),
    [(None, Actors(6, 1, 0)), (3, Actors(3, 2, 0)), (2, Actors(2, 2, 0)), (1, Actors(1, 4, 0))],
)
def test_no_actor_is_larger_than_a_node(monkeypatch, infer_workers, expected):
    nodes = [session.Resources(0, 0), session.Resources(4, 0), session.Resources(2, 0)]
    monkeypatch.setattr(session, "nodes", lambda: nodes)
    assert network_actors(ClusterConfig(infer_workers=infer_workers, gpu="no")) == expected


def test_a_photo_that_cannot_be_read_still_has_its_row(tmp_path):
    photos = Photos((Photo("a", str(tmp_path / "a.jpg"), (1,)),), None, "x")
    assert photo_rows(photos) == [{"name": "a", "image": str(tmp_path / "a.jpg"), "labels": (1,), "size": (0, 0)}]


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "joint"])
def test_a_network_knows_the_key_of_the_rate_that_it_learned_with(kind):
    worker = NetworkWorker.__new__(NetworkWorker)
    worker.info = {"kind": kind}
    assert worker.rate in [key for key, _ in all_keys()]


def test_a_gpu_that_torch_cannot_use_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch cannot use .*cluster\.gpu=no$"):
        NetworkWorker(model=tmp_path / "model.pt", actors=Actors(1, 1, 1))


def worker_that_raises(error: Exception, workers: int, photo: Path) -> Callable[[], list]:
    worker = NetworkWorker.__new__(NetworkWorker)
    worker._actors = Actors(workers, 1, 0.25)

    def work(rows, images):
        raise error

    worker.work = work
    Image.new("RGB", (4, 4)).save(photo)
    return lambda: worker([{"name": "a", "image": str(photo)}])


def test_an_image_too_large_for_the_gpu_is_told_with_the_mend(tmp_path):
    with pytest.raises(ValueError, match=r"lower cluster\.infer_workers"):
        worker_that_raises(torch.OutOfMemoryError("full"), 4, tmp_path / "a.png")()


def test_a_gpu_that_fails_ends_the_program_where_no_other_process_can_try_again(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: the GPU failed \(AcceleratorError: .*the same command goes on$"):
        worker_that_raises(torch.AcceleratorError("illegal access"), 0, tmp_path / "a.png")()


def test_a_gpu_that_is_not_there_is_told_with_keys_that_exist(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"cluster\.gpu=auto.*cluster\.train_workers and cluster\.infer_workers"):
        session.own_gpu("yes")
