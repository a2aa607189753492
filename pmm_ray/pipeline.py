"""Running stages: find what is done, do what is not, write the manifest, tell MLflow and the screen."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pmm_ray.artefacts import Artefact, Fingerprinted, Store, digest_file
from pmm_ray.config import Config, NetConfig, PredictConfig, Section
from pmm_ray.errors import SettingError, within
from pmm_ray.files import writing
from pmm_ray.places import Remote, place
from pmm_ray.stages.stage import Context, snapshot
from pmm_ray.tracking import DESCRIPTION, RunHandle


@dataclass(frozen=True)
class Step:
    """One line of the plan: a stage, its artefact, and whether it had been done before."""

    title: str
    artefact: Artefact
    was_done: bool


@dataclass(frozen=True)
class Failure:
    """One image that a stage could not use."""

    stage: str
    image: str
    why: str


@dataclass(frozen=True)
class Network:
    """A segmentation network that the run has trained, and how it was made to predict."""

    title: str
    model: Artefact
    predict: PredictConfig


@dataclass(frozen=True)
class _Work:
    """What a stage is asked for. Of its arguments those with a fingerprint are inputs, the others settings."""

    artefact: Artefact
    title: str
    seed: int | None
    arguments: Mapping[str, Any]
    settings: Mapping[str, Any]
    inputs: Mapping[str, Fingerprinted | None]


@dataclass
class Runner:
    """Calls stages by name: ``run("make_masks", title="pseudo-masks", photos=..., cams=..., masks=...)``.

    Arguments that have a fingerprint are the stage's inputs, all others its settings; together they name its artefact.
    Ray starts with the first stage that has work to do. With `dry` nothing runs: the plan is written down, and each
    network that it would train is built once without memory, so that what is wrong with it is not told hours later.
    """

    config: Config
    store: Store
    tracker: RunHandle
    dry: bool = False
    steps: list[Step] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    _ray: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _tags: dict[str, str] = field(default_factory=dict)

    def __call__(self, stage: str, *, title: str, seed: int | None = None, **arguments: Any) -> Artefact:
        """The artefact of `stage`, made now if it is not there yet. `seed` only where chance plays a part."""
        work = self._work(stage, title, seed, arguments)
        self.steps.append(Step(title, work.artefact, work.artefact.done))
        if self.dry:
            if "net" in arguments and not work.artefact.done:
                with within(_section(stage)):
                    _module(stage).check(**arguments)
            return work.artefact
        with self._recorded(work) as handle:
            if work.artefact.done:
                say(f"{title}: done before")
            else:
                with only_one(work.artefact.path, title):
                    if not work.artefact.done:
                        self._make(work, handle)
            facts = work.artefact.facts
            handle.metrics(facts)
        self.failures += [Failure(title, name, why) for name, why in facts.get("failed", [])]
        return work.artefact

    def until(self, epoch: int, stage: str, *, title: str, seed: int, **arguments: Any) -> Artefact | None:
        """The network of a training `stage` as it is after an epoch, which is trained up to there if need be.

        The training's own artefact is not finished by that; called later, it goes on from there. None where it has gone
        past the epoch already, and left no network of it.
        """
        from pmm_ray.checkpoints import epochs_in

        work = self._work(stage, title, seed, arguments)
        place = work.artefact.path
        found = Artefact(stage, f"{work.artefact.fingerprint}/{epoch}", snapshot(place, epoch).parent)
        if not snapshot(place, epoch).is_file():
            with only_one(place, title):
                if snapshot(place, epoch).is_file():  # another run made it meanwhile, and may have gone on
                    return found
                if work.artefact.done or epochs_in(place) > epoch:
                    return None
                with self._recorded(work) as handle:
                    self._run_stage(work, handle, until=epoch)
        return found

    @contextlib.contextmanager
    def group(self, kind: str, number: int, **tags: object) -> Iterator[RunHandle]:
        """A nested run of its own in MLflow for the stages called inside: one 'cycle', or one 'seed'."""
        name = f"{kind} {number}"
        outer, outer_tags = self.tracker, self._tags
        self._tags = outer_tags | {key: str(value) for key, value in {kind: number, **tags}.items()}
        try:
            with outer.child(name, tags=self._tags | {"stage": kind}, params={}, key=name) as self.tracker:
                yield self.tracker
        finally:
            self.tracker, self._tags = outer, outer_tags

    def close(self) -> None:
        """Leave Ray, ending it if this run began it."""
        self._ray.close()
        self._ray = contextlib.ExitStack()

    def _work(self, stage: str, title: str, seed: int | None, arguments: dict[str, Any]) -> _Work:
        inputs = {name: value for name, value in arguments.items() if value is None or hasattr(value, "fingerprint")}
        with within(_section(stage)):
            settings = {name: _identity(value) for name, value in arguments.items() if name not in inputs}
        artefact = self.store.artefact(stage, settings=settings, inputs=inputs, seed=seed)
        return _Work(artefact, title, seed, arguments, settings, inputs)

    @contextlib.contextmanager
    def _recorded(self, work: _Work) -> Iterator[RunHandle]:
        """The stage's nested run in MLflow. What its module has to say of its figures describes it."""
        artefact = work.artefact
        tags = {"stage": artefact.stage, "artefact": str(artefact.path), "fingerprint": artefact.fingerprint}
        tags |= self._tags | ({} if work.seed is None else {"seed": str(work.seed)})
        if about := getattr(_module(artefact.stage), "ABOUT_FIGURES", ""):
            tags[DESCRIPTION] = about
        with self.tracker.child(work.title, tags=tags, params=work.settings, key=artefact.fingerprint) as handle:
            yield handle

    def _make(self, work: _Work, handle: RunHandle) -> None:
        start = time.monotonic()
        facts = self._run_stage(work, handle)
        seconds = time.monotonic() - start
        self.store.finish(
            work.artefact, settings=work.settings, inputs=work.inputs, seed=work.seed, facts=facts, seconds=seconds
        )
        say(f"{work.title}: done in {seconds:.1f} s -> {work.artefact.path}")

    def _run_stage(self, work: _Work, handle: RunHandle, *, until: int | None = None) -> dict[str, Any]:
        self.start_ray()
        say(f"{work.title} ...")
        context = Context(work.artefact.path, work.seed or 0, self.config.cluster, handle.log, work.title, until)
        stage = work.artefact.stage
        with within(_section(stage)):
            return getattr(_module(stage), stage)(**work.arguments, context=context)

    def start_ray(self) -> None:
        """Be connected to Ray from now on, until `close`."""
        from pmm_ray.cluster.session import session, started

        if not started():
            self._ray.enter_context(session(self.config.cluster))


def _module(stage: str) -> Any:
    return importlib.import_module(f"pmm_ray.stages.{stage}")


def _section(stage: str) -> str:
    """Where the settings of a training stage stand: train_seg is named after it."""
    return stage.removeprefix("train_")


def say(text: str) -> None:
    """One plain line to the user."""
    print(text, flush=True)


@contextlib.contextmanager
def only_one(folder: Path, title: str) -> Iterator[None]:
    """Two runs must not make the same folder at once, such as an artefact: the second waits, then finds it done.

    Object storage has no locks. There both make it, which costs time and nothing else: every file is put whole, and
    what both put is the same.
    """
    if isinstance(folder, Remote):
        yield
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = Path(folder / ".lock").open("w")  # noqa: SIM115
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{title}: another run is making {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _identity(value: Any) -> Any:
    if isinstance(value, NetConfig):
        # A weights file counts by its content: moved, it is the same network; changed, it is another.
        found = value.identity()
        if value.weights_file:
            try:
                found["weights"] = digest_file(place(value.weights_file))
            except OSError as error:
                why = f"{error.strerror or error}; give a file, 'pretrained', or 'none' with net.batch_norm=train"
                raise SettingError(f"net.weights={value.weights}: {why}") from None
        return found
    return value.identity() if isinstance(value, Section) else value
