"""Photos without labels, from a folder, a list or one file."""

from __future__ import annotations

import pytest
from small_sets import photo

from pmm_ray.data.problems import Problems
from pmm_ray.data.unlabelled import read_photos
from pmm_ray.errors import UserError
from pmm_ray.files import write_atomic


def read(where, **more):
    problems = Problems()
    found = read_photos(where, problems, **more)
    assert all(item.labels == () for item in found)
    return {item.name: item.image for item in found}, problems.listed()


def test_a_folder_gives_the_images_at_any_depth_but_those_in_skipped_folders(tmp_path):
    paths = [photo(tmp_path / name) for name in ("a.jpg", "sub/deep/b.png", "two.jpg", "two.png")]
    photo(tmp_path / "masks" / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    found, problems = read(tmp_path, skip=[tmp_path / "masks"])
    assert found == dict(zip(("a", "sub/deep/b", "two.jpg", "two.png"), map(str, paths), strict=True))
    assert not problems


def test_earlier_masks_and_stores_of_runs_among_the_photos_are_not_taken_for_photos(tmp_path, anywhere):
    for name in ("a.jpg", "sub/masks/b.png", "digests/c.jpg", "other/d.jpg"):
        write_atomic(anywhere / name, b"")
    # what others call so is no output: a file of one name alone, a folder of one name alone
    for name in ("other/predict.json", "sub/digests/content.json"):
        write_atomic(anywhere / name, b"{}")
    wanted = {"a", "sub/masks/b", "digests/c", "other/d"}
    assert set(read(anywhere)[0]) == wanted
    for name in ("sub/out/predict.json", "sub/out/classes.json", "runs/digests/content-0123456789ab.json"):
        write_atomic(anywhere / name, b"{}")
    for name in ("sub/out/masks/a.png", "sub/out/overlays.png", "runs/make_masks/0123/masks/a.png"):
        write_atomic(anywhere / name, b"")
    assert set(read(anywhere)[0]) == wanted
    assert set(read(anywhere / "sub/out")[0]) == {"masks/a", "overlays"}  # asked for by name


def test_photos_of_other_kinds_are_told_and_raw_files_beside_a_jpeg_are_no_loss(tmp_path):
    for name in ("a.jpg", "b.gif", "c.jfif", "d.JPE"):
        photo(tmp_path / name)
    for name in ("e.HEIC", "f.heic", "g.heic", "h.heic", "a.CR2", "i.svg", "notes.txt"):
        write_atomic(tmp_path / name, b"x")
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent)
    found, problems = read(tmp_path)
    assert set(found) == {"a", "b", "c", "d"}
    assert [(problem.name, problem.why.split(":")[0], problem.count) for problem in problems] == [
        ("e.HEIC, f.heic, g.heic and 1 more", ".heic files are not read", 4),
        ("i.svg", ".svg files are not read", 1),
        ("elsewhere", "a link to a folder is not followed", 1),
    ]


def test_one_image_is_named_by_its_file(tmp_path):
    path = photo(tmp_path / "some.photo.JPG")
    assert read(path) == ({"some.photo": str(path)}, ())


def test_a_list_names_images_by_their_path_from_it_and_those_elsewhere_by_their_whole_path(tmp_path):
    inside, outside = photo(tmp_path / "lists/sub/a.jpg"), photo(tmp_path / "elsewhere/b.jpg")
    entries = [
        "sub/a.jpg",
        "./sub/../sub/a.jpg",
        str(inside),
        "../elsewhere/b.jpg",
        "gone.jpg",
        "s3://bucket/set/c.jpg",
    ]
    (tmp_path / "lists/list.txt").write_text("\n\n".join(entries) + "\n")
    found, problems = read(tmp_path / "lists/list.txt")
    assert found == {
        "sub/a": str(inside),
        f"{str(tmp_path)[1:]}/elsewhere/b": str(outside),
        "gone": str(tmp_path / "lists/gone.jpg"),  # whether it is there shows when it is read
        "bucket/set/c": "s3://bucket/set/c.jpg",
    }
    assert not problems


def test_no_name_leads_out_of_a_folder_and_none_is_given_twice(tmp_path):
    clash = f"{str(tmp_path)[1:]}/b.jpg"
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/list.txt").write_text(f"s3://bucket/../../x.jpg\n../b.jpg\n{clash}\n")
    found, problems = read(tmp_path / "lists/list.txt")
    assert found == {clash.removesuffix(".jpg"): str(tmp_path / "b.jpg")}
    assert [(problem.name, problem.why.split(":")[0]) for problem in problems] == [
        ("s3://bucket/../../x.jpg", "'..' in a URL is not followed"),
        (clash, f"would have the name of {tmp_path}/b.jpg"),
    ]


def test_object_storage_gives_the_same_names(tmp_path, bucket):
    for name in ("a.jpg", "sub/b.jpg"):
        write_atomic(bucket / "photos" / name, photo(tmp_path / "photos" / name).read_bytes())
    write_atomic(bucket / "photos" / "list.txt", "a.jpg\n")
    assert read(bucket / "photos")[0] == {name: f"{bucket}/photos/{name}.jpg" for name in ("a", "sub/b")}
    assert read(bucket / "photos/list.txt")[0] == read(bucket / "photos/a.jpg")[0] == {"a": f"{bucket}/photos/a.jpg"}


def test_nothing_to_read_is_one_line_that_names_it(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "video.mp4").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    write_atomic(tmp_path / "phone" / "x.heic", b"x")
    for name, why in (
        ("gone", "no such folder, image or list"),
        ("empty", r"holds no image \(.*\.jpg, .*\.webp\)$"),
        ("phone", r"holds no image \(.*\); x\.heic: \.heic files are not read: convert them to JPEG or PNG"),
        ("phone/x.heic", r"x\.heic: \.heic files are not read: convert them"),
        ("blank.txt", "is empty"),
        ("video.mp4", r"is no image \(.*\.jpg, .*\) and no text file"),
        (".DS_Store", "is no image .* and no text file"),
    ):
        with pytest.raises(UserError, match=why) as error:
            read(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
