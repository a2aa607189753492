"""Trying settings as trials of Ray Tune, many at once, some stopped early."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pmm_ray.cluster.fit import environment, storage
from pmm_ray.cluster.worker import one_line
from pmm_ray.files import remove_tree

Ending = Literal["done", "stopped", "failed"]


@dataclass(frozen=True)
class Report:
    """What a trial says after a step: how many are done, its score so far (more is better), and other figures.

    `artefact` is the folder of its result, if it leaves one.
    """

    steps: int
    score: float
    figures: dict[str, float]
    artefact: str = ""


class Trial(Protocol):
    """One setting being tried, in a process of its own."""

    def step(self) -> Report:
        """Work on, and report. The trial is over when all steps are done, or may be closed before."""
        ...

    def close(self) -> None:
        """Leave off, finished or not."""
        ...


class Watcher(Protocol):
    """The driver's side: it says what is tried and hears what comes of it."""

    def next(self) -> tuple[str, Any] | None:
        """Name and setting of the next trial; None: there are no more."""
        ...

    def heard(self, name: str, report: Report) -> None:
        """A trial has made a step."""
        ...

    def ended(self, name: str, ending: Ending, error: str | None) -> None:
        """A trial is over: `done` with all steps, `stopped` early, or `failed` with a one-line error."""
        ...


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving: at 1, r, r^2 ... times `grace` steps only the best 1 / r of those go on."""

    grace: int
    reduction: int


def search(
    make_trial: Callable[[Any], Trial],
    watcher: Watcher,
    *,
    steps: int,
    concurrent: int,
    cpus: float,
    gpus: float,
    asha: Asha | None,
    scratch: Path,
) -> None:
    """Try all that the watcher asks for. A trial that fails is told and does not end the others. Needs a Ray session.

    Args:
        make_trial: makes the trial of a setting, in a process that is used again for later ones; must pickle.
        watcher: called in this process.
        steps: of each trial.
        concurrent: trials at the same time, at most.
        cpus: that each takes.
        gpus: Likewise.
        asha: None: no trial is stopped early.
        scratch: for Ray's files, for the time of the call; with several machines a place that they all reach.
    """
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler

    scheduler = None
    if asha is not None:
        scheduler = AsyncHyperBandScheduler(
            time_attr="steps",
            metric="score",
            mode="max",
            max_t=steps,
            grace_period=max(1, min(asha.grace, steps)),
            reduction_factor=asha.reduction,
        )
    quiet = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        # the watcher keeps its own record; Tune's snapshots would only take time
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        # an interrupt is the program's to handle
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_WARN_THRESHOLD_S": "60",
        # Tune's newer way of printing cannot be silenced
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    trainable = tune.with_resources(
        tune.with_parameters(_trainable(), make_trial=make_trial, steps=steps), {"cpu": cpus, "gpu": gpus}
    )
    try:
        with environment(quiet):
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=_searcher(_Here(watcher)),
                    scheduler=scheduler,
                    num_samples=-1,
                    max_concurrent_trials=concurrent,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name=uuid.uuid4().hex,
                    **storage(scratch),
                    verbose=0,
                    # a trial's work is kept by the trial itself
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                    callbacks=[_callback(_Here(watcher), steps)],
                ),
            ).fit()
    finally:
        remove_tree(scratch)


@dataclass(frozen=True)
class _Here:
    """The watcher, which stays in this process: Tune pickles all that it is given, though nothing of it is restored."""

    watcher: Any

    def __reduce__(self) -> tuple[Any, tuple[None]]:
        return _Here, (None,)


def _trainable() -> Any:
    from ray import tune

    class OneSetting(tune.Trainable):
        """Tune's view of a `Trial`."""

        _trial: Trial | None = None

        def setup(self, config: dict[str, Any], make_trial: Any = None, steps: int = 1) -> None:
            self._make_trial, self._steps = make_trial, steps
            self._setting = config["setting"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.cleanup()
            self._setting = new_config["setting"]
            return True

        def step(self) -> dict[str, Any]:
            try:
                # made here: an error in setup would reach the driver as an actor's death
                trial = self._trial = self._trial or self._make_trial(self._setting)
                report = trial.step()
            except Exception as error:
                # After such an error a GPU answers this process nothing more, in which Tune would try the next setting.
                if type(error).__name__ == "AcceleratorError":
                    raise
                return {"steps": self._steps, "score": 0.0, "error": one_line(error), "done": True}
            done = report.steps >= self._steps
            return {**asdict(report), "done": done}

        def cleanup(self) -> None:
            trial, self._trial = self._trial, None
            if trial is not None:
                trial.close()

    return OneSetting


def _searcher(here: _Here) -> Any:
    from ray.tune.search import Searcher

    class Suggestions(Searcher):
        """Tune's view of `Watcher.next`."""

        def suggest(self, trial_id: str) -> Any:
            found = here.watcher.next()
            if found is None:
                return Searcher.FINISHED
            name, setting = found
            return {"name": name, "setting": setting}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """The callback hears of it."""

        def save(self, checkpoint_path: str) -> None:
            """The watcher keeps the record."""

        def restore(self, checkpoint_path: str) -> None:
            """Never asked for: a search goes on from the watcher's record."""

    return Suggestions(metric="score", mode="max")


def _callback(here: _Here, steps: int) -> Any:
    from ray import tune

    class Told(tune.Callback):
        """Tune's view of the rest of `Watcher`."""

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            if "error" not in result:
                report = Report(result["steps"], result["score"], result["figures"], result["artefact"])
                here.watcher.heard(trial.config["name"], report)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            last = trial.last_result
            ending: Ending = "done" if last["steps"] >= steps else "stopped"
            here.watcher.ended(trial.config["name"], "failed" if "error" in last else ending, last.get("error"))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            lines = [line.strip() for line in (trial.get_error() or "").splitlines() if line.strip()]
            here.watcher.ended(trial.config["name"], "failed", (lines or ["its process ended"])[-1][:300])

    return Told()
