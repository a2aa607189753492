"""The embedded data set: what is on disk, and that its classes can only be told by their emblems."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.data.shapes import MARKER, NAMES, _body, draw, scene
from pmm_ray.errors import UserError

SET = {"train": 6, "val": 3, "seed": 5, "part_share": 0.12, "cooccurrence": 0.4}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "set"
    draw(root, **SET)
    return root


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _names(root: Path, title: str) -> list[str]:
    return (root / "ImageSets/Segmentation" / f"{title}.txt").read_text().split()


def test_each_listed_image_has_a_palette_mask_of_its_size_and_the_labels_of_that_mask(drawn: Path) -> None:
    labels = json.loads((drawn / "image_labels.json").read_text())
    names = _names(drawn, "train") + _names(drawn, "val")
    assert len(names) == 9 and set(labels) == set(names)
    assert json.loads((drawn / "classes.json").read_text()) == {"names": list(NAMES)}
    for name in names:
        with (
            Image.open(drawn / "JPEGImages" / f"{name}.jpg") as image,
            Image.open(drawn / "SegmentationClass" / f"{name}.png") as mask,
        ):
            assert image.mode == "RGB" and mask.mode == "P" and image.size == mask.size
            assert all(160 <= side <= 240 for side in image.size)
            assert mask.getpalette()[3:6] == [128, 0, 0]  # class 1 in VOC's palette
            ids = set(np.unique(np.asarray(mask)).tolist())
        assert labels[name] == sorted(ids - {0}) and labels[name] and ids <= set(range(len(NAMES) + 1))


def test_the_same_arguments_give_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    draw(tmp_path / "again", **SET)
    assert _files(tmp_path / "again") == _files(drawn)


def test_another_seed_gives_other_images_and_a_longer_list_begins_with_the_shorter(drawn: Path, tmp_path: Path) -> None:
    draw(tmp_path / "long", **SET | {"train": 8})
    draw(tmp_path / "other", **SET | {"seed": 6})
    first = "JPEGImages/train_0000.jpg"
    short, long, other = (_files(root) for root in (drawn, tmp_path / "long", tmp_path / "other"))
    assert all(long[name] == data for name, data in short.items() if name.startswith(("JPEG", "Segmentation")))
    assert other[first] != short[first]


def test_a_complete_set_is_left_alone(drawn: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    draw(drawn, **SET)
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == before


def test_an_interrupted_drawing_is_finished(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pmm_ray.data import shapes

    root, count = tmp_path / "set", 0

    def stop_at_the_fourth(*arguments: object, **options: object) -> object:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return scene(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shapes, "scene", stop_at_the_fourth)
        draw(root, **SET)
    assert not (root / "image_labels.json").exists()
    draw(root, **SET)
    assert _files(root) == _files(drawn)


def test_other_parameters_are_refused_by_name_and_nothing_is_overwritten(drawn: Path) -> None:
    before = _files(drawn)
    with pytest.raises(UserError, match=r"part_share 0\.12 \(not 0\.2\).*data\.root"):
        draw(drawn, **SET | {"part_share": 0.2})
    assert _files(drawn) == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="no drawn data set"):
        draw(tmp_path, **SET)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_drawing_stopped_while_its_first_marker_was_written_is_begun_again(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / f".{MARKER}.0a1b2c3d.tmp").write_text("{")
    draw(tmp_path, **SET)
    assert _files(drawn).items() <= _files(tmp_path).items()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("keep")
    with pytest.raises(UserError, match="no drawn data set"):
        draw(tmp_path / "set", **SET)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.31, 1.0])
def test_an_emblem_too_small_or_too_large_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(UserError, match=r"data\.shapes\.part_share"):
        draw(tmp_path / "set", **SET | {"part_share": share})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_every_image_has_an_object_at_the_extreme_shares(share: float) -> None:
    masks = [scene(np.random.default_rng([4, i]), first=2, part_share=share, cooccurrence=0.4)[1] for i in range(12)]
    assert all((mask == 3).any() for mask in masks)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"parameters": 3, "finished": true}'])
def test_an_unreadable_marker_is_refused_with_the_mend(tmp_path: Path, text: str) -> None:
    (tmp_path / MARKER).write_text(text)
    with pytest.raises(UserError, match="delete"):
        draw(tmp_path, **SET)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray, int]]:
    numbers = range(40)
    return [
        (*scene(np.random.default_rng([1, i]), first=i % 5, part_share=0.12, cooccurrence=0.4), i % 5) for i in numbers
    ]


def test_the_first_class_is_always_there_and_a_fair_share_of_images_has_several(scenes: list) -> None:
    ids = [set(np.unique(mask).tolist()) - {0} for _, mask, _ in scenes]
    assert all(first + 1 in found for found, (_, _, first) in zip(ids, scenes, strict=True))
    assert 0.25 < np.mean([len(found) > 1 for found in ids]) < 0.6


def test_bodies_stand_out_from_their_surroundings_and_no_colour_tells_the_class(scenes: list) -> None:
    contrast, colours = [], {index: [] for index in range(1, len(NAMES) + 1)}
    for image, mask, _ in scenes:
        ground = np.median(image[mask == 0], axis=0)
        for index in np.unique(mask)[1:]:
            body = np.median(image[mask == index], axis=0)  # the emblem is too small to move a median far
            contrast.append(np.linalg.norm(body - ground))
            colours[int(index)].append(body)
    assert np.mean(np.array(contrast) > 50) > 0.95
    means = np.array([np.mean(values, axis=0) for values in colours.values()])
    within = np.mean([np.std(values, axis=0).mean() for values in colours.values()])
    assert np.std(means, axis=0).mean() < 0.6 * within  # classes differ far less than the objects of one class do


@pytest.mark.parametrize("share", [0.05, 0.12, 0.3])
def test_the_emblem_takes_the_share_of_the_outline_that_it_is_given(share: float) -> None:
    body = _body(np.random.default_rng(3), 200, 200, centre=np.array([100.0, 100.0]), radius=50, part_share=share)
    measured = (np.hypot(body.u, body.v) < 1).sum() / (body.cover > 0.5).sum()
    assert measured == pytest.approx(share, rel=0.05)


def test_a_class_is_at_home_on_its_ground_as_often_as_asked() -> None:
    def same_ground(cooccurrence: float) -> float:
        grounds = []
        for i in range(12):
            image, mask = scene(np.random.default_rng([2, i]), first=0, part_share=0.12, cooccurrence=cooccurrence)
            colour = np.median(image[mask == 0], axis=0)
            grounds.append(colour[1] > colour[0] and colour[1] > colour[2])  # a meadow is green
        return float(np.mean(grounds))

    assert same_ground(1.0) == 1.0 and same_ground(0.0) < 0.6
