"""Running one piece of work on a team of Ray Train workers."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmm_ray.cluster.session import check_gpu, cpus_each, lost_nodes, own_gpu, use_gpu, worker_slots
from pmm_ray.config import ClusterConfig
from pmm_ray.errors import SettingError, UserError
from pmm_ray.files import remove_tree
from pmm_ray.places import Remote

_logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    # How often the workers are asked for news.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # How long workers may wait for their places before the nodes are looked at again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    # A process more for each training, of use to work that asks for it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""Has the C library (glibc; others ignore it) keep what a worker frees for what it asks for next, from its start on. By
default large tensors go back to the system at every step and come as new zeroed pages, which takes a third of a
training's time on CPUs. Not for work on images as large as they are: memory in pieces of many sizes would only grow."""
_LEFT_FREE = 0.1
"""CPUs of each worker's share that are not claimed, so that Ray's own tasks always find room."""


@dataclass(frozen=True)
class Room:
    """What each training worker gets: so many CPUs (and torch threads), and a GPU or none. No worker: this process."""

    workers: int
    cpus: int
    gpu: bool


def room(cluster: ClusterConfig) -> Room:
    """Divide the running cluster among `cluster.train_workers`. Needs a Ray session unless that is 0.

    A cluster that has lost a node goes on with as many workers as it still holds: their number changes no result.

    Raises:
        UserError: there are fewer CPUs or GPUs than workers, which would wait for ever.
    """
    if cluster.train_workers == 0:
        return Room(workers=0, cpus=0, gpu=own_gpu(cluster.gpu))
    gpu = use_gpu(cluster.gpu)
    workers, most = cluster.train_workers, worker_slots(cpus=1, gpus=gpu)
    if most < workers:
        if not (most and lost_nodes()):
            kind = "a GPU and a CPU" if gpu else "a CPU"
            raise UserError(
                f"cluster.train_workers={workers}, but Ray has {kind} for {most} only: lower it"
                + (", or set cluster.gpu=no" if gpu else "")
            )
        _logger.warning("nodes were lost; training goes on with %d of %d workers", most, workers)
        workers = most
    return Room(workers=workers, cpus=cpus_each(workers, gpus=gpu), gpu=gpu)


def fit(
    work: Callable[..., Any],
    settings: Mapping[str, Any],
    *,
    find_room: Callable[[], Room],
    max_failures: int,
    scratch: Path,
) -> Any:
    """Run `work(team, **settings)` on every worker and return what rank 0 returns, which must pickle.

    A worker that dies, or fails with anything but a UserError, ends the attempt for all; there are `max_failures`
    further attempts, and `work` is expected to go on from its own checkpoints. While others hold the CPUs it waits.
    With 0 workers it runs in this process, on its threads, and an error is the caller's.

    Args:
        work: must pickle.
        settings: its arguments.
        find_room: called before each attempt, since a node may have been lost: number and size of the workers.
        max_failures: how many attempts may fail before the last one.
        scratch: holds Ray's files for the time of the call; with several machines a place they all reach.

    Raises:
        UserError: as raised by a worker or `find_room`, or what the last failure was, in one line.
    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    failures, told = 0, False
    while True:
        place = find_room()
        if place.workers == 0:
            from pmm_ray.teams import LocalTeam

            return work(LocalTeam("cuda" if place.gpu else "cpu"), **settings)
        try:
            return _attempt(work, settings, place, scratch.absolute())
        except TrainingFailedError as error:
            if _found_no_room(error):
                if not told:
                    _logger.warning(
                        "no room yet for %d training workers of %d CPUs; waiting", place.workers, place.cpus
                    )
                told = True
                continue
            why = _reason(error)
            failures += 1
            if failures > max_failures:
                raise UserError(f"training failed {failures} times, the last time by: {why}") from error
            _logger.warning("a training worker failed (%s); %d more attempts", why, max_failures + 1 - failures)
        finally:
            remove_tree(scratch)


def _found_no_room(error: Exception) -> bool:
    """Whether the workers were never placed: others have the CPUs, or a node is lost and Ray does not know it yet."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def _reason(error: Exception) -> str:
    """Why an attempt failed, in one line.

    Raises:
        UserError: as a worker raised it.
    """
    failures = list(getattr(error, "worker_failures", {}).values())
    users = [cause for failure in failures for cause in _causes(failure) if isinstance(cause, UserError)]
    if users:
        kind = SettingError if isinstance(users[0], SettingError) else UserError
        raise kind(str(users[0])) from None
    return _line(failures[0] if failures else error)


def _attempt(work: Callable[..., Any], settings: Mapping[str, Any], place: Room, scratch: Path) -> Any:
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

    resources = {"CPU": place.cpus - _LEFT_FREE} | ({"GPU": 1.0} if place.gpu else {})
    # Ray itself tries nothing again: it would ask for the same workers even where a node is gone.
    once = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
    with environment(_ENVIRONMENT):
        trainer = _trainer()(
            _on_worker,
            train_loop_config={"work": work, "settings": dict(settings), "threads": place.cpus, "gpu": place.gpu},
            torch_config=TorchConfig(backend="nccl" if place.gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=place.workers, use_gpu=place.gpu, resources_per_worker=resources),
            # Ray takes a run of the same name for one to go on with, and a finished one for done: never reuse a name.
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                **storage(scratch),
                failure_config=once,
                worker_runtime_env={"env_vars": _missing(KEEP_MEMORY)},
            ),
        )
        return trainer.fit().return_value


def _trainer() -> Any:
    """Ray's trainer without two habits of its own. A class made here, since Ray is imported late."""
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Leave Ctrl-C to the program: Ray's handler would stay, and end even a later stage without a word."""

        def _create_default_callbacks(self) -> list[Any]:
            """Without the process that hands out shards of Ray Data, for which every start would wait."""
            return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    return Trainer


def storage(scratch: Path) -> dict[str, Any]:
    """The place for Ray's files, as the RunConfig of Train and Tune takes it."""
    if isinstance(scratch, Remote):
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return {"storage_path": scratch.key, "storage_filesystem": PyFileSystem(FSSpecHandler(scratch.filesystem))}
    scratch.mkdir(parents=True, exist_ok=True)
    return {"storage_path": str(scratch)}


def _on_worker(config: dict[str, Any]) -> Any:
    """The body of a worker: build the team and do the work."""
    import torch
    from ray.train.torch import get_device

    from pmm_ray.teams import DistributedTeam

    if config["gpu"]:
        check_gpu()
    # Ray sets OMP_NUM_THREADS=1, which would leave the other CPUs of this worker idle.
    torch.set_num_threads(config["threads"])
    team = DistributedTeam(get_device())
    result = config["work"](team, **config["settings"])
    return result if team.rank == 0 else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it wraps, however Ray and Python wrapped it."""
    while error is not None:
        yield error
        inner = getattr(error, "_base_exc", None) or getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the time of the block; what the user has set stays."""
    added = _missing(values)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _missing(values: Mapping[str, str]) -> dict[str, str]:
    """Those that the environment does not hold yet."""
    return {name: value for name, value in values.items() if name not in os.environ}
