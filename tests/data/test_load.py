from __future__ import annotations

import time

import numpy as np
import pytest
from small_sets import photo

from pmm_ray.config import DataConfig
from pmm_ray.data.images import image_size, read_label
from pmm_ray.data.load import load_dataset
from pmm_ray.errors import UserError

SMALL = {"train": 4, "val": 2, "seed": 3, "part_share": 0.12, "cooccurrence": 0.6}


def test_the_embedded_data_set_is_drawn_and_read(tmp_path):
    data = load_dataset(kind="shapes", root=tmp_path / "shapes", shapes=SMALL, cache=tmp_path / "cache")
    assert (len(data.train.photos), len(data.val.photos)) == (4, 2)
    assert data.problems == ()
    for split in (data.train, data.val):
        for shot in split.photos.photos:
            truth = read_label(split.truth.masks[shot.name])
            assert truth.shape == image_size(shot.image)
            assert set(np.unique(truth)) - {0} == set(shot.labels)
            assert max(shot.labels) < len(data.classes)
    again = load_dataset(kind="shapes", root=tmp_path / "shapes", shapes=SMALL, cache=tmp_path / "cache")
    assert again == data


@pytest.mark.parametrize("where", ["/proc", "/proc/x", "a file"])
@pytest.mark.parametrize("key", ["store", "data.root"])
def test_a_folder_that_cannot_be_written_to_is_one_line_that_names_its_key(tmp_path, key, where):
    (tmp_path / "a file").write_text("")
    folder = tmp_path / where
    changed = {"store": {"cache": folder / "digests"}, "data.root": {"root": folder / "shapes"}}[key]
    named = {"store": folder, "data.root": folder / "shapes"}[key]
    with pytest.raises(UserError, match=rf"^{key}={named}: cannot be written to .*, or give another place$"):
        load_dataset(**{"kind": "shapes", "root": tmp_path / "set", "shapes": SMALL, "cache": tmp_path / "d"} | changed)


def test_the_fields_of_the_data_section_are_the_arguments(tmp_path):
    config = DataConfig(root=str(tmp_path / "shapes"), shapes=SMALL)
    one = load_dataset(**dict(config), cache=tmp_path / "cache")
    other = load_dataset(**config.model_dump(), cache=tmp_path / "cache")
    assert one == other


def test_no_image_is_decoded_and_a_second_load_reads_no_file(tmp_path, monkeypatch):
    root = tmp_path / "many"
    for number in range(300):
        photo(root / f"{number}.jpg", value=number % 250)
    (root / "labels.csv").write_text("image,label\n" + "".join(f"{n},cat\n" for n in range(300)))
    settings = {"kind": "folder", "root": root, "images": ".", "masks": None, "labels": "labels.csv"}
    settings |= {"train_list": None, "val_list": None, "cache": tmp_path / "cache"}
    monkeypatch.setattr("PIL.Image.open", None)
    monkeypatch.setattr("pmm_ray.data.fingerprint._SETTLED", -1)
    first = load_dataset(**settings)
    monkeypatch.setattr("hashlib.file_digest", None)
    start = time.perf_counter()
    assert load_dataset(**settings) == first
    assert time.perf_counter() - start < 2
