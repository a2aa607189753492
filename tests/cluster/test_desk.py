"""Jobs that meet at a desk."""

import asyncio
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from ray import cloudpickle

from pmm_ray.cluster.desk import Desk, _Actor

pytestmark = pytest.mark.ray

# Workers cannot import this file: what they run travels whole.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def make_work(*, log, fatal=None, slow=0.0):
    """Each job is a number, each result item * 100 + job; every call writes a line 'item job job ...'."""

    def work(item, jobs):
        time.sleep(slow)
        with Path(log).open("a") as file:
            file.write(f"{item} {' '.join(map(str, jobs))}\n")
        if fatal is not None and item == 3:
            mark = Path(fatal)
            if mark.name == "always" or not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if item == 13:
            raise ValueError("thirteen")
        return [item * 100 + job for job in jobs]

    return work


def collect(desk, job, into):
    ticket = desk.join(job)
    into[job] = [desk.result(ticket) for _ in range(desk.items)]


def together(desk, jobs):
    found = {}
    threads = [threading.Thread(target=collect, args=(desk, job, found)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(250)
    return found


@pytest.fixture
def desk_of(ray_session, tmp_path):
    opened = []

    def open_desk(items, *, expected, workers=2, **options):
        make = partial(make_work, log=str(tmp_path / "log"), **options)
        # so patient that only the number of jobs decides
        opened.append(Desk.open(make, items, workers=workers, cpus=0.9, together=expected, attempts=3, patience=1000))
        return opened[-1]

    yield open_desk
    for desk in opened:
        desk.close()


def calls(folder: Path) -> list[list[int]]:
    """Item and jobs, in order, of each call."""
    lines = [[int(word) for word in line.split()] for line in (folder / "log").read_text().splitlines()]
    return [[item, *sorted(jobs)] for item, *jobs in lines]


def test_each_job_gets_every_item_in_order_and_items_are_shared(desk_of, tmp_path):
    desk = desk_of(list(range(6)), expected=5)
    found = together(desk, [1, 2, 3, 4, 5])
    assert found == {job: [item * 100 + job for item in range(6)] for job in (1, 2, 3, 4, 5)}
    # Each item once for all five.
    assert sorted(map(tuple, calls(tmp_path))) == [(item, 1, 2, 3, 4, 5) for item in range(6)]


def test_jobs_that_join_at_the_same_time_get_tickets_of_their_own():
    async def join_together():
        actor = _Actor(make_work=None, items=[1], workers=0, cpus=1, together=1, attempts=1, patience=1)
        # as in a busy desk: somebody holds the news, so every join has to wait
        async with actor._news:
            joins = [asyncio.create_task(actor.join(job)) for job in "abc"]
            await asyncio.sleep(0)
        return await asyncio.gather(*joins)

    assert len(set(asyncio.run(join_together()))) == 3


def test_a_job_that_comes_later_is_done_too_and_one_that_leaves_is_not_waited_for(desk_of, tmp_path):
    desk = desk_of(list(range(4)), expected=1, workers=1, slow=0.1)
    first, second = desk.join(1), desk.join(2)
    assert desk.result(first) == 1
    desk.leave(second)
    late = {}
    collect(desk, 7, late)
    assert [desk.result(first) for _ in range(3)] == [101, 201, 301]
    assert late == {7: [7, 107, 207, 307]}
    assert sum(2 in jobs for _, *jobs in calls(tmp_path)) < 4


def test_a_worker_that_is_killed_does_its_item_again(desk_of, tmp_path):
    desk = desk_of(list(range(5)), expected=2, fatal=str(tmp_path / "once"))
    assert together(desk, [1, 2]) == {job: [item * 100 + job for item in range(5)] for job in (1, 2)}


def test_an_item_that_cannot_be_done_is_an_error_of_its_jobs_and_others_go_on(desk_of, tmp_path):
    desk = desk_of([13, 1], expected=1, workers=1)
    ticket = desk.join(5)
    with pytest.raises(RuntimeError, match="part 1 of 2: thirteen"):
        desk.result(ticket)
    assert desk.result(ticket) == 105
