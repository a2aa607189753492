"""The driver's side of a sweep: what is tried next, what came of it, and where that is told."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from pmm_ray.artefacts import digest
from pmm_ray.cluster.search import Ending, Report
from pmm_ray.errors import UserError
from pmm_ray.progress import Progress
from pmm_ray.search.proposals import Proposer
from pmm_ray.search.record import Record, Tried
from pmm_ray.search.space import Values
from pmm_ray.tracking import RunHandle

_REPEATS = 200
"""Proposals of what is known already, besides a list's own from its start, after which a space is exhausted."""


@dataclass
class _Open:
    """A setting being tried, with its nested run in MLflow."""

    number: int
    values: Values
    handle: RunHandle
    run: ExitStack
    begun: float = field(default_factory=time.monotonic)
    reports: list[Report] = field(default_factory=list)


class Watch:
    """Implements `cluster.search.Watcher`.

    Args:
        record: What earlier runs of the same sweep tried; it is added to.
        proposer: Who proposes; it is told of the record first.
        default: The base config's own values.
        count: Settings that are to be tried in all, those of the record included.
        steps: Of one trial.
        parent: The sweep's run in MLflow.
        bar: Told of every setting that ends.
    """

    def __init__(
        self,
        record: Record,
        proposer: Proposer,
        *,
        default: Values,
        count: int,
        steps: int,
        parent: RunHandle,
        bar: Progress,
    ):
        self._record, self._proposer, self._default = record, proposer, default
        self._count, self._steps, self._parent, self._bar = count, steps, parent, bar
        self._open: dict[str, _Open] = {}
        self._again = [tried.values for tried in record.all if tried.ending == "failed"]
        self._begun = sum(tried.ending != "failed" for tried in record.all)
        for tried in record.all:
            if tried.score is not None:
                proposer.tell(tried.values, tried.score)
        bar.advance(min(self._begun, count))

    def next(self) -> tuple[str, tuple[Values, RunHandle]] | None:
        """The next setting that was not tried yet; one that failed in an earlier run is tried again first."""
        if self._begun >= self._count:
            return None
        values = self._again.pop(0) if self._again else self._untried()
        if values is None:
            return None
        self._begun += 1
        key, run = digest(values), ExitStack()
        number = self._number(values)
        name = f"setting {number:03d}"
        handle = run.enter_context(
            self._parent.child(name, tags={"stage": "setting", "row": name}, params=values, key=key)
        )
        self._open[key] = _Open(number, values, handle, run)
        return key, (values, handle)

    def heard(self, name: str, report: Report) -> None:
        """Kept until the setting ends: many small records would hold up the trials."""
        self._open[name].reports.append(report)

    def ended(self, name: str, ending: Ending, error: str | None) -> None:
        """Close the run in MLflow, write the record, tell the proposer."""
        trial = self._open.pop(name)
        last = trial.reports[-1] if trial.reports and ending != "failed" else Report(0, 0.0, {})
        tried = Tried(
            number=trial.number,
            values=trial.values,
            default=trial.values == self._default,
            ending=ending,
            score=None if ending == "failed" else last.score,
            share=last.steps / self._steps,
            figures=last.figures,
            error=error,
            artefact=last.artefact,
            seconds=round(time.monotonic() - trial.begun, 1),
        )
        # the record comes last: what it holds is not tried, and so not told, again
        self._tell(trial, tried)
        self._record.add(tried)
        # the score of one that was stopped early is a rougher one of the same kind
        self._proposer.tell(trial.values, tried.score)
        best = self._record.best()
        self._bar.advance(1, note=f"best {100 * best.score:.2f}" if best and best.score is not None else "")

    def interrupt(self, error: BaseException) -> None:
        """Close what is still open, as interrupted."""
        for trial in self._open.values():
            _close(trial.run, error)
        self._open.clear()

    def _untried(self) -> Values | None:
        under_way = {digest(trial.values) for trial in self._open.values()}
        # a list begins with all that earlier runs tried
        for _ in range(_REPEATS + len(self._record.all)):
            values = self._proposer.ask()
            if values is None:
                return None
            known = self._record.find(values)
            if known is None and digest(values) not in under_way:
                return values
            # it asked for something that is known already: it should learn the answer
            self._proposer.tell(values, known.score if known else None)
        return None

    def _number(self, values: Values) -> int:
        known = self._record.find(values)
        if known is not None:
            return known.number
        used = {tried.number for tried in self._record.all} | {trial.number for trial in self._open.values()}
        return next(number for number in itertools.count(1) if number not in used)

    def _tell(self, trial: _Open, tried: Tried) -> None:
        for report in trial.reports:
            trial.handle.metrics({"score": report.score, **report.figures}, step=report.steps)
        trial.handle.tag("ending", tried.ending)
        trial.handle.tag("share", f"{tried.share:.3f}")
        if tried.default:
            trial.handle.tag("default", "true")
        _close(trial.run, None if tried.ending != "failed" else UserError(tried.error or "failed"))


def _close(run: ExitStack, error: BaseException | None) -> None:
    """Leave a run's context, by an exception if there was one."""
    if error is None:
        run.close()
        return
    try:
        run.__exit__(type(error), error, error.__traceback__)
    except BaseException as same:
        if same is not error:
            raise
