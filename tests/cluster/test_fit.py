"""Work on a team of Ray Train workers."""

import os
import platform
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from ray import cloudpickle

from pmm_ray.cluster import fit as cluster_fit
from pmm_ray.cluster import session
from pmm_ray.cluster.fit import Room, fit, room
from pmm_ray.config import ClusterConfig
from pmm_ray.data.loading import GlobalBatches, loader
from pmm_ray.errors import SettingError, UserError, within

# Ray Data's own context warns of itself when Ray Train makes one.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]


# Workers cannot import this file: what they run travels whole.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def on_a_team(work, folder: Path, *, workers: int = 1, max_failures: int = 1, **settings):
    place = Room(workers, 2 // workers, gpu=False)
    return fit(work, settings, find_room=lambda: place, max_failures=max_failures, scratch=folder / "ray")


def add_ranks(team, *, factor):
    total = team.sum(torch.tensor([team.rank + 1.0]))
    return {"sum": factor * total.item(), "ranks": team.gather(team.rank), "threads": torch.get_num_threads()}


def test_two_workers_sum_and_gather_and_rank_0_answers(ray_session, tmp_path):
    found = on_a_team(add_ranks, tmp_path, workers=2, factor=10)
    assert found == {"sum": 30.0, "ranks": [0, 1], "threads": 1}
    assert not (tmp_path / "ray").exists()


def count_faults(team):
    found = []
    for _ in range(40):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how memory is kept is told to glibc alone")
def test_a_training_soon_uses_only_memory_that_it_has_freed_before(ray_session, tmp_path):
    faults = on_a_team(count_faults, tmp_path)
    # how many a page is differs by machine; without, each of the ten would have as many as the first
    assert faults[0] > 100 and sum(faults[-10:]) < faults[0]


def die_then_complain(team, *, log):
    with Path(log).open("a") as file:
        file.write(f"{torch.get_num_threads()} threads\n")
    if len(Path(log).read_text().splitlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raise UserError("x.jpg: mend it")


def test_a_killed_worker_is_replaced_but_a_users_error_is_one_line_and_not_tried_again(ray_session, tmp_path):
    with pytest.raises(UserError, match=r"^x\.jpg: mend it$"):
        on_a_team(die_then_complain, tmp_path, log=str(tmp_path / "log"), max_failures=3)
    assert (tmp_path / "log").read_text() == "2 threads\n2 threads\n"


def load_in_a_process(team):
    class Unusable(torch.utils.data.Dataset):
        def __getitem__(self, draw):
            raise UserError("x.jpg: mend it")

        def __len__(self):
            return 1

    list(loader(Unusable(), GlobalBatches(count=1, batch_size=1, seed=0), processes=1, pin=False))


def test_a_users_error_in_a_workers_own_process_is_one_line_too(ray_session, tmp_path):
    with pytest.raises(UserError, match=r"^x\.jpg: mend it$"):
        on_a_team(load_in_a_process, tmp_path)


def learn_too_fast(team):
    raise SettingError("train.lr: lower it")


def test_a_setting_that_a_worker_finds_wrong_can_still_be_told_with_its_section(ray_session, tmp_path):
    with pytest.raises(UserError, match=r"^cam\.train\.lr: lower it$"), within("cam"):
        on_a_team(learn_too_fast, tmp_path)


def divide(team):
    return 1 / 0


def test_the_last_failure_is_told_in_one_line(ray_session, tmp_path):
    with pytest.raises(UserError, match=r"^training failed 1 times, the last time by: .*division by zero$"):
        on_a_team(divide, tmp_path, max_failures=0)


def test_a_cluster_that_lost_a_node_trains_with_as_many_workers_as_it_still_holds(monkeypatch, caplog):
    monkeypatch.setattr(session, "nodes", lambda: [session.Resources(0, 0), session.Resources(3, 0)])
    monkeypatch.setattr(cluster_fit, "lost_nodes", lambda: 1)
    assert room(ClusterConfig(train_workers=4, gpu="no")) == Room(workers=3, cpus=1, gpu=False)
    assert "nodes were lost; training goes on with 3 of 4 workers" in caplog.text
    monkeypatch.setattr(session, "nodes", lambda: [session.Resources(0, 0)])
    with pytest.raises(UserError, match="for 0 only"):
        room(ClusterConfig(train_workers=4, gpu="no"))


def test_room_shares_the_cpus_and_refuses_what_would_wait_for_ever(ray_session):
    assert room(ClusterConfig(train_workers=1, gpu="no")).cpus == 2
    assert room(ClusterConfig(train_workers=2, gpu="no")).cpus == 1
    with pytest.raises(UserError, match=r"cluster\.train_workers=3, but Ray has a CPU for 2 only"):
        room(ClusterConfig(train_workers=3, gpu="no"))
