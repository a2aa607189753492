"""Many jobs over the same items, each item done once for all the jobs that wait for it.

A sweep's settings come one by one, from trials that know nothing of each other, yet on one image many of them cost
little more than one. So trials leave their settings at a desk, and workers take from it an item together with every job
that needs it next. Each job gets its items in the same order and hears of each as it is done, so it can be judged, and
withdrawn, half-way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pmm_ray.cluster.worker import one_line

Work = Callable[[Any, list[Any]], list[Any]]
"""work(item, jobs) -> one result for each job."""


@dataclass(frozen=True)
class Desk:
    """Where jobs are left; it may be handed to other processes. Close it in the process that opened it."""

    _actor: Any
    items: int

    @classmethod
    def open(
        cls,
        make_work: Callable[[], Work],
        items: Sequence[Any],
        *,
        workers: int,
        cpus: float,
        together: int,
        attempts: int,
        patience: float = 1.0,
    ) -> Desk:
        """Start the workers. Needs a Ray session.

        Args:
            make_work: called once in each worker's process; must pickle.
            items: in the order in which every job gets them.
            workers: processes.
            cpus: that each takes, less than 1 so that trials find room.
            together: how many jobs to expect at once; idle workers begin when that many have joined.
            attempts: how often an item may end its worker before its jobs are told that it failed.
            patience: seconds after which idle workers begin all the same, if no further job has joined.
        """
        import ray

        actor = ray.remote(_Actor).options(num_cpus=0, max_concurrency=1000)
        return cls(actor.remote(make_work, list(items), workers, cpus, together, attempts, patience), len(items))

    def join(self, job: Any) -> int:
        """Leave a job; the ticket by which to ask for its results."""
        import ray

        return ray.get(self._actor.join.remote(job))

    def result(self, ticket: int) -> Any:
        """The next item's result; waits for it. There are as many as items.

        Raises:
            RuntimeError: the item ended its worker again and again, or its work failed.
        """
        import ray

        result, error = ray.get(self._actor.result.remote(ticket))
        if error is not None:
            raise RuntimeError(error)
        return result

    def leave(self, ticket: int) -> None:
        """Withdraw a job, finished or not."""
        import ray

        ray.get(self._actor.leave.remote(ticket))

    def close(self) -> None:
        """End the workers."""
        import ray

        ray.get(self._actor.close.remote())
        ray.kill(self._actor)


@dataclass
class _Job:
    """`given`: how many items were handed out, `results`: those of some of them, `told`: how many were fetched."""

    job: Any
    given: int = 0
    told: int = 0
    results: dict[int, tuple[Any, str | None]] = field(default_factory=dict)


class _Actor:
    """The desk's own process: it hands out and collects, and never works itself."""

    def __init__(
        self,
        make_work: Callable[[], Work],
        items: list[Any],
        workers: int,
        cpus: float,
        together: int,
        attempts: int,
        patience: float,
    ) -> None:
        self._items, self._together, self._attempts, self._patience = items, together, attempts, patience
        self._make_work, self._workers, self._cpus = make_work, workers, cpus
        self._jobs: dict[int, _Job] = {}
        self._tickets = 0
        self._joined = time.monotonic()
        self._news = asyncio.Condition()
        self._busy = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self, job: Any) -> int:
        # begun here, where the event loop runs; kept, for tasks that nothing refers to may vanish
        self._tasks = self._tasks or [asyncio.create_task(self._serve()) for _ in range(self._workers)]
        # its own, for others may join while this one tells
        ticket = self._tickets = self._tickets + 1
        self._jobs[ticket] = _Job(job)
        self._joined = time.monotonic()
        await self._tell()
        return ticket

    async def result(self, ticket: int) -> tuple[Any, str | None]:
        job = self._jobs[ticket]
        async with self._news:
            await self._news.wait_for(lambda: job.told in job.results)
        job.told += 1
        return job.results.pop(job.told - 1)

    async def leave(self, ticket: int) -> None:
        self._jobs.pop(ticket, None)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _serve(self) -> None:
        """One worker's life: take the item for which most jobs wait, again and again."""
        import ray

        worker = ray.remote(_Worker).options(num_cpus=self._cpus, max_restarts=-1).remote(self._make_work)
        while True:
            item, tickets = await self._next()
            self._busy += 1
            results = await self._done(worker, item, [self._jobs[ticket].job for ticket in tickets])
            self._busy -= 1
            for ticket, result in zip(tickets, results, strict=True):
                # withdrawn meanwhile: nobody asks
                if ticket in self._jobs:
                    self._jobs[ticket].results[item] = result
            await self._tell()

    async def _next(self) -> tuple[int, list[int]]:
        while True:
            waiting = {ticket: job.given for ticket, job in self._jobs.items() if job.given < len(self._items)}
            patience = self._joined + self._patience - time.monotonic()
            if waiting and (self._busy or patience <= 0 or len(waiting) >= self._together):
                counts = Counter(waiting.values())
                # most jobs first; of equal groups the one that is further, so that it ends and makes room
                item = max(counts, key=lambda given: (counts[given], given))
                tickets = [ticket for ticket, given in waiting.items() if given == item]
                for ticket in tickets:
                    self._jobs[ticket].given += 1
                return item, tickets
            async with self._news:
                try:
                    await asyncio.wait_for(self._news.wait(), timeout=max(patience, 0.01) if waiting else None)
                except TimeoutError:
                    continue

    async def _done(self, worker: Any, item: int, jobs: list[Any]) -> list[tuple[Any, str | None]]:
        """Each job's result and error. A worker that dies is started anew and gets the item again."""
        from ray.exceptions import RayActorError

        why = ""
        for _ in range(self._attempts):
            try:
                return [(result, None) for result in await worker.work.remote(self._items[item], jobs)]
            except RayActorError as error:
                why = one_line(error)
                logging.getLogger(__name__).warning("a worker ended at item %d and is started again (%s)", item, why)
            except Exception as error:
                why = one_line(getattr(error, "cause", None) or error)
                break
        return [(None, f"part {item + 1} of {len(self._items)}: {why}")] * len(jobs)


class _Worker:
    """A process that works."""

    def __init__(self, make_work: Callable[[], Work]) -> None:
        self._make_work = make_work
        self._work: Work | None = None

    def work(self, item: Any, jobs: list[Any]) -> list[Any]:
        # made here: an error in an actor's constructor reaches others as the actor's death, not as itself
        self._work = self._work or self._make_work()
        return self._work(item, jobs)
