"""Starting or joining Ray, and what it offers."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pmm_ray.config import ClusterConfig
from pmm_ray.errors import UserError, first_line


@dataclass(frozen=True)
class Resources:
    """What a cluster or a node has in all, used or not."""

    cpus: float
    gpus: float


def started() -> bool:
    """Whether this process is connected to Ray."""
    import ray

    return ray.is_initialized()


@contextmanager
def session(cluster: ClusterConfig) -> Iterator[None]:
    """Be connected to Ray while the block runs: to the one this process already uses, a running one, or a new one.

    A running one is that of `cluster.address`, or of the environment's RAY_ADDRESS, as inside `ray job submit`. A new
    one is local, has no dashboard, keeps its files in a temporary folder and ends with the block. What was running
    before goes on running.

    Raises:
        UserError: no Ray answers at the address.
    """
    if started():
        _quieten(cluster.verbose)
        yield
        return
    folder = _start(cluster)
    try:
        yield
    finally:
        import ray

        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(cluster: ClusterConfig) -> Path | None:
    """Connect; the folder that a new local Ray keeps its files in, or None if a running one was joined."""
    import ray

    # Ray warns about a change of this default; nothing here depends on which it is.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not cluster.verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # a sweep has more processes than CPUs, most of which wait; Ray would warn of each few more
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    quiet: dict[str, Any] = {
        "log_to_driver": cluster.verbose,
        "logging_level": logging.INFO if cluster.verbose else logging.ERROR,
    }
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    folder = None
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        with contextlib.nullcontext() if cluster.verbose else _hushed():
            if address:
                ray.init(address=address, **quiet)
            else:
                # "local": without it ray.init() joins whatever Ray it finds on the machine.
                folder = Path(tempfile.mkdtemp(prefix="pr", dir=_short_folder()))
                ray.init(
                    address="local", num_cpus=cluster.num_cpus, include_dashboard=False, _temp_dir=str(folder), **quiet
                )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        where = f"at {address}" if address else "on this machine"
        why = f"{where}: {first_line(error)}"
        raise UserError(f"no Ray {why}; see cluster.address (null starts a local one)") from error
    # Ray puts its own handler in place of the program's, which knows better what a termination means.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)
    _quieten(cluster.verbose)
    return folder


def _knock(address: str | None) -> None:
    """Raise OSError if nobody listens at 'host:port', about which Ray itself would think for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _hushed() -> Iterator[None]:
    """Hold back what native code writes to standard error; show it if the block fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _short_folder() -> str:
    """A temporary folder whose path leaves room for Ray's sockets (107 characters in all)."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= 30 or not Path("/tmp").is_dir() else "/tmp"


def _quieten(verbose: bool) -> None:
    context = data_context()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    logging.getLogger("ray.data").setLevel(logging.INFO if verbose else logging.CRITICAL)


def data_context() -> Any:
    """Ray Data's settings of this process."""
    import ray.data

    with warnings.catch_warnings():
        # When first made it warns of a setting of its own that nobody used.
        warnings.simplefilter("ignore", DeprecationWarning)
        return ray.data.DataContext.get_current()


def nodes() -> list[Resources]:
    """What each living node has. Needs a session."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Resources(cpus=node.get("CPU", 0.0), gpus=node.get("GPU", 0.0)) for node in alive]


def resources() -> Resources:
    """What the cluster has. Needs a session."""
    found = nodes()
    return Resources(cpus=sum(node.cpus for node in found), gpus=sum(node.gpus for node in found))


def lost_nodes() -> int:
    """How many nodes have left the cluster, or died, as far as it remembers. Needs a session."""
    import ray

    return sum(not node["Alive"] for node in ray.nodes())


def worker_slots(*, cpus: float, gpus: float = 0.0) -> int:
    """How many workers of this size the whole cluster can hold when nothing else runs: none spans two nodes."""

    def on(node: Resources) -> int:
        return int(min(node.cpus / cpus, node.gpus / gpus if gpus else float("inf")) + 1e-6)

    return sum(on(node) for node in nodes())


def cpus_each(workers: int, *, gpus: float = 0.0) -> int:
    """The most whole CPUs that each of so many equal workers can have; 0 if they do not all fit with one."""
    most = int(max((node.cpus for node in nodes()), default=0))
    return next((cpus for cpus in range(most, 0, -1) if worker_slots(cpus=cpus, gpus=gpus) >= workers), 0)


def own_gpu(setting: Literal["auto", "yes", "no"]) -> bool:
    """Whether networks in this very process run on its GPU.

    Raises:
        UserError: 'yes', and it has none.
    """
    import torch

    if setting == "yes" and not torch.cuda.is_available():
        raise UserError(
            "cluster.gpu=yes but this process sees no GPU: set cluster.gpu=auto, or have workers do the work "
            "(cluster.train_workers and cluster.infer_workers other than 0)"
        )
    return setting != "no" and torch.cuda.is_available()


def check_gpu() -> None:
    """See that torch can use the GPU that Ray has given: Ray counts those that there are.

    Raises:
        UserError: it cannot.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "Ray has given a GPU that torch cannot use (an old driver or card, or a torch for CPUs): correct that, or "
            "set cluster.gpu=no"
        )


def use_gpu(setting: Literal["auto", "yes", "no"]) -> bool:
    """Whether networks run on GPUs. Needs a session.

    Raises:
        UserError: 'yes', and Ray has none.
    """
    if setting == "no":
        return False
    found = resources().gpus >= 1
    if setting == "yes" and not found:
        raise UserError("cluster.gpu=yes but Ray has no GPU; set cluster.gpu=auto or look at `ray status`")
    return found
