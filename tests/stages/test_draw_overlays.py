"""Overlay sheets of artefacts written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmm_ray.artefacts import Artefact
from pmm_ray.config import ClusterConfig, MasksConfig
from pmm_ray.data.cams import Cam, write_cams
from pmm_ray.data.dataset import Classes, Photo, Photos, Truth
from pmm_ray.data.images import read_image, write_label
from pmm_ray.stages.draw_overlays import draw_overlays, sample
from pmm_ray.stages.stage import Context

CLASSES = Classes(("background", "cat"), ((0, 0, 0), (200, 0, 0)))
NAMES = ("a", "b/c", "contact", "no mask", "truncated")


class Kept:
    """A log that keeps the names of pictures."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def metrics(self, values, step=None) -> None:
        raise AssertionError("the stage has no figures")

    def picture(self, path: Path, name: str) -> None:
        assert path.is_file()
        self.names.append(name)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Photos, Artefact, Artefact, Truth]:
    """Five photos, of which one has no mask and one cannot be read, with CAMs, masks and the truth of the first."""
    photos = []
    for number, name in enumerate(NAMES):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 32 + number, 3), 40 * number, np.uint8)).save(path)
        photos.append(Photo(name, str(path), (1,)))
    cut = tmp_path / "photos" / "truncated.png"
    cut.write_bytes(cut.read_bytes()[:60])
    cams, masks = Artefact("infer_cams", "c", tmp_path / "cam"), Artefact("make_masks", "m", tmp_path / "mask")
    write_cams(cams.path / "cams" / "0.parquet", [Cam("a", (1,), np.ones((1, 6, 8), np.float16), 24, 32)])
    row = {"name": ["a"], "status": ["ok"], "error": [None], "shard": ["0.parquet"], "row": [0]}
    pq.write_table(pa.table(row), cams.path / "rows.parquet")
    for number, name in enumerate(NAMES):
        if name != "no mask":
            write_label(masks.path / "masks" / f"{name}.png", np.ones((24, 32 + number), np.uint8), CLASSES.palette)
    status = ["failed" if name == "no mask" else "ok" for name in NAMES]
    rows = {"name": list(NAMES), "status": status, "error": ["wrong" if s == "failed" else None for s in status]}
    pq.write_table(pa.table(rows), masks.path / "rows.parquet")
    truth = tmp_path / "truth.png"
    write_label(truth, np.zeros((24, 32), np.uint8), CLASSES.palette)
    return Photos(tuple(photos), CLASSES, "p"), cams, masks, Truth({"a": str(truth)}, "drawn", "t")


def context(out: Path) -> Context:
    return Context(out, 0, ClusterConfig(), Kept(), "overlays")


def test_sheets_are_written_and_logged_without_what_failed(made, tmp_path):
    photos, cams, masks, truth = made
    here = context(tmp_path / "out")
    facts = draw_overlays(photos=photos, cams=cams, masks=masks, folder="masks", truth=truth, count=9, context=here)
    files = ["a.png", "b/c.png", "contact (photo).png", "contact.png"]
    found = sorted(str(p.relative_to(here.out / "overlays")) for p in (here.out / "overlays").rglob("*.png"))
    assert found == files and here.log.names == [f"overlays/{name}" for name in files]
    assert facts["pictures"] == ["a", "b/c", "contact"]
    panels = {name: read_image(here.out / "panels" / f"{name}.png") for name in facts["pictures"]}
    assert panels["a"].shape == (192, 256, 3)  # of 24 x 32
    assert len(list((here.out / "panels").rglob("*.png"))) == 3
    assert [name for name, _ in facts["failed"]] == ["truncated"]
    widths = [read_image(here.out / "overlays" / name).shape[1] for name in files]
    assert widths[0] > widths[1] and widths[3] == widths[0]  # only the first has a CAM and a ground truth


def test_matting_shows_its_trimap_and_mattes(made, tmp_path):
    photos, cams, masks, _ = made
    given = {"photos": photos, "cams": cams, "masks": masks, "folder": "masks", "truth": None, "count": 9}
    draw_overlays(**given, context=context(tmp_path / "plain"))
    matting = MasksConfig(maker="matting", cvs=False)
    facts = draw_overlays(**given, matting=matting, context=context(tmp_path / "matted"))
    assert facts["pictures"] == ["a", "b/c", "contact"]
    width = {
        (run, name): read_image(tmp_path / run / "overlays" / f"{name}.png").shape[1]
        for run in ("plain", "matted")
        for name in ("a", "b/c")
    }
    # photo, CAM, mask and two more of the same width; nothing more for a photo without a CAM
    assert width["matted", "a"] - width["plain", "a"] == pytest.approx(2 / 3 * width["plain", "a"], rel=0.02)
    assert width["matted", "b/c"] == width["plain", "b/c"]


def test_pictures_are_the_same_each_time(made, tmp_path):
    photos, _, masks, _ = made
    for out in ("one", "two"):
        draw_overlays(
            photos=photos, cams=None, masks=masks, folder="masks", truth=None, count=1, context=context(tmp_path / out)
        )
    one, two = ((tmp_path / out / "overlays" / "contact.png").read_bytes() for out in ("one", "two"))
    assert one == two


def test_nothing_to_draw_is_no_error(made, tmp_path):
    _, cams, masks, truth = made
    nothing = Photos((), CLASSES, "p")
    here = context(tmp_path / "out")
    facts = draw_overlays(photos=nothing, cams=cams, masks=masks, folder="masks", truth=truth, count=3, context=here)
    assert facts == {"pictures": [], "failed": []}


def test_a_choice_does_not_fall_in_with_the_order_of_the_list():
    photos = [Photo(f"train_{n:04d}", "x.jpg", (1 + n % 5,)) for n in range(240)]
    chosen = sample(photos, 20)
    assert len(chosen) == 20 and {photo.labels for photo in chosen} == {(c,) for c in range(1, 6)}
    assert chosen == sample(photos, 20) == sorted(chosen, key=lambda photo: photo.name)
    assert sample(photos[:2], 5) == photos[:2] and sample([], 3) == []
