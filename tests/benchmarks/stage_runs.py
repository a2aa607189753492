"""Running the mask stage outside a recipe: a data set, its imported CAMs, and what the stage needs around it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import pyarrow.parquet as pq

from pmm_ray.artefacts import Artefact, Folder
from pmm_ray.cluster.journal import ROWS_FILE
from pmm_ray.config import ClusterConfig, MasksConfig
from pmm_ray.data.dataset import Photos
from pmm_ray.data.load import load_dataset
from pmm_ray.stages.import_cams import import_cams
from pmm_ray.stages.make_masks import make_masks
from pmm_ray.stages.stage import Context, Facts


class _NoLog:
    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        pass

    def picture(self, path: Path, name: str) -> None:
        pass


def read_photos(root: Path) -> Photos:
    """The photos of a data set by `photos.write_voc`."""
    cache = root / "cache"
    found = load_dataset(
        kind="voc", root=root, cache=cache, masks=None, val_list=None, labels="image_labels.json", limit=None
    )
    assert not found.problems, found.problems[0]
    return found.train.photos


def imported(root: Path, photos: Photos, cluster: ClusterConfig) -> Artefact:
    """The CAMs of `<root>/cams_small` as the artefact that the mask stage reads. Needs a session."""
    out = root / "imported"
    context = Context(out, 0, cluster, _NoLog(), "import CAMs")
    folder = Folder.of(str(root / "cams_small"), cache=context.out / "digests")
    facts = import_cams(photos=photos, folder=folder, context=context)
    assert not facts["failed"], facts["failed"][0]
    return Artefact("import_cams", "benchmark", out)


def run_stage(
    out: Path, photos: Photos, cams: Artefact, cluster: ClusterConfig, masks: MasksConfig | None = None
) -> Facts:
    """Make the masks into `out`, with the published settings or those given. Needs a session."""
    context = Context(out, 0, cluster, _NoLog(), "make masks")
    facts = make_masks(photos=photos, cams=cams, masks=masks or MasksConfig(), context=context)
    assert not facts["failed"], facts["failed"][0]
    return facts


class Run:
    """One run of the stage: its rate in the steady state, and the mean time of an image within the actor.

    The first `warm_up` masks are not timed.
    """

    def __init__(
        self,
        out: Path,
        found: Photos,
        cams: Artefact,
        cluster: ClusterConfig,
        *,
        warm_up: int,
        masks: MasksConfig | None = None,
    ):
        start = time.monotonic()
        run_stage(out, found, cams, cluster, masks)
        self.whole = time.monotonic() - start
        # a mask is written last of all, under another name, and renamed, which leaves its time alone
        written = sorted((path.stat().st_mtime_ns, path.stem) for path in (out / "masks").glob("*.png"))
        steady = {name for _, name in written[warm_up:]}
        self.rate = 1e9 * len(steady) / (written[-1][0] - written[warm_up - 1][0])
        rows = pq.read_table(out / ROWS_FILE, columns=["name", "seconds"]).to_pylist()
        self.inside = 1e3 * mean(row["seconds"] for row in rows if row["name"] in steady)
