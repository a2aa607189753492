"""Running one piece of work on a team of Ray Train workers."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pmm_ray.cluster.session import own_gpu, use_gpu
from pmm_ray.config import ClusterConfig
from pmm_ray.errors import UserError
from pmm_ray.files import remove_tree
from pmm_ray.places import Remote

_POLL_SECONDS = "0.2"
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

    Raises:
        UserError: there are fewer CPUs or GPUs than workers, which would wait for ever.
    """
    import ray

    workers = cluster.train_workers
    if workers == 0:
        return Room(workers=0, cpus=0, gpu=own_gpu(cluster.gpu))
    gpu = use_gpu(cluster.gpu)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def fitting(cpus: int) -> float:
        return sum(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) if gpu else workers) for node in nodes)

    most = int(max((node.get("CPU", 0) for node in nodes), default=0))
    cpus = next((cpus for cpus in range(most, 0, -1) if fitting(cpus) >= workers), 0)
    if not cpus:
        kind = "a GPU and a CPU" if gpu else "a CPU"
        raise UserError(
            f"cluster.train_workers={workers}, but Ray has {kind} for {fitting(1):.0f} only: lower it"
            + (", or set cluster.gpu=no" if gpu else "")
        )
    return Room(workers=workers, cpus=cpus, gpu=gpu)


def fit(
    work: Callable[..., Any],
    settings: Mapping[str, Any],
    *,
    workers: int,
    use_gpu: bool,
    cpus_per_worker: int,
    max_failures: int,
    scratch: Path,
) -> Any:
    """Run `work(team, **settings)` on every worker and return what rank 0 returns, which must pickle.

    With 0 workers it runs in this process, on its threads, and an error is the caller's. A worker that dies, or fails
    with anything but a UserError, ends the attempt for all; there are `max_failures` further attempts, and `work` is
    expected to go on from its own checkpoints. `scratch` holds Ray's files for the time of the call; with several
    machines it must be a place they all reach.

    Raises:
        UserError: as raised by a worker, or what the last failure was, in one line.
    """
    if workers == 0:
        from pmm_ray.teams import LocalTeam

        return work(LocalTeam("cuda" if use_gpu else "cpu"), **settings)
    from ray.train.v2.api.exceptions import TrainingFailedError

    for left in range(max_failures, -1, -1):
        try:
            return _attempt(work, settings, workers, use_gpu, cpus_per_worker, scratch.absolute())
        except TrainingFailedError as error:
            failures = list(getattr(error, "worker_failures", {}).values())
            users = [cause for failure in failures for cause in _causes(failure) if isinstance(cause, UserError)]
            if users:
                raise UserError(str(users[0]).strip().splitlines()[-1]) from None
            why = _line(failures[0] if failures else error)
            if not left:
                raise UserError(f"training failed {max_failures + 1} times, the last time by: {why}") from error
            logging.getLogger(__name__).warning("a training worker failed (%s); %d more attempts", why, left)
        finally:
            remove_tree(scratch)
    raise AssertionError("unreachable")


def _attempt(
    work: Callable[..., Any], settings: Mapping[str, Any], workers: int, gpu: bool, cpus: int, scratch: Path
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": cpus - _LEFT_FREE, "GPU": 1} if gpu else {"CPU": cpus - _LEFT_FREE}
    with environment(RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=_POLL_SECONDS):
        trainer = TorchTrainer(
            _on_worker,
            train_loop_config={"work": work, "settings": dict(settings), "threads": cpus},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources),
            # Ray takes a run of the same name for one to go on with, and a finished one for done: never reuse a name.
            run_config=RunConfig(
                name=uuid.uuid4().hex, **storage(scratch), failure_config=FailureConfig(max_failures=0)
            ),
        )
        # Typed as the older Result, which has no return_value yet.
        return cast(Any, trainer.fit()).return_value


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
def environment(**values: str) -> Iterator[None]:
    """Environment variables for the time of the block; what the user has set stays."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
