"""Records of runs in MLflow. The only importer of mlflow.

One parent run per recipe, nested runs for cycles and stages. The driver makes the database, the experiment and every
run; workers get a `RunLog`, which is two strings, and write to the run it names. A run carries the hash of what it
does, so that work done again, or continued after a kill, goes on in the run it already has. Once tracking is open, its
failures are warned of once and never end the work they describe.
"""

from __future__ import annotations

import csv
import fcntl
import getpass
import io
import json
import logging
import os
import posixpath
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from pmm_ray.artefacts import commit
from pmm_ray.errors import UserError, first_line
from pmm_ray.files import local_file, readable
from pmm_ray.flat import cell, flatten, numbers, shortened, text, texts
from pmm_ray.places import Remote

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_PARENT = "mlflow.parentRunId"
_KEY = "pmm_ray.key"
_ROOT = "pmm_ray.root"
DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""
_PARAM_LENGTH = 6000
_TAG_LENGTH = 5000
_BATCH = 100
# MLflow reads these when it is imported. A user's own values stand. Few retries: a lost server must not stall training.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class RunLog:
    """Where one run's figures and pictures go; pickles, so that workers write to the run the driver made.

    Implements `pmm_ray.stages.stage.Log`. With empty `run_id` it records nothing. It never creates a database.
    """

    uri: str = ""
    run_id: str = ""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures at `step` (0 if None). None, NaN and infinities are left out: no chart can show them."""
        if not self.run_id:
            return
        now = int(time.time() * 1000)
        finite = {_metric_name(name): value for name, value in numbers(values).items()}

        def write(client: Any) -> None:
            from mlflow.entities import Metric

            metrics = [Metric(name, value, now, step or 0) for name, value in finite.items()]
            for batch in _batches(metrics):
                client.log_batch(self.run_id, metrics=batch)

        _connection(self.uri).attempt("figures", write)

    def picture(self, path: Path, name: str) -> None:
        """Record the image file `path` as the artefact `name` ('overlays/x.png')."""
        if self.run_id:
            _connection(self.uri).attempt(f"picture {name}", lambda client: _put(client, self.run_id, path, name))


@dataclass(frozen=True)
class RunHandle:
    """An open run, as the driver holds it."""

    log: RunLog = RunLog()
    experiment_id: str = ""
    root_id: str = ""
    inherited: Mapping[str, str] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; empty if nothing is recorded."""
        return self.log.run_id

    @contextmanager
    def child(
        self, name: str, *, tags: Mapping[str, Any] = {}, params: Mapping[str, Any] = {}, key: str | None = None
    ) -> Iterator[RunHandle]:
        """A run nested in this one, to any depth, open while the block runs.

        It inherits this run's tags. With a `key` (a hash of what it does: an artefact's fingerprint) the run that this
        parent already has of that key is opened again. It ends FINISHED, FAILED (an exception; kept in the tag
        'error') or KILLED (an interrupt).
        """
        if not self.run_id:
            yield self
            return
        all_tags = {**self.inherited, **texts(tags)}
        own = {_PARENT: self.run_id, _ROOT: self.root_id}
        handle = _open(self.log.uri, self.experiment_id, name, all_tags, own, params, key, root=self.root_id)
        with _ending(handle):
            yield handle

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures; see `RunLog.metrics`."""
        self.log.metrics(values, step)

    def picture(self, path: Path, name: str) -> None:
        """Record an image file; see `RunLog.picture`."""
        self.log.picture(path, name)

    def panel(self, path: Path, name: str) -> None:
        """Record an image file for MLflow's charts, which show panels of one name side by side for several runs.

        Once for each name: a run that is opened again keeps the panels that it has.
        """
        key = re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)
        stored = f"images/{key.replace('/', '~')}+step+0+"

        def write(client: Any) -> None:
            from PIL import Image

            if not any(item.path.startswith(stored) for item in client.list_artifacts(self.run_id, "images")):
                with Image.open(readable(path)) as image:
                    client.log_image(self.run_id, image, key=key, step=0, synchronous=True)

        self._attempt(f"picture {name}", write)

    def tag(self, name: str, value: Any) -> None:
        """Set one tag."""
        kept = shortened(text(value), _TAG_LENGTH)
        self._attempt(f"tag {name}", lambda client: client.set_tag(self.run_id, name, kept))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or a folder into the run, below `folder` there."""

        def write(client: Any) -> None:
            if isinstance(path, Remote):
                with local_file(path) as file:
                    client.log_artifact(self.run_id, str(file), folder)
            else:
                (client.log_artifacts if path.is_dir() else client.log_artifact)(self.run_id, str(path), folder)

        self._attempt(f"file {path}", write)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record rows as tables/<name>.json, which MLflow shows as a table, and .csv. A second call replaces them."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[cell(row.get(column)) for column in columns] for row in rows]
        sheet = io.StringIO()
        csv.writer(sheet, lineterminator="\n").writerows([columns, *cells])
        path = f"tables/{name}.json"

        def write(client: Any) -> None:
            client.log_text(self.run_id, json.dumps({"columns": columns, "data": cells}), path)
            client.log_text(self.run_id, sheet.getvalue(), f"tables/{name}.csv")
            tags = client.get_run(self.run_id).data.tags
            logged = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
            if (entry := {"path": path, "type": "table"}) not in logged:
                client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps([*logged, entry]))

        self._attempt(f"table {name}", write)

    def _attempt(self, what: str, act: Callable[[Any], object]) -> None:
        if self.run_id:
            _connection(self.log.uri).attempt(what, act)


@dataclass(frozen=True)
class Tracker:
    """An experiment that is ready to take runs; or, with an empty `uri`, one that takes them and records nothing."""

    uri: str = ""
    experiment_id: str = ""

    @contextmanager
    def run(
        self, name: str, *, tags: Mapping[str, Any] = {}, params: Mapping[str, Any] = {}, resume_key: str | None = None
    ) -> Iterator[RunHandle]:
        """The parent run of a recipe, open while the block runs.

        `params` is the resolved config, nested or flat. With a `resume_key` (a hash of that config) the run that the
        experiment already has of that key is opened again, also one that a kill left open. When it ends, nested
        runs that an earlier attempt left open end too. Its description links to MLflow's charts of those nested runs
        that have a tag 'row'.
        """
        if not self.uri:
            yield RunHandle()
            return
        all_tags = {"stage": "recipe", "commit": commit(), **texts(tags)}
        handle = _open(self.uri, self.experiment_id, name, all_tags, {}, params, resume_key, root="")
        handle._attempt("a link", lambda client: _link_rows(client, handle))
        with _ending(handle):
            yield handle


def open_tracker(*, enabled: bool, uri: str | None, experiment: str, store: Path) -> Tracker:
    """Make database and experiment ready, before any worker runs: two processes that migrate one database corrupt it.

    Args:
        enabled: False gives a tracker that records nothing and never imports MLflow.
        uri: of a database or a server; None: <store>/mlflow.db with artefacts in <store>/mlflow-artifacts. A relative
            sqlite path is made absolute, for workers run in other folders.
        experiment: its name; created if new.
        store: folder for what has no place of its own.

    Raises:
        UserError: the URI is a folder, its server does not answer, its database cannot be written, or the experiment
            was deleted.
    """
    if not enabled:
        return Tracker()
    if uri is None and isinstance(store, Remote):
        raise UserError(
            f"tracking.uri: MLflow's database cannot be in object storage ({store}); give the address of a server, or "
            "a local database (sqlite:////path/to/mlflow.db), or set tracking.enabled=false"
        )
    store = store.resolve()
    address, database = _absolute(uri or f"sqlite:///{store / 'mlflow.db'}", store)
    # A server stores artefacts itself; a database does not say where, so they lie beside it.
    artefacts = None if _is_server(address) else (database.parent if database else store) / "mlflow-artifacts"
    try:
        with _one_at_a_time(database):
            client = _connect(address)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                location = artefacts.as_uri() if artefacts else None
                return Tracker(address, client.create_experiment(experiment, artifact_location=location))
    except Exception as error:
        raise UserError(
            f"tracking.uri: MLflow cannot use {_shown(address)} ({first_line(error)}); start the server or correct "
            "the address, leave it out for a local database, or set tracking.enabled=false"
        ) from error
    if found.lifecycle_stage != "active":
        raise UserError(f"tracking.experiment: '{experiment}' was deleted in MLflow; restore it or choose another name")
    return Tracker(address, found.experiment_id)


def _absolute(uri: str, store: Path) -> tuple[str, Path | None]:
    """The URI with an absolute path, and the path of its sqlite database if it is one."""
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        new = f"sqlite:///{store / 'mlflow.db'}"
        raise UserError(f"tracking.uri: MLflow 3 does not record in a folder ({uri}); use {new} or a server's address")
    if not scheme.startswith("sqlite"):
        return uri, None
    head, _, rest = uri.partition(":///")
    place, mark, query = rest.partition("?")
    if not place or place == ":memory:":
        raise UserError(f"tracking.uri: {uri} names no file that workers could open; use sqlite:////path/to/mlflow.db")
    path = Path(place).resolve()
    return f"{head}:///{path}{mark}{query}", path


@contextmanager
def _one_at_a_time(database: Path | None) -> Iterator[None]:
    """Hold a lock beside a local database, so that programs started together do not both create it.

    Its folder is made if need be.
    """
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with (database.parent / f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _connect(uri: str) -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        return MlflowClient(uri, registry_uri=uri)


class _Connection:
    """A client whose failures are warned of once; after a slow one it rests ten times as long before it tries again."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Any = None
        self._warned = False
        self._rests_until = 0.0

    def attempt(self, what: str, act: Callable[[Any], _T]) -> _T | None:
        begun = time.monotonic()
        if begun < self._rests_until:
            return None
        try:
            if self._client is None:
                database = _absolute(self._uri, Path())[1]
                if database is not None and not database.exists():
                    raise FileNotFoundError(f"no database at {database}")
                self._client = _connect(self._uri)
                begun = time.monotonic()  # the import is slow, not the store
            return act(self._client)
        except Exception as error:
            now = time.monotonic()
            self._rests_until = now + 10 * (now - begun)
            if not self._warned:
                self._warned = True
                _logger.warning("MLflow did not take %s; the work goes on (%s)", what, first_line(error))
            return None


@cache
def _connection(uri: str) -> _Connection:
    return _Connection(uri)


def _open(
    uri: str,
    experiment_id: str,
    name: str,
    tags: Mapping[str, str],
    own: Mapping[str, str],
    params: Mapping[str, Any],
    key: str | None,
    *,
    root: str,
) -> RunHandle:
    """Reopen the run with this key (below the same parent), or make it. A handle that records nothing if that fails."""
    wanted = {n: shortened(v, _TAG_LENGTH) for n, v in tags.items()}

    def write(client: Any) -> str:
        from mlflow.entities import Param, RunTag

        run = _find(client, experiment_id, key, own.get(_PARENT)) if key else None
        if run is None:
            first = {_KEY: key} if key else {}
            run = client.create_run(experiment_id, run_name=name, tags={**_origin(tags), **wanted, **first, **own})
        run_id = run.info.run_id
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        if "error" in run.data.tags:
            client.delete_tag(run_id, "error")
        known = run.data.params  # a param cannot be changed, and the same work has the same
        given = {_metric_name(n)[:250]: v for n, v in texts(flatten(params)).items()}
        new = [Param(n, shortened(v, _PARAM_LENGTH)) for n, v in given.items() if n not in known]
        changed = [RunTag(n, v) for n, v in wanted.items() if run.data.tags.get(n) != v]
        for some_params in _batches(new):
            client.log_batch(run_id, params=some_params)
        for some_tags in _batches(changed):
            client.log_batch(run_id, tags=some_tags)
        return run_id

    run_id = _connection(uri).attempt(f"the run '{name}'", write)
    return RunHandle() if run_id is None else RunHandle(RunLog(uri, run_id), experiment_id, root or run_id, dict(tags))


def _link_rows(client: Any, handle: RunHandle) -> None:
    """Describe a run by a link to MLflow's charts of its results, unless somebody has described it already."""
    if DESCRIPTION not in client.get_run(handle.run_id).data.tags:
        rows = quote(f"tags.row LIKE '%' and tags.`{_ROOT}` = '{handle.run_id}'")
        # by name: only sorted by date does MLflow fold runs into their parents
        order = f"orderByKey={quote('tags.`mlflow.runName`')}&orderByAsc=true"
        page = f"#/experiments/{handle.experiment_id}/runs?searchFilter={rows}&{order}&compareRunsMode=CHART"
        client.set_tag(handle.run_id, DESCRIPTION, f"[The results side by side]({page})")


def _find(client: Any, experiment_id: str, key: str, parent: str | None) -> Any:
    found = client.search_runs([experiment_id], f"tags.`{_KEY}` = '{key}'", order_by=["attributes.start_time DESC"])
    return next((run for run in found if run.data.tags.get(_PARENT) == parent), None)


@contextmanager
def _ending(handle: RunHandle) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        if not interrupted:
            handle.tag("error", f"{type(error).__name__}: {error}")
        _end(handle, "KILLED" if interrupted else "FAILED")
        raise
    _end(handle, "FINISHED")


def _end(handle: RunHandle, status: str) -> None:
    def write(client: Any) -> None:
        client.set_terminated(handle.run_id, status)
        if handle.run_id == handle.root_id:
            open_below = f"tags.`{_ROOT}` = '{handle.run_id}' and attributes.status = 'RUNNING'"
            for run in client.search_runs([handle.experiment_id], open_below):
                client.set_terminated(run.info.run_id, "FINISHED" if status == "FINISHED" else "KILLED")

    handle._attempt("the end of a run", write)


def _origin(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags from which MLflow's pages fill the columns of user, source and version."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user, as in a container started with a bare number
        user = "unknown"
    version = tags.get("commit", "").rstrip("+")
    origin = {"mlflow.user": user, "mlflow.source.name": "pmm_ray", "mlflow.source.type": "LOCAL"}
    return origin | ({"mlflow.source.git.commit": version} if re.fullmatch("[0-9a-f]{40}", version) else {})


def _put(client: Any, run_id: str, path: Path, name: str) -> None:
    folder, base = posixpath.split(name)
    if base == path.name:
        with local_file(path) as file:
            client.log_artifact(run_id, str(file), folder or None)
        return
    with tempfile.TemporaryDirectory() as place, local_file(path) as file:
        renamed = Path(place) / base
        shutil.copyfile(file, renamed)
        client.log_artifact(run_id, str(renamed), folder or None)


def _batches(items: list[_T]) -> Iterator[list[_T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def _metric_name(name: str) -> str:
    """A name MLflow takes: letters, digits and '_-. :/', no empty or dotted folders."""
    parts = re.sub(r"[^/\w.\- :]", "_", name).split("/")
    return "/".join(part for part in parts if part.strip(".")) or "_"


def _is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https", "databricks", "databricks-uc", "uc")


def _shown(uri: str) -> str:
    """The URI without its password."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))
