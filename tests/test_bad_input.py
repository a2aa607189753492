"""A folder of bad photos through the whole of PMM: the good ones get masks, each bad one gets a line."""

import json

import numpy as np
import pytest
from PIL import Image

from pmm_ray.run import main

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RNG = np.random.default_rng(0)
WORKS = {
    "plain.jpg": "cat",
    "grey.png": "cat",
    "palette.png": "dog",
    "alpha.png": "dog",
    "sixteen bits.png": "cat",
    "cmyk.jpg": "cat",
    "upright.jpg": "dog",
    "Größe (1).JPG": "cat;dog",
}
FAILS = {"truncated.jpg": "cat", "text.jpg": "dog"}


def colours(height: int = 60, width: int = 80) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    colours().save(folder / "plain.jpg")
    colours().convert("L").save(folder / "grey.png")
    colours().convert("P").save(folder / "palette.png")
    colours().convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(RNG.integers(0, 65536, (60, 80), dtype=np.uint16)).save(folder / "sixteen bits.png")
    colours().convert("CMYK").save(folder / "cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: stored 80 x 60, shown 60 x 80
    colours().save(folder / "upright.jpg", exif=turned)
    colours().save(folder / "Größe (1).JPG", format="JPEG")
    whole = (folder / "plain.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("this is no picture")
    colours().save(folder / "nothing to see.jpg")
    lines = [f"{name},{labels}" for name, labels in (WORKS | FAILS).items()]
    lines += ["nothing to see.jpg,", "gone.jpg,cat"]
    (folder / "labels.csv").write_text("image,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(photos, store, *more):
    net = "{backbone: resnet10t, weights: none, batch_norm: train, output_stride: 32}"
    return main(
        [
            f"store={store}",
            *("data.kind=folder", f"data.root={photos}", "data.images=.", "data.masks=null", "data.labels=labels.csv"),
            *("data.train_list=null", "data.val_list=null"),
            f"cam.net={net}",
            "cam.train={epochs: 1, batch_size: 4, crop: 32}",
            "cam.infer={scales: [1.0], flip: false}",
            f"seg.net={net}",
            *("seg.arch=unet", "seg.train={epochs: 1, batch_size: 4, crop: 32}"),
            "seg.predict={scales: [1.0], flip: false}",
            *("cycles.count=0", "cluster.num_cpus=2", "cluster.train_workers=0", "cluster.infer_workers=0"),
            *more,
        ]
    )


def test_good_photos_get_masks_and_each_bad_one_a_line(photos, tmp_path, capsys):
    assert run(photos, tmp_path) == 0
    output = capsys.readouterr().out
    (masks,) = tmp_path.glob("make_masks/*/masks")
    assert {path.stem for path in masks.iterdir()} == {name.rsplit(".", 1)[0] for name in WORKS}
    with Image.open(masks / "upright.png") as mask:
        assert mask.size == (60, 80)
    told = output[output.index("left out") :]
    for name in ("truncated", "text", "nothing to see", "gone"):
        assert sum(name in line for line in told.splitlines()) >= 1, f"{name} is not told of"
    manifest = json.loads(next(tmp_path.glob("make_masks/*/manifest.json")).read_text())
    assert {name for name, _ in manifest["facts"]["failed"]} == {"truncated", "text"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data.labels=missing.csv", "missing.csv"),
        ("data.root=/nowhere", "/nowhere"),
        ("data.classes=[dog, bird]", "cat"),
        ("data.train_list=../../etc/passwd", "passwd"),
        ("cam.npy=/nowhere", "/nowhere"),
        ("cluster.train_workers=64", "cluster.train_workers=64"),
        ("cam.net.backbone=resnet999", "resnet999"),
        ("store=s3://no-such-bucket/runs", "s3://no-such-bucket"),
        ("store=nosuch://bucket/runs", "nosuch://"),
        ("data.root=s3://no-such-bucket/set", "set data.root"),
    ],
)
def test_what_cannot_run_is_one_line_that_names_the_key_or_file(photos, tmp_path, bucket, capsys, change, says):
    assert run(photos, tmp_path, change, "tracking.enabled=false") == 1
    error = capsys.readouterr().err
    line = error[error.index("error: ") :].strip()
    assert says in line
    assert "\n" not in line


def test_a_store_in_object_storage_asks_where_to_track_before_any_work(photos, bucket, capsys):
    assert run(photos, f"{bucket}/runs") == 1
    assert "error: tracking.uri: MLflow's database cannot be in object storage" in capsys.readouterr().err
    assert {path.name for path in (bucket / "runs").iterdir()} <= {"digests"}
