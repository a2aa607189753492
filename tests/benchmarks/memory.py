"""Memory of the mask stage over ten thousand images: it must not grow with their number.

The photos keep their own proportions, so that they come in many sizes, and are repeated under other names. A thread
looks at the stage's actors, and at the driver, in /proc while the stage runs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import measure
import photos
from process_memory import Memory, available
from stage_runs import imported, read_photos, run_stage

from pmm_ray.cluster.session import session
from pmm_ray.config import ClusterConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photos.add_arguments(parser)
    parser.add_argument("--count", type=int, default=10_000, help="images (default 10000)")
    parser.add_argument("--size", type=int, default=250, help="longer side of the photos (default 250)")
    parser.add_argument("--actors", type=int, default=2, help="default 2")
    parser.add_argument("--points", type=int, default=10, help="rows of the table (default 10)")
    given = parser.parse_args(arguments)
    folder = photos.photo_folder(given.shared)
    if not available():
        return
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        root = Path(temporary)
        names = photos.choose(folder, given.count)
        photos.write_voc(root / "set", folder, names, count=given.count, stride=4, long=given.size, short=None)
        cluster = ClusterConfig(num_cpus=given.actors, mask_workers=given.actors)
        with session(cluster):
            found = read_photos(root / "set")
            cams = imported(root / "set", found, cluster)
            with _Watch(root / "out" / "masks") as watch:
                run_stage(root / "out", found, cams, cluster)
    _show(watch.samples, given)


@dataclass(frozen=True)
class _Sample:
    done: int
    seconds: float
    driver: Memory
    actors: dict[int, Memory]


class _Watch:
    """Looks twice a second while the block runs."""

    def __init__(self, masks: Path):
        self._masks = masks
        self._over = threading.Event()
        self._start = time.monotonic()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.samples: list[_Sample] = []

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            done = sum(1 for entry in os.scandir(self._masks) if entry.name[0] != ".") if self._masks.is_dir() else 0
            found = {pid: memory for pid in _actors() if (memory := Memory.of(pid))}
            self.samples.append(_Sample(done, time.monotonic() - self._start, Memory.here(), found))


def _actors() -> list[int]:
    """Processes below this one that Ray calls after the stage's actor. Those of other Rays on the machine are not."""
    parents, wanted = {}, []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # the command's name, in brackets, may hold blanks
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if b"RowActor" in (folder / "cmdline").read_bytes():
                    wanted.append(int(folder.name))
            except OSError:
                continue
    return sorted(pid for pid in wanted if _below(pid, parents))


def _below(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def _show(samples: list[_Sample], given: argparse.Namespace) -> None:
    busy = [sample for sample in samples if sample.done and sample.actors]
    if not busy:
        print("skipped: the stage was over before it could be looked at; ask for more images with --count")
        return
    targets = [given.count * (i + 1) / given.points for i in range(given.points)]
    # the last look at which no more than so many were done
    chosen = [next((s for s in reversed(busy) if s.done <= target), busy[0]) for target in targets]
    chosen = list({id(sample): sample for sample in (busy[0], *chosen)}.values())
    pids = list(dict.fromkeys(pid for sample in chosen for pid in sample.actors))
    rows = [
        [
            str(sample.done),
            f"{sample.seconds:.0f}",
            *(str(sample.actors.get(pid, "")) for pid in pids),
            str(sample.driver),
        ]
        for sample in chosen
    ]
    columns = ("images done", "s", *(f"actor {i + 1}" for i in range(len(pids))), "driver")
    measure.show(
        f"Memory of the mask stage over {given.count} images, longer side {given.size}; MiB",
        columns,
        rows,
        "resident / of that the process's own (the rest are libraries and shared memory) / peak so far.",
    )


if __name__ == "__main__":
    main()
