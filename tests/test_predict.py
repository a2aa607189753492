"""A trained network on photos, as a user runs it: in this process unless a test says otherwise."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pmm_ray.data.images import read_image, read_label
from pmm_ray.data.palette import voc_palette
from pmm_ray.files import write_atomic
from pmm_ray.nets.build import build_classifier, build_segmenter, load_model, save_model
from pmm_ray.nets.inputs import normalise
from pmm_ray.predict import main
from pmm_ray.stages import predict_masks

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
CLASSES = ["background", "cat", "dog"]
NET = {"backbone": "test_resnet", "options": {}, "output_stride": 32, "batch_norm": "frozen", "num_classes": 3}
HERE = ("predict={scales: [1.0], flip: false}", "cluster={infer_workers: 0, gpu: 'no'}")
NAMES = ("a", "b", "sub/c", "sub/deep/d")


def model_file(path: Path, *, seed: int) -> Path:
    """A network with weights by chance that finds each class somewhere."""
    torch.manual_seed(seed)
    net = {**NET, "arch": "unet", "aux": False}
    module = build_segmenter(weights="none", **net)
    last = module.model.segmentation_head[0]
    torch.nn.init.normal_(last.weight, std=3.0)
    noise = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        last.bias -= module.eval()(normalise(noise, mean=MEAN, std=STD))["main"].mean(dim=(0, 2, 3))
    save_model(path, kind="segmenter", module=module, net=net, info={"mean": MEAN, "std": STD, "classes": CLASSES})
    return path


def classifier_file(path: Path) -> Path:
    net = {**NET, "num_classes": 2}
    info = {"mean": MEAN, "std": STD, "classes": CLASSES}
    save_model(path, kind="classifier", module=build_classifier(weights="none", **net), net=net, info=info)
    return path


def picture(path: Path, *, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50 + seed, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "model.pt", seed=0)


@pytest.fixture
def photos(tmp_path) -> Path:
    for seed, name in enumerate(NAMES):
        picture(tmp_path / "photos" / f"{name}.png", seed=seed)
    return tmp_path / "photos"


def predict(*words: object) -> str:
    """What a call that succeeds prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main([*map(str, words), *HERE]) == 0
    return output.getvalue()


def masks(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out / "masks"))[:-4]: path.read_bytes() for path in (out / "masks").rglob("*.png")}


def times(out: Path) -> dict[str, int]:
    return {name: (out / "masks" / f"{name}.png").stat().st_mtime_ns for name in masks(out)}


def argmax(model: Path, photo: Path) -> np.ndarray:
    module, _ = load_model(model)
    image = torch.from_numpy(read_image(photo)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return module(normalise(image, mean=MEAN, std=STD))["main"].argmax(dim=1)[0].numpy()


def test_each_photo_gets_the_networks_argmax_under_its_own_name(tmp_path, model, photos):
    output = predict(model, photos, tmp_path / "out")
    assert "masks of 4 of 4 photos" in output and "left out" not in output
    assert masks(tmp_path / "out").keys() == set(NAMES)
    for name in NAMES:
        expected = argmax(model, photos / f"{name}.png")
        assert len(np.unique(expected)) == 3
        path = tmp_path / "out/masks" / f"{name}.png"
        np.testing.assert_array_equal(read_label(path), expected)
        with Image.open(path) as mask:
            assert mask.mode == "P" and mask.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]
    listed = json.loads((tmp_path / "out/classes.json").read_text())
    colours = [list(colour) for colour in voc_palette(3)]
    assert listed == [{"id": k, "name": CLASSES[k], "colour": colours[k]} for k in range(3)]
    assert read_image(tmp_path / "out/overlays.png").shape[1] > 300


def test_the_folder_of_the_model_will_do_and_pictures_are_made_of_as_many_photos_as_asked(tmp_path, model, photos):
    heights = {}
    for count in (0, 1, 2):
        predict(model.parent, photos, tmp_path / str(count), f"overlays={count}")
        sheet = tmp_path / str(count) / "overlays.png"
        heights[count] = read_image(sheet).shape[0] if sheet.exists() else 0
    assert heights[0] == 0 and heights[2] == pytest.approx(2 * heights[1], rel=0.05)


def test_with_a_crf_masks_are_others_and_still_of_the_three_classes(tmp_path, model, photos):
    predict(model, photos, tmp_path / "plain")
    predict(model, photos, tmp_path / "crf", "crf=segmentation")
    plain, refined = (masks(tmp_path / name) for name in ("plain", "crf"))
    assert plain.keys() == refined.keys() and all(plain[name] != refined[name] for name in NAMES)
    assert {int(k) for name in NAMES for k in np.unique(read_label(tmp_path / f"crf/masks/{name}.png"))} <= {0, 1, 2}


def test_again_only_what_is_missing_is_made(tmp_path, model, photos):
    out = tmp_path / "out"
    predict(model, photos, out)
    first, before = masks(out), times(out)
    assert "masks of 4 of 4 photos, 4 of them before" in predict(model, photos, out)
    assert times(out) == before
    picture(photos / "new.png", seed=9)
    picture(photos / "b.png", seed=8)  # another photo under the old name
    (out / "masks/sub/c.png").unlink()
    assert "5 photos, of which 2 have their mask" in predict(model, photos, out, "--dry-run")
    assert "masks of 5 of 5 photos, 2 of them before" in predict(model, photos, out)
    after = times(out)
    assert {name for name in after if after[name] != before.get(name)} == {"b", "sub/c", "new"}
    np.testing.assert_array_equal(read_label(out / "masks/b.png"), argmax(model, photos / "b.png"))
    assert masks(out)["sub/c"] == first["sub/c"]


def test_other_photos_into_the_same_folder_come_beside_the_first_ones(tmp_path, model, photos):
    out, more = tmp_path / "out", tmp_path / "more"
    picture(more / "new.png", seed=9)
    picture(more / "b.png", seed=8)  # another photo of the same name
    predict(model, photos, out)
    assert "masks of 2 of 2 photos, 1 anew, for another photo is there under the name" in predict(model, more, out)
    assert masks(out).keys() == {*NAMES, "new"}
    assert sorted(pq.read_table(out / "rows.parquet")["name"].to_pylist()) == sorted([*NAMES, "new"])
    before = times(out)
    told = predict(model, photos, out)
    assert "masks of 4 of 4 photos, 3 of them before, 1 anew" in told
    assert {name for name, when in times(out).items() if when != before[name]} == {"b"}


def test_stopped_half_way_it_goes_on_to_the_same_masks(tmp_path, model, photos, monkeypatch, capsys):
    predict(model, photos, tmp_path / "whole")
    write = predict_masks.write_label
    with monkeypatch.context() as patch:
        calls = iter(range(9))

        def stopped(*arguments):
            if next(calls) == 2:
                raise KeyboardInterrupt
            write(*arguments)

        patch.setattr(predict_masks, "write_label", stopped)
        assert main([str(model), str(photos), str(tmp_path / "out"), *HERE, "cluster.batch_size=1"]) == 130
    assert "goes on where this one stopped" in capsys.readouterr().err
    assert len(masks(tmp_path / "out")) == 2
    assert "masks of 4 of 4 photos, 2 of them before" in predict(model, photos, tmp_path / "out")
    assert masks(tmp_path / "out") == masks(tmp_path / "whole")


def test_bad_photos_are_listed_and_leave_no_mask_of_an_earlier_photo(tmp_path, model, photos):
    out = tmp_path / "out"
    predict(model, photos, out)
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[:100])
    (photos / "text.jpg").write_text("this is no picture")
    for _ in range(2):
        told = predict(model, photos, out).split("left out:")[1].splitlines()
        assert [line.split()[0] for line in told if line] == ["b", "text"]
        assert masks(out).keys() == {*NAMES} - {"b"}
    (photos / "b.png").write_bytes(whole)
    (photos / "text.jpg").unlink()
    assert "left out" not in predict(model, photos, out)
    assert masks(out).keys() == set(NAMES)


def test_masks_of_another_model_or_setting_are_not_mixed(tmp_path, model, photos, capsys):
    out = tmp_path / "out"
    predict(model, photos, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    picture(photos / "new.png", seed=9)
    other = model_file(tmp_path / "model.pt", seed=1)
    capsys.readouterr()
    for words, says in (
        ([model, photos, out, *HERE, "predict.flip=true"], "predict.flip=false, not true"),
        ([model, photos, out, *HERE, "crf=segmentation"], "crf=none, not segmentation"),
        ([other, photos, out, *HERE], "model="),
    ):
        assert main(list(map(str, words))) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {out}: made with {says}") and error.count("\n") == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    # the same network elsewhere is the same, and how fast it works is no part of it
    copy = shutil.copy(model, tmp_path / "copy.pt")
    assert "4 of them before" in predict(copy, photos, out, "predict.batch_size=1", "cluster.batch_size=1")


def test_masks_among_the_photos_are_not_taken_for_photos(tmp_path, model, photos):
    for _ in range(2):
        assert "masks of 4 of 4" in predict(model, photos, photos / "predicted")


def test_in_object_storage_all_is_as_on_a_disk(tmp_path, bucket, model, photos):
    predict(model, photos, tmp_path / "out")
    for path in photos.rglob("*.png"):
        write_atomic(bucket / "photos" / path.relative_to(photos).as_posix(), path.read_bytes())
    write_atomic(bucket / "model.pt", model.read_bytes())
    for before in ("", ", 4 of them before"):
        assert f"photos{before} -> {bucket}/out/masks" in predict(bucket, bucket / "photos", bucket / "out")
    for name in (*(f"masks/{name}.png" for name in NAMES), "classes.json", "overlays.png"):
        assert (bucket / "out" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("gone.pt photos out", "gone.pt: no such model"),
        ("photos photos out", "photos: no model.pt in this folder"),
        ("photos/a.png photos out", "photos/a.png: no model of this package"),
        ("nameless.pt photos out", "nameless.pt: no model of this package, or a damaged one"),
        ("classifier.pt photos out", "classifier.pt: a classifier gives no masks"),
        ("model.pt gone out", "gone: no such folder, image or list"),
        ("model.pt photos photos", "photos: is not empty and no earlier output"),
        ("model.pt photos photos/a.png", "photos/a.png: is not empty"),
        ("model.pt photos predict.flip=false", "OUT=predict.flip=false: is a setting"),
        ("model.pt photos model.pt/out", "model.pt/out: cannot be written to"),
        ("model.pt photos out predict.scale=[1]", "did you mean predict.scales?"),
        ("model.pt photos out gone.yaml", "gone.yaml: no such config file"),
        ("model.pt photos out cluster.gpu=yes", "cluster.gpu=yes"),
        ("model.pt photos/text.jpg out", "all 1 images failed; the first: text:"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_names_the_file_or_key(
    tmp_path, model, photos, monkeypatch, capsys, given, says
):
    shutil.copy(model, tmp_path / "model.pt")
    classifier_file(tmp_path / "classifier.pt")
    saved = torch.load(model, weights_only=True)
    torch.save({name: value for name, value in saved.items() if name != "classes"}, tmp_path / "nameless.pt")
    (photos / "text.jpg").write_text("this is no picture")
    monkeypatch.chdir(tmp_path)
    assert main([*given.split()[:3], *HERE, *given.split()[3:]]) == 1
    error = capsys.readouterr().err
    line = error[error.index("error: ") :].strip()
    assert says in line and "\n" not in line


def test_the_help_comes_without_torch_and_lists_every_key():
    script = (
        "import sys, pmm_ray.predict as p\ntry: p.main(['--help'])\nfinally: print({'torch', 'ray'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert found.stdout.endswith("set()\n")
    for word in ("MODEL", "PHOTOS", "OUT", "predict.scales=", "crf=none", "overlays=8", "cluster.infer_workers="):
        assert word in found.stdout


@pytest.mark.ray
def test_actors_make_the_masks_that_this_process_makes(tmp_path, model, photos, ray_session):
    predict(model, photos, tmp_path / "here")
    words = [model, photos, tmp_path / "actors", *HERE, "cluster.infer_workers=2", "cluster.batch_size=2"]
    assert main(list(map(str, words))) == 0
    assert masks(tmp_path / "actors") == masks(tmp_path / "here")
