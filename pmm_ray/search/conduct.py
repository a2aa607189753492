"""A sweep from its settings to its record: what all trials share is made first, then trials run side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from pmm_ray import __version__
from pmm_ray.artefacts import Folder, Store, digest, digest_file
from pmm_ray.cluster.desk import Desk
from pmm_ray.cluster.search import Asha, Trial, search
from pmm_ray.cluster.session import nodes, resources, use_gpu, worker_slots
from pmm_ray.cluster.worker import Row
from pmm_ray.config import ClusterConfig, Config, MasksConfig, SweepConfig
from pmm_ray.data.dataset import Dataset
from pmm_ray.errors import UserError
from pmm_ray.files import make_folder
from pmm_ray.method import Method
from pmm_ray.pipeline import Runner, Step
from pmm_ray.places import place
from pmm_ray.progress import progress
from pmm_ray.search.proposals import proposer
from pmm_ray.search.record import Record
from pmm_ray.search.space import Space, Value, Values
from pmm_ray.search.trials import MaskScores, MaskTrial, SegmentationTrial, halts
from pmm_ray.search.watch import Watch
from pmm_ray.settings import changed
from pmm_ray.stages.crf import most_labels
from pmm_ray.stages.score_masks import parts_of, score_part, score_rows
from pmm_ray.tracking import RunHandle

_CONCURRENT_MASKS = 16
"""Mask settings at once: two passes through the CRF engine's lanes on each image."""
_TRIAL_SHARE, _DESK_SHARE = 0.001, 0.9
"""CPUs that a waiting mask trial and a worker of the desk claim: with any number of CPUs both find room."""
_LEFT_FREE = 0.1
"""CPUs of a training trial's share that are not claimed, so that Ray's own tasks find room."""

_READ = {"masks": ("seed", "cam", "masks"), "segmentation": ("seed", "cam", "masks", "seg", "pus", "eval")}
"""The settings that a kind of trial reads, and what is made for it."""
_PLACES = ("cam.npy", "cam.net.weights", "seg.net.weights")
"""Those that say where files lie."""


@dataclass(frozen=True)
class Sweep:
    """All that a sweep is made of.

    Attributes:
        config: The base config, whose own setting is tried first.
        how: The section `sweep`, its metric resolved.
        space: What varies.
        data: The data set.
        store: Takes the artefacts, and the sweep's folder.
    """

    config: Config
    how: SweepConfig
    space: Space
    data: Dataset
    store: Store

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes it this sweep and no other: what its trials read. More settings, or more at once, are no other.

        As in the fingerprint of an artefact, files count by their content, and another version makes another sweep.
        """
        how, sections = self.how.identity(), _READ[self.how.trial]
        for name in ("settings", "concurrent"):
            how.pop(name)
        files = {key: attrgetter(key)(self.config) for key in _PLACES if key.startswith(sections)}
        config = changed(self.config, {key: self._content(key, value) for key, value in files.items()})
        inputs = [
            found.fingerprint
            for split in (self.data.train, self.data.val)
            for found in ([] if split is None else [split.photos, split.truth])
            if found is not None
        ]
        # what the base does not read another setting may
        found = config.identity(unused=True)
        read = {name: found[name] for name in sections}
        if self.how.trial == "segmentation":
            read["checkpoint"] = self.config.cycles.checkpoint
        return {
            "version": __version__,
            "config": read,
            "data": inputs,
            "sweep": how,
            "space": {
                d.key: {d.kind: [self._content(d.key, value) for value in d.values]} for d in self.space.dimensions
            },
        }

    def _content(self, key: str, value: Value) -> Value:
        """The value, or what lies there if it is a place of files: moved they are the same."""
        if not _is_place(key, value):
            return value
        if key == "cam.npy":
            return Folder.of(str(value), cache=self.store.digests).fingerprint
        try:
            return digest_file(place(str(value)))
        except OSError:
            # the stage that reads it says so; none does where CAMs are made elsewhere
            return value

    @property
    def described(self) -> dict[str, Any]:
        """The space as a sweep file writes it."""
        return {d.key: {d.kind: list(d.values)} for d in self.space.dimensions}

    @property
    def folder(self) -> Path:
        """Where its record and results lie."""
        return self.store.root / "sweeps" / f"{self.config.name}-{digest(self.identity)[:12]}"

    @cached_property
    def count(self) -> int:
        """Settings to be tried: as many as asked for, or all of a grid, with the base config's own."""
        if self.how.searcher != "grid":
            return self.how.settings
        grid = list(self.space.grid())
        return len(grid) + (self.space.own not in grid)


def metric_of(how: SweepConfig, data: Dataset) -> str:
    """The metric that 'auto' stands for, or the one that is asked for.

    Raises:
        UserError: there is no ground truth for it.
    """
    train, val = data.train.truth is not None, data.val is not None and data.val.truth is not None
    auto = {"segmentation": "val", "masks": "masks" if train else "contrast"}[how.trial]
    metric = auto if how.metric == "auto" else how.metric
    fits = {"masks": ("masks", "contrast"), "segmentation": ("val",)}[how.trial]
    if metric not in fits:
        raise UserError(f"sweep.metric={metric}: a sweep of {how.trial} is scored by {' or '.join(fits)}")
    if (metric == "masks" and not train) or (metric == "val" and not val):
        where = "training" if metric == "masks" else "validation"
        more = "; sweep.metric=contrast needs none" if metric == "masks" else ""
        raise UserError(f"sweep.metric={metric}: {data.name} has no ground truth of its {where} photos{more}")
    return metric


def plan(sweep: Sweep) -> list[Step]:
    """What the base config's own setting, which is tried first, takes besides being scored; nothing is run.

    Raises:
        UserError: as a run's plan does: CAMs, weights or a network that the sweep would fail of are told before it.
    """
    config = sweep.config
    run = Runner(config, sweep.store, RunHandle(), dry=True)
    it = Method(run, config, sweep.data, config.seed)
    cams = it.cams()
    if sweep.how.trial == "segmentation":
        it.segmentation(it.masks(cams, config.masks), config.pus, title="segmentation")
    return run.steps


def conduct(sweep: Sweep, run: Runner, parent: RunHandle) -> Record:
    """Try settings until there are as many as asked for, those of earlier runs included."""
    make_folder(sweep.folder)
    record = Record(sweep.folder)
    own = sweep.space.own
    run.start_ray()
    trials = (_mask_trials if sweep.how.trial == "masks" else _segmentation_trials)(sweep, run)
    with progress(f"{sweep.config.name}: settings", sweep.count) as bar:
        watch = Watch(
            record,
            proposer(sweep.how.searcher, sweep.space, seed=sweep.how.seed, first=own),
            default=own,
            count=sweep.count,
            steps=trials.steps,
            parent=parent,
            bar=bar,
        )
        asha = None
        if sweep.how.scheduler == "asha":
            asha = Asha(grace=round(sweep.how.grace * trials.steps), reduction=sweep.how.reduction)
        try:
            search(
                trials.make,
                watch,
                steps=trials.steps,
                concurrent=trials.concurrent,
                cpus=trials.cpus,
                gpus=trials.gpus,
                asha=asha,
                scratch=sweep.folder / "ray",
            )
        except BaseException as error:
            watch.interrupt(error)
            raise
        finally:
            trials.close()
    return record


@dataclass(frozen=True)
class _Trials:
    """How trials are made, what each takes, and how to end what they share."""

    make: Callable[[tuple[Values, RunHandle]], Trial]
    steps: int
    concurrent: int
    cpus: float
    gpus: float
    close: Callable[[], None] = lambda: None


def _mask_trials(sweep: Sweep, run: Runner) -> _Trials:
    """Trials that only wait; the work is done at a desk, on each photo for all settings that wait for it."""
    config, how, train = sweep.config, sweep.how, sweep.data.train
    cams = Method(run, config, sweep.data, config.seed).cams()
    scores = MaskScores(
        store=sweep.store,
        config=config,
        photos=train.photos,
        cams=cams,
        truth=train.truth,
        metric=how.metric,
        reports=how.reports,
    )
    rows = score_rows(train.photos, cams, train.truth, seed=how.seed)
    most, cpus = config.cluster.mask_workers, int(resources().cpus)
    # a desk has at least one worker: the program's own process is waiting for results
    workers = cpus if most is None else max(1, min(most, cpus))
    # fine enough for all workers to have some of a report's photos
    parts = parts_of(rows, max(how.reports, 4 * workers))
    concurrent = min(how.concurrent or _CONCURRENT_MASKS, sweep.count)
    work = partial(_mask_work, config=config, classes=len(train.photos.classes), labels=most_labels(train.photos))
    attempts = config.cluster.attempts
    desk = Desk.open(work, parts, workers=workers, cpus=_DESK_SHARE, together=concurrent, attempts=attempts)
    make = partial(_mask_trial, scores=scores, desk=desk)
    return _Trials(make, len(halts(len(parts), how.reports)), concurrent, _TRIAL_SHARE, 0, desk.close)


def _mask_trial(setting: tuple[Values, RunHandle], *, scores: MaskScores, desk: Desk) -> Trial:
    return MaskTrial(setting[0], scores=scores, desk=desk)


def _mask_work(*, config: Config, classes: int, labels: int) -> Callable[[list[Row], list[MasksConfig]], list[Any]]:
    """What a worker of the desk does with a part of the photos: (results, seconds) of each setting."""
    from pmm_ray.masks.crf import compile_engine
    from pmm_ray.masks.laplacian import pymatting
    from pmm_ray.masks.makers import TOGETHER

    if config.masks.used_crf.backend == "numba":
        compile_engine(labels=labels, problems=TOGETHER)
    if config.masks.maker == "matting":
        pymatting()

    def work(rows: list[Row], settings: list[MasksConfig]) -> list[tuple[list[Row], float]]:
        start = time.monotonic()
        found = score_part(rows, settings, num_classes=classes)
        return [(results, (time.monotonic() - start) / len(settings)) for results in found]

    return work


def _segmentation_trials(sweep: Sweep, run: Runner) -> _Trials:
    """Trainings, side by side as far as there is room; each is a run of its own but for what all share."""
    config, how = sweep.config, sweep.how
    room = _room(config.cluster, how)
    varied = {key.split(".")[0] for key in sweep.space.keys}
    shared = Method(run, config, sweep.data, config.seed)
    if "cam" not in varied:
        cams = shared.cams()
        if "masks" not in varied:
            shared.masks(cams, config.masks)
    base = _located(config).model_copy(update={"cluster": room.cluster})
    make = partial(_segmentation_trial, sweep=replace(sweep, config=base), threads=room.threads)
    steps = len(halts(config.seg.train.epochs, how.reports))
    return _Trials(make, steps, min(room.concurrent, sweep.count), room.cpus, room.gpus)


def _located(config: Config) -> Config:
    """The same with absolute places of weights and CAMs: trials run in folders of their own."""
    places = {key: attrgetter(key)(config) for key in _PLACES}
    named = {key: where for key, where in places.items() if _is_place(key, where)}
    return changed(config, {key: str(place(where).resolve()) for key, where in named.items()})


def _is_place(key: str, value: Value) -> bool:
    """Whether the value says where files lie; 'pretrained' and 'none' say of weights that none are needed."""
    return key in _PLACES and value is not None and (key == "cam.npy" or value not in ("pretrained", "none"))


@dataclass(frozen=True)
class _Room:
    cluster: ClusterConfig
    concurrent: int
    cpus: float
    gpus: float
    threads: int | None


def _room(cluster: ClusterConfig, how: SweepConfig) -> _Room:
    """Trials that train in their own process, as many as fit; or one at a time, with the cluster's training workers."""
    gpu = use_gpu(cluster.gpu)
    if cluster.train_workers > 1:
        if (how.concurrent or 1) > 1:
            raise UserError("sweep.concurrent: with cluster.train_workers above 1 settings are trained one at a time")
        return _Room(cluster, 1, _LEFT_FREE, 0, None)
    fitting = worker_slots(cpus=how.cpus, gpus=int(gpu))
    if not fitting:
        most = max((node.cpus for node in nodes() if node.gpus >= int(gpu)), default=0)
        kind = " with a GPU" if gpu else ""
        raise UserError(f"sweep.cpus={how.cpus:g}: the largest node{kind} has {most:g} CPUs; lower it")
    here = {"train_workers": 0, "mask_workers": 0, "infer_workers": 0, "gpu": "yes" if gpu else "no"}
    concurrent = min(how.concurrent or fitting, fitting)
    claimed = max(how.cpus - _LEFT_FREE, how.cpus / 2)
    return _Room(cluster.model_copy(update=here), concurrent, claimed, int(gpu), max(1, int(how.cpus)))


def _segmentation_trial(setting: tuple[Values, RunHandle], *, sweep: Sweep, threads: int | None) -> Trial:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    values, handle = setting
    return SegmentationTrial(
        values,
        config=sweep.config,
        sweep=sweep.how,
        data=sweep.data,
        store=sweep.store,
        handle=handle,
    )
